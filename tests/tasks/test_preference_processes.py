"""Preferences in several processes: the run of one, up to the order of sums."""

from pathlib import Path

import pytest

from rlvr.runs.log import read_metrics
from tests.rl.test_processes import furthest, run, start
from tests.rl.test_train import weights
from tests.tasks.test_preference import run as run_alone

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(900)]

CASES = {
    "a reference, the whole step at once, the prompt": {
        "losses": [{"name": "aot"}, {"name": "orpo", "nll_over": "prompt_and_completion"}],
    },
    "a live reference, weights and LD": {
        "losses": [{"name": "sigmoid"}],
        "reference": {"mode": "live"},
        "weighting": True,
        "ld_alpha": 0.5,
    },
    "KTO's baseline, adapters": {"losses": [{"name": "kto"}]},
}


@pytest.fixture(params=CASES)
def values(request, preference_values, tmp_path):
    """A rate at which rounding flips nothing, and a last micro-batch that one rank lacks."""
    own = {**preference_values, **CASES[request.param], "steps": 3}
    own["learner"] = {"lr": 1e-4, "tokens_per_micro_batch": 60}
    own["data"] = {**own["data"], "per_step": 7}
    if request.param.startswith("KTO"):
        source = {"name": "file", "path": str(tmp_path / "labelled.jsonl")}
        own["data"] = {**own["data"], "source": source}
        own["evaluation"] = {**own["evaluation"], "pairs": {}}
        own["model"] = {**own["model"], "lora": {"rank": 2}}
    return own


@pytest.mark.parametrize("config", ["multi_cpu", "zero2"])
def test_two_processes_do_the_run_of_one(config, values, tmp_path):
    alone, theirs = run_alone({**values, "output": str(tmp_path / "alone")})
    folder, output = run(config, values, tmp_path)
    assert furthest(weights(folder), weights(alone)) < 1e-5
    ours = read_metrics(folder / "metrics.jsonl")
    assert [set(row) for row in ours] == [set(row) for row in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        for name in (n for n in mine if n.startswith(("preference/", "eval/"))):
            if name == "preference/reward_accuracy" and abs(its["preference/margin"]) < 1e-6:
                continue  # of a policy that is the reference still: the sign of rounding
            assert mine[name] == pytest.approx(its[name], abs=1e-4), name
    assert output.count("step 2/3") == 1, "one process speaks"


def test_zero_3_trains_and_resumes_and_says_what_it_cannot_evaluate(preference_values, tmp_path):
    values = {**preference_values, "steps": 2}
    process = start("zero3", values, tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "leave the sets out and evaluate the model afterwards by rlvr eval" in output
    assert not Path(values["output"]).exists()
    values["evaluation"] = {**values["evaluation"], "sets": {}}
    values["learner"] = {"lr": 1e-4}
    alone, _ = run_alone({**values, "steps": 3, "output": str(tmp_path / "alone")})
    run("zero3", values, tmp_path)
    folder, _ = run("zero3", {**values, "steps": 3}, tmp_path, "--resume")
    assert furthest(weights(folder), weights(alone)) < 1e-5
