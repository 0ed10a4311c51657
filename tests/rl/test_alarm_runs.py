"""Runs made to raise each alarm: they raise it, stop or branch as asked, and resume to the same."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from reward import VerifierPool
from rlvr.learner.checkpoint import KEPT
from rlvr.rl import collect
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train
from rlvr.runs import loop
from rlvr.runs.alarms import RunAlarms
from rlvr.runs.interrupt import Stopped
from rlvr.runs.log import read_metrics
from rlvr.runs.parent import Parent
from rlvr.settings import load_settings
from tests.training import run, small_recipe

REWARDS = r"""def spike(num_tokens, step):
    return num_tokens % 2 * (1e4 if step == 10 else 1.0)

def longer(num_tokens, step):
    return float(num_tokens) if step > 9 else 0.0

def shorter(num_tokens, step):
    return -float(num_tokens) if step > 9 else -9.0
"""


@pytest.fixture
def values(guessing_folder, tmp_path):
    """Few prompts, no evaluation, no updates to speak of."""
    values = small_recipe(guessing_folder, tmp_path / "run")
    values["rollout"] |= {"prompts_per_step": 4, "samples_per_prompt": 4}
    values["learner"] = {"lr": 1e-9}
    values["checkpoint"] = {"every": 100, "keep": 1}
    return {**values, "regularisers": [], "evaluation": {}}


def rewarded(tmp_path, name):
    (tmp_path / "rewards.py").write_text(REWARDS)
    return f"reward.functions=[{{name: {name}, function: '{tmp_path}/rewards.py:{name}'}}]"


def told(folder):
    path = folder / "alarms.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(row["alarm"], row["event"], row["step"]) for row in map(json.loads, lines)]


def begun(folder):
    return {name for name, event, _ in told(folder) if event == "begins"}


CUT = ("steps=6", "rollout.sampling.max_tokens=2")


def test_a_run_of_cut_completions_says_so_in_lines_metrics_and_records(values, capsys):
    recipe = load_settings(RLRecipe, values, CUT)
    train(recipe, console=Console())
    lines = [line for line in capsys.readouterr().out.splitlines() if "alarm " in line]
    assert [line for line in lines if line.startswith("alarm truncation begins at step 3: ")]
    assert {("truncation", "begins", 3), ("zero_variance", "begins", 3)} == {*told(recipe.output)}
    rows = read_metrics(recipe.output / "metrics.jsonl")
    marks = {row["step"]: row["alarm/truncation"] for row in rows if "alarm/truncation" in row}
    assert marks == dict.fromkeys(range(3, 7), 1.0)
    row = json.loads((recipe.output / "alarms.jsonl").read_text().splitlines()[0])
    assert row["figure"] > row["above"]
    assert row["advice"]


def test_stop_ends_the_run_as_if_the_step_had_been_the_last(values):
    folder, rows = run(values, *CUT, "alarms.truncation=stop")
    assert max(row["step"] for row in rows) == 3
    assert (folder / "checkpoints" / "step_000003").is_dir()
    assert (folder / "model" / "model.safetensors").is_file()
    assert not (folder / "ended.json").exists()
    folder, rows = run(values, *CUT, "alarms.truncation=stop", resume=True)
    assert max(row["step"] for row in rows) == 6  # it goes on: the alarm holds, and begins no more
    assert told(folder).count(("truncation", "begins", 3)) == 1


def test_save_keeps_a_checkpoint_to_branch_from(values, tmp_path):
    more = ("alarms.truncation=save", "checkpoint.every=1", "steps=7")
    folder, _ = run(values, *CUT, *more)
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step_000003", "step_000007"]
    assert (folder / "checkpoints" / "step_000003" / KEPT).read_text() == "alarm truncation\n"
    recipe = load_settings(RLRecipe, {**values, "output": str(tmp_path / "branch")}, CUT)
    train(recipe, parent=Parent.parse(f"{folder}@3"), console=Console(quiet=True))
    assert min(row["step"] for row in read_metrics(recipe.output / "metrics.jsonl")) == 4


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_a_run_that_was_killed_tells_its_alarms_once_and_at_the_same_steps(
    values, tmp_path, monkeypatch, last
):
    """Stopped between a step's record and its alarms, or later, with a checkpoint of that step."""
    check = RunAlarms.check

    def stopped(self):
        if self.run.step == last:
            raise Stopped(15)
        return check(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.RunAlarms, "check", stopped)
        with pytest.raises(Stopped):
            run(values, *CUT)
    folder, _ = run(values, *CUT, resume=True)
    assert sorted(told(folder)) == [("truncation", "begins", 3), ("zero_variance", "begins", 3)]
    rows = read_metrics(folder / "metrics.jsonl")
    marks = [row["step"] for row in rows if "alarm/truncation" in row]
    assert marks == [3, 4, 5, 6]


