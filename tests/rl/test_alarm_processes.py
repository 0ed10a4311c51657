"""Alarms in several processes: one of them speaks, and all end, save and go on together."""

import json
from pathlib import Path

import pytest

from rlvr.learner.checkpoint import KEPT
from rlvr.runs.ledger import read_ledger
from rlvr.runs.log import read_metrics
from tests.rl.test_processes import run
from tests.rl.test_train import run_in_process
from tests.training import small_recipe

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(1500)]


@pytest.fixture(params=["multi_cpu", "zero2"])
def config(request):
    return request.param


@pytest.fixture
def values(guessing_folder, tmp_path):
    """Every completion is cut; no updates to speak of, so one process has the same figures."""
    values = small_recipe(guessing_folder, tmp_path / "run")
    values["rollout"] |= {"prompts_per_step": 4, "samples_per_prompt": 4}
    values["rollout"]["sampling"] = {"max_tokens": 2}
    values |= {"learner": {"lr": 1e-9}, "regularisers": [], "evaluation": {}, "steps": 5}
    return {**values, "checkpoint": {"every": 100, "keep": 1}}


def told(folder):
    rows = map(json.loads, (folder / "alarms.jsonl").read_text().splitlines())
    return sorted((row["alarm"], row["event"], row["step"]) for row in rows)


def last_step(folder):
    return max(row["step"] for row in read_metrics(folder / "metrics.jsonl"))


def lines(output):
    return [line for line in output.splitlines() if "alarm " in line and " begins " in line]


def test_a_warning_is_said_once(config, values, tmp_path):
    """No alarm can end the run, so rank 0 reads them and the others do not wait for it."""
    folder, output = run(config, values, tmp_path)
    assert last_step(folder) == 5
    alone = run_in_process({**values, "output": str(tmp_path / "alone")})
    assert (
        told(folder)
        == told(alone)
        == sorted((name, "begins", 3) for name in ("truncation", "zero_variance"))
    )
    assert len(lines(output)) == 2, output[-3000:]


def test_all_processes_end_at_an_alarm_and_branch_from_what_it_saved(config, values, tmp_path):
    values["alarms"] = {
        "truncation": {"action": "save", "steps": 2},
        "zero_variance": {"action": "stop", "steps": 4},
    }
    values["steps"] = 6
    folder, output = run(config, values, tmp_path)
    assert last_step(folder) == 4
    assert told(folder) == [("truncation", "begins", 2), ("zero_variance", "begins", 4)]
    assert len(lines(output)) == 2, output[-3000:]
    assert (folder / "model" / "model.safetensors").is_file()
    kept = {path.name: (path / KEPT).is_file() for path in (folder / "checkpoints").iterdir()}
    assert kept == {"step_000002": True, "step_000004": False}

    _, output = run(config, values, tmp_path, "--resume")
    assert last_step(folder) == 6, "an alarm that still holds does not stop it again"
    assert lines(output) == []

    branch = {**values, "output": str(tmp_path / "branch"), "steps": 3}
    other, output = run(config, branch, tmp_path, "--from", f"{folder}@2")
    assert "branching after step 2" in output
    (ours,) = (row for row in read_ledger(other).of("weights") if row["version"] == 3)
    assert ours["fingerprint"] == read_ledger(Path(folder)).weights[3]["fingerprint"]
