"""Completions are sampled again from the files of a run alone, which stays as it is."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import rlvr.rl.run
from rlvr.rl import replay
from rlvr.rl.audit import audit
from rlvr.rl.replay import Replayed, replay_completions
from rlvr.rollout.engine import Sample
from rlvr.runs.interrupt import Stopped
from rlvr.runs.ledger import LEDGER, LedgerCompletion, logprob_hash, read_ledger, token_hash
from tests.command import call, refused
from tests.rl.test_rollouts import CopyEngine, nothing
from tests.training import run


@pytest.fixture(scope="module")
def finished(guessing_folder, tmp_path_factory):
    """A run of three steps with checkpoints of steps 2 and 3."""
    from tests.training import small_recipe

    values = small_recipe(guessing_folder, tmp_path_factory.mktemp("replay") / "run")
    values |= {"steps": 3, "log": {"ledger": "tokens"}}
    values["evaluation"]["every"] = 3
    folder, _ = run(values)
    return folder


def chosen(folder):
    """Two completions of each version."""
    of_versions = {}
    for item in read_ledger(folder).completions():
        of_versions.setdefault(item.version, []).append(item.id)
    assert sorted(of_versions) == [0, 1, 2]
    return [name for names in of_versions.values() for name in (names[-1], names[4])]


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_completions_of_all_versions_are_the_same_bits_again(finished):
    before = contents(finished)
    found = replay_completions(finished, chosen(finished))
    assert [result.id for result in found] == chosen(finished)
    assert all(result.same and result.fault is None for result in found)
    assert {(result.first_difference, result.largest, result.of_sum) for result in found} == {
        (None, 0.0, 0.0)
    }
    assert contents(finished) == before


def test_without_training_forward_only_versions_at_hand_are_sampled(finished, monkeypatch):
    def replayed(recipe, ledger, groups, asked, console):
        return {item.id: Replayed(item.id, item.version, None, True, True) for item in asked}

    monkeypatch.setattr(replay, "_replayed", replayed)
    found = replay_completions(finished, chosen(finished), retrain=False)
    assert [result.same for result in found] == [result.version != 1 for result in found]
    assert all(r.fault == "the run has no checkpoint of version 1" for r in found if not r.same)


def test_an_audit_needs_the_files_of_a_run_alone(finished, tmp_path):
    moved = Path(shutil.copytree(finished, tmp_path / "moved"))
    recipe = yaml.safe_load((moved / "recipe.yaml").read_text())
    recipe["model"]["path"] = "gone"
    (moved / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = audit(moved)
    assert found.closed, found.faults
    assert {check.name: check.count for check in found.checks}["verdicts"] > 0


def test_an_audit_samples_again_where_weights_are_at_hand(finished, monkeypatch):
    closed = call("audit", finished, "--replay", 6)
    assert closed.returncode == 0, closed.stderr
    assert "replay: 6 completions sampled again" in closed.stdout

    def otherwise(folder, ids, retrain):
        return [Replayed(ids[0], 0, None, True, False, 3, 0.25)]

    monkeypatch.setattr(replay, "replay_completions", otherwise)
    found = audit(finished, replay=1)
    assert len(found.faults) == 1
    assert "log-probabilities differ from token 3 on" in found.faults[0]


def test_other_weights_are_told_before_anything_is_sampled(finished, tmp_path):
    for name in ("recipe.yaml", "run.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    ledger = (finished / LEDGER).read_text()
    recorded = read_ledger(finished).weights[2]["fingerprint"]
    (tmp_path / LEDGER).write_text(ledger.replace(recorded, "f" * 64))
    (result,) = replay_completions(tmp_path, chosen(finished)[-1:])
    assert "weights of version 2 came out otherwise" in result.fault
    assert not result.same


def test_another_prompt_is_told():
    ids = [3, 4, 5]
    run = SimpleNamespace(places={"sum": 0}, prompts=[SimpleNamespace(ids=ids)])

    def drawn(problem, prompt_ids):
        prompt = {"problem": problem, "prompt_hash": token_hash(prompt_ids)}
        return [LedgerCompletion("1/0/0", prompt, {}, None, 0)]

    assert replay._prompt_fault(run, drawn("sum", ids)) is None
    assert "the prompt of problem 'sum'" in replay._prompt_fault(run, drawn("sum", [3, 4]))
    assert "the prompt of problem 'other'" in replay._prompt_fault(run, drawn("other", ids))


IDS, LOGPROBS = (5, 6, 7), (-0.5, -1.0, -0.25)


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize(
    ("ids", "logprobs", "expected"),
    [
        (IDS, LOGPROBS, (True, True, None, 0.0, 0.0)),
        ((5, 6, 8), (-0.5, -1.5, -9.0), (False, False, 1, 0.5, None)),
        ((5, 9, 7), (-0.5, -9.0, -9.0), (False, False, 1, 0.0, None)),
        ((5, 6), (-0.5, -1.0), (False, False, 2, 0.0, None)),
        (IDS, (-0.5, -1.0, -0.5), (True, False, 2, 0.25, 0.25)),
    ],
)
def test_what_differs_is_found_where_and_by_how_much(ids, logprobs, expected, tokens):
    row = {
        "ids_hash": token_hash(IDS),
        "logprobs_hash": logprob_hash(LOGPROBS),
        "logprob_sum": sum(LOGPROBS),
        **({"ids": list(IDS), "logprobs": list(LOGPROBS)} if tokens else {}),
    }
    item = LedgerCompletion("1/0/0", {"version": 0}, row, None, 0)
    found = replay.compared(item, Sample(ids, logprobs, "length"))
    same = found.same_ids, found.same_logprobs
    assert (*same, found.of_sum) == (*expected[:2], expected[4])
    if tokens or found.same:
        assert (found.first_difference, found.largest) == expected[2:4]
    else:
        assert (found.first_difference, found.largest) == (None, None)


def test_what_is_not_there_is_named(finished, tmp_path):
    with pytest.raises(ValueError, match=r"no completion '9/9/9'; it has 1/0/0 to 3/5/5 \(STEP/P"):
        replay_completions(finished, ["9/9/9"])
    with pytest.raises(ValueError, match=r"is not a run \(it has no recipe.yaml\)"):
        replay_completions(tmp_path, ["1/0/0"])


def test_one_completion_alone_is_the_same_in_exact_mode(recipe_values):
    values = recipe_values | {"steps": 1}
    folder, _ = run(values, "learner.exact=true", "evaluation.every=9")
    ids = [item.id for item in read_ledger(folder).completions()]
    (result,) = replay_completions(folder, [ids[7]])
    assert result.same


@pytest.mark.slow
def test_a_run_that_sampled_ahead_is_replayed(recipe_values, monkeypatch):
    def build(settings, policy, stop_ids, *_, **__):
        return CopyEngine(policy, stop_ids, nothing)

    monkeypatch.setattr(rlvr.rl.run, "build_engine", build)
    values = recipe_values | {"steps": 3}
    values["rollout"] |= {"max_staleness": 1, "engine": {"name": "vllm"}}
    folder, _ = run(values, "evaluation.every=9", "checkpoint.every=1", "checkpoint.keep=1")
    found = replay_completions(folder, [i.id for i in read_ledger(folder).completions()][::20])
    assert {result.version for result in found} == {0, 1}
    assert all(result.same for result in found)


def test_the_command_says_what_came_of_it(finished):
    last = chosen(finished)[-1]
    done = call("replay", finished, "--completion", last)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{last} (weights of version 2): the same ids and log-probabilities\n"


def test_the_command_refuses_in_a_line(finished, tmp_path):
    assert "no completion '1/1'" in refused("replay", finished, "--completion", "1/1")
    assert "is not a folder" in refused("replay", tmp_path / "typo", "--completion", "1/0/0")
    (tmp_path / "named").symlink_to(finished)
    assert "it contains the runs named" in refused("replay", tmp_path, "--completion", "1/0/0")
    inside = finished / "checkpoints" / "step_000003"
    assert f"is part of the run '{finished}'" in refused("replay", inside, "--completion", "1/0/0")
    assert "--completion" in refused("replay", finished)


def test_a_replay_that_is_stopped_is_not_to_be_resumed(finished, monkeypatch):
    def stopped(*_):
        raise Stopped(15)

    monkeypatch.setattr(replay, "replay_completions", stopped)
    done = call("replay", finished, "--completion", "1/0/0")
    assert (done.returncode, done.stderr) == (143, "rlvr: stopped\n")
