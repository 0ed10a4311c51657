"""Fine-tuning in several processes: the run of one, up to the order of sums."""

from pathlib import Path

import pytest

from rlvr.runs.log import read_metrics
from tests.rl.test_processes import furthest, run
from tests.rl.test_train import weights
from tests.tasks.test_sft import model_folder, traces, values  # noqa: F401  (fixtures)
from tests.tasks.test_sft import run as run_alone

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(900)]


def same_run(values, folder, alone, theirs):  # noqa: F811
    """Whether two processes logged and learned what one did; rows and ranks divide unevenly."""
    assert furthest(weights(folder), weights(alone)) < 1e-5
    ours = read_metrics(folder / "metrics.jsonl")
    assert [set(row) for row in ours] == [set(row) for row in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        for name in (n for n in mine if n.startswith(("sft/", "eval/", "policy/"))):
            assert mine[name] == pytest.approx(its[name], abs=1e-4), name


@pytest.mark.parametrize("config", ["multi_cpu", "zero2", "zero3"])
def test_two_processes_do_the_run_of_one(config, values, tmp_path):  # noqa: F811
    values |= {"steps": 4, "learner": {"lr": 1e-4, "tokens_per_micro_batch": 40}}
    values["data"]["per_step"] = 7
    if config == "zero3":  # which has no whole weights to answer problems with
        values["evaluation"] = {**values["evaluation"], "sets": {}}
    alone, theirs = run_alone({**values, "output": str(tmp_path / "alone")})
    folder, output = run(config, values, tmp_path)
    same_run(values, folder, alone, theirs)
    assert output.count("step 4/4") >= 1
    named = {"multi_cpu": "data parallel x 2", "zero2": "ZeRO 2 x 2", "zero3": "ZeRO 3 x 2"}
    assert output.count(named[config]) == 1, "one process speaks"


def test_adapters_in_two_processes_go_on_from_a_checkpoint(values, tmp_path):  # noqa: F811
    values |= {"steps": 4, "learner": {"lr": 1e-4}}
    values["model"]["lora"] = {"rank": 2}
    alone, theirs = run_alone({**values, "output": str(tmp_path / "alone")})
    run("multi_cpu", values, tmp_path)
    checkpoint = Path(values["output"]) / "checkpoints" / "step_000004"
    (checkpoint / "trainer_1.safetensors").write_bytes(b"cut")
    folder, output = run("multi_cpu", values, tmp_path, "--resume")
    assert "resuming after step 2" in output
    same_run(values, folder, alone, theirs)
