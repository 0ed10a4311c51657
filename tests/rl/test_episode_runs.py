"""Runs with an environment: one more source of completions, in the same loop."""

import pytest
import torch
from safetensors.torch import load_file

from rlvr.environments import Done, Environment, Observation
from rlvr.files import read_lines
from rlvr.rl.audit import audit
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.replay import replay_completions
from rlvr.settings import load_settings
from tests.training import column, run, small_recipe

TIMES = ("time/", "throughput/", "memory/", "phase/")


class Digits(Environment):
    """Three words: each with a digit is worth something; a guess without ends it early."""

    def step(self, action):
        worth = sum(letter.isdigit() for letter in action.text) / 8
        if action.turn == 3:
            return Done(worth)
        return Observation(" more? ", reward=worth)


class Once(Environment):
    """The verdict on one answer."""

    def step(self, action):
        return Done(float(self.judge(action.text)))


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def same(one, two):
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def without_times(rows):
    steps = {}
    for row in rows:
        own = {k: v for k, v in row.items() if not k.startswith(TIMES)}
        steps.setdefault(row["step"], {}).update(own)
    return steps


@pytest.fixture
def recipe(guessing_folder, tmp_path):
    """Turns of at most 6 characters, which a model that guesses ends by itself at times."""
    recipe = small_recipe(guessing_folder, tmp_path / "run")
    recipe["data"] = {
        "source": {"name": "arithmetic", "digits": 1, "size": 60},
        "template": "plain",
        "max_prompt_tokens": 16,
    }
    recipe["environment"] = {"name": f"{__name__}:Digits", "max_turns": 3, "max_tokens": 60}
    recipe["rollout"]["sampling"] = {"max_tokens": 12}
    return recipe


def test_a_run_learns_from_episodes_and_its_books_close(recipe, tmp_path):
    folder, metrics = run(recipe)
    turns = column(metrics, "episode/turns_mean")
    assert len(turns) == 6
    assert max(turns) > 1
    kept = [row for file in (folder / "completions").glob("*.jsonl")
            for row in read_lines(file).objects if row["step"] and "set" not in row]  # fmt: skip
    several = [row for row in kept if len(row["turns"]) == 3]
    assert several
    for row in several:
        (_, first, _), (second, _, _), _ = row["turns"]
        assert "".join(row["tokens"][first:second]) == " more? "
        assert row["logprobs"][first:second] == [0.0] * len(" more? ")
        assert row["reward"] == pytest.approx(sum(reward or 0 for *_, reward in row["turns"]))
    found = audit(folder)
    assert not found.faults, found.faults
    ids = [row["id"] for row in read_lines(folder / "ledger.jsonl").objects
           if row["kind"] == "completion" and row["id"].startswith("5/")]  # fmt: skip
    assert all(one.same for one in replay_completions(folder, ids))
    assert {row["finish"] for row in read_lines(folder / "ledger.jsonl").objects
            if row["kind"] == "completion"} <= {"stop", "length", "turns", "tokens"}  # fmt: skip


def test_a_run_stopped_and_resumed_ends_where_it_would_have_ended(recipe, tmp_path):
    folder, _ = run(recipe, "steps=4")
    other = {**recipe, "output": str(tmp_path / "other")}
    run(other, "steps=2")
    again, _ = run(other, "steps=4", resume=True)
    assert same(weights(folder), weights(again))


def test_an_environment_of_one_turn_is_plain_training(recipe, tmp_path):
    """The same bits: samples, rewards, weights."""
    recipe["environment"]["name"] = f"{__name__}:Once"
    folder, metrics = run(recipe, "steps=2")
    plain = {key: value for key, value in recipe.items() if key != "environment"}
    plain |= {"output": str(tmp_path / "plain")}
    plain_folder, plain_metrics = run(plain, "steps=2")
    assert same(weights(folder), weights(plain_folder))
    one, two = without_times(metrics), without_times(plain_metrics)
    for step, row in two.items():
        shared = {name for name in row if not name.startswith(("reward/accuracy", "eval/"))}
        assert {name: one[step].get(name) for name in shared} == {n: row[n] for n in shared}


def test_no_layout_changes_a_bit_in_exact_mode(recipe, tmp_path):
    found = []
    for name, own in {"a": "layout=packed", "b": "tokens_per_micro_batch=9"}.items():
        recipe["output"] = str(tmp_path / name)
        engine = f"rollout.engine.max_rows={3 if name == 'a' else 256}"
        folder, rows = run(recipe, "steps=2", "learner.exact=true", f"learner.{own}", engine)
        found.append((without_times(rows), weights(folder)))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["environment.name=gues_number"], "did you mean 'guess_number'"),
        (["environment.max_tokens=4"], "rollout.sampling.max_tokens = 12"),
        (["environment=null", "reward.functions=[{function: environment}]"], "set environment"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_exists(recipe, tmp_path, overrides, said):
    with pytest.raises(ValueError, match=said):
        run(recipe, *overrides)
    assert not (tmp_path / "run").exists()


def test_the_reward_is_the_environments_unless_functions_say_more(recipe):
    terms = load_settings(RLRecipe, recipe).reward.functions
    assert [term.function for term in terms] == ["environment"]
    both = "reward.functions=[{function: environment}, {function: repetition, weight: 0.5}]"
    assert len(load_settings(RLRecipe, recipe, [both]).reward.functions) == 2
