"""Fine-tuning in several processes: the run of one, up to the order of sums."""

from pathlib import Path

import pytest

from rlvr.train.log import read_metrics
from tests.train.test_processes import furthest, run, start
from tests.train.test_rl import weights
from tests.train.test_sft import model_folder, traces, values  # noqa: F401  (fixtures)
from tests.train.test_sft import run as run_alone

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(900)]


@pytest.mark.parametrize("case", ["weights", "adapters, resumed"])
def test_two_processes_do_the_run_of_one(case, values, tmp_path):  # noqa: F811
    values["learner"] = {"lr": 1e-4, "rows_per_micro_batch": 2}
    values["steps"] = 4
    if case != "weights":
        values["model"]["lora"] = {"rank": 2}
    alone, theirs = run_alone({**values, "output": str(tmp_path / "alone")})
    if case != "weights":
        run("multi_cpu", {**values, "steps": 4}, tmp_path)
        checkpoint = Path(values["output"]) / "checkpoints" / "step_000004"
        (checkpoint / "optimizer.pt").write_bytes(b"cut")
        folder, output = run("multi_cpu", values, tmp_path, "--resume")
        assert "resuming after step 2" in output
    else:
        folder, output = run("multi_cpu", values, tmp_path)
    assert furthest(weights(folder), weights(alone)) < 1e-5
    ours = read_metrics(folder / "metrics.jsonl")
    assert [set(row) for row in ours] == [set(row) for row in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        for name in (n for n in mine if n.startswith(("sft/loss", "sft/target", "eval/"))):
            assert mine[name] == pytest.approx(its[name], abs=1e-4), name
    assert output.count("step 4/4") >= 1
    assert output.count("data parallel x 2") == 1, "one process speaks"


def test_deepspeed_is_refused(values, tmp_path):  # noqa: F811
    process = start("zero2", values, tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "task sft runs data parallel alone" in output
    assert not Path(values["output"]).exists()


def test_a_step_that_cannot_be_dealt_is_refused(values, tmp_path):  # noqa: F811
    values["learner"] = {"rows_per_micro_batch": 8}
    process = start("multi_cpu", values, tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "make it a multiple of 16" in output