def test_records_of_alarms_after_the_checkpoint_are_dropped(values):
    folder, _ = run(values, *CUT, "checkpoint.every=2", "checkpoint.keep=9")
    before = told(folder)
    for step in ("4", "6"):
        (folder / "checkpoints" / f"step_00000{step}" / "MANIFEST.json").unlink()
    assert told(run(values, *CUT, resume=True)[0]) == before


def test_a_gradient_far_above_its_median(values, tmp_path):
    spike = (rewarded(tmp_path, "spike"), "advantage.scale=none", "steps=11")
    assert ("gradient_norm", "begins", 10) in told(run(values, *spike)[0])


def test_completions_that_grow(values, tmp_path):
    growth = ("learner.lr=1e-2", "rollout.sampling.max_tokens=24", "steps=17")
    assert "length_explosion" in begun(run(values, rewarded(tmp_path, "longer"), *growth)[0])


def test_a_reward_that_is_gamed_collapses_entropy_and_held_out_accuracy(values, tmp_path):
    """Short completions are rewarded; what the model answered before becomes the right answer."""
    sums = {"name": "arithmetic", "digits": 1, "size": 20, "split": "held_out"}
    first = {**values, "output": str(tmp_path / "first"), "evaluation": {"sets": {"test": sums}}}
    answered = run(first, "steps=1")[0] / "evaluations" / "step_000000.jsonl"
    rows = [json.loads(line) for line in answered.read_text().splitlines()]
    known = [{"problem": row["prompt"].removeprefix("<bos>"), "answer": row["extracted"]}
             for row in rows if row["extracted"]]  # fmt: skip
    assert len(known) > 5
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))
    sets = {"test": {"name": "file", "path": str(tmp_path / "known.jsonl")}}
    values["evaluation"] = {"sets": sets, "every": 1}
    gamed = ("learner.lr=1e-2", "learner.skip_zero_advantage=false", "steps=24")
    folder, rows = run(values, rewarded(tmp_path, "shorter"), *gamed)
    assert {"entropy_collapse", "held_out_gap"} <= begun(folder)


def test_an_engine_that_reports_other_probabilities(values, monkeypatch):
    sample = collect.sample_groups

    def moved(one):
        return replace(one, logprobs=tuple(value - 0.01 for value in one.logprobs))

    def off(*given, finished, **more):
        def tell(index, group):
            finished(index, replace(group, completions=tuple(map(moved, group.completions))))

        return sample(*given, finished=tell, **more)

    monkeypatch.setattr(collect, "sample_groups", off)
    folder, _ = run(values, "steps=4", "learner.skip_zero_advantage=false")
    assert ("mismatch", "begins", 3) in told(folder)


def test_a_verifier_that_a_second_judge_contradicts(values, monkeypatch):
    """It is wrong about every answer with a 1; the judge, another grader, is not."""
    grade_many = VerifierPool.grade_many

    def wrong(pool, pairs, *more):
        found = grade_many(pool, pairs, *more)
        return [
            replace(one, correct=one.correct != ("1" in pair[0]))
            for pair, one in zip(pairs, found, strict=True)
        ]

    monkeypatch.setattr(VerifierPool, "grade_many", wrong)
    shares = ("rollout.prompts_per_step=12", "rollout.samples_per_prompt=8", "steps=6")
    folder, rows = run(values, *shares, "reward.check={timeout: 60}")
    assert "disputed" in begun(folder)
    assert max(row.get("check/disputed", 0) for row in rows) > 0.2
    assert (folder / "disputed.jsonl").is_file()


def test_masks_that_take_long_completions_out(values, tiny_folder):
    """A model of random weights ends anywhere, or is cut."""
    values["model"] = {"path": str(tiny_folder)}
    mask = ("rollout.sampling.max_tokens=24", "reward.truncated=mask", "steps=8")
    folder, rows = run(values, *mask, "rollout.samples_per_prompt=16")
    assert {"length_bias", "truncation"} <= begun(folder)
    assert all(row["bias/length"] < 0.9 for row in rows if "bias/length" in row)


def test_filters_that_take_hard_problems_out(values):
    easy = ("rollout.accuracy_range=[0.1, 1]", "rollout.dynamic_sampling_rounds=8", "steps=5")
    assert "difficulty_bias" in begun(run(values, *easy)[0])
