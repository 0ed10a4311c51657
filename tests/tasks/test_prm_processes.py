"""Labels of steps in several processes: the run of one, up to the order of sums."""

import pytest

from rlvr.runs.log import read_metrics
from tests.rl.test_processes import furthest, run
from tests.rl.test_train import weights
from tests.tasks.test_prm import in_steps, rows_of, write
from tests.training import run as run_alone

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(900)]


@pytest.mark.parametrize("config", ["multi_cpu", "zero2"])
def test_two_processes_do_the_run_of_one(config, tiny_folder, tmp_path):
    """Micro-batches of which one rank lacks the last; steps and labels of different numbers."""
    rows = in_steps(rows_of(2))
    rows[0] = {"prompt": "<bos>1+1=", "steps": ["so", "a", "b", "c"], "label": 2}
    held_out = write(tmp_path / "held_out.jsonl", rows_of(1, problems=3))
    values = {
        "task": "prm",
        "output": str(tmp_path / "prm"),
        "steps": 3,
        "model": {"path": str(tiny_folder)},
        "objective": {"name": "steps"},
        "data": {"sources": [str(write(tmp_path / "steps.jsonl", rows))], "per_step": 7},
        "learner": {"lr": 1e-4, "tokens_per_micro_batch": 60},
        "evaluation": {"every": 3, "responses": {"held_out": [str(held_out)]}},
    }
    alone, theirs = run_alone({**values, "output": str(tmp_path / "alone")})
    folder, _ = run(config, values, tmp_path)
    assert furthest(weights(folder), weights(alone)) < 1e-5
    ours = read_metrics(folder / "metrics.jsonl")
    for mine, its in zip(ours, theirs, strict=True):
        assert set(mine) == set(its)
        for name in (n for n in mine if n.startswith(("preference/", "eval/"))):
            if mine["step"] < 2 and name.endswith("_accuracy"):
                continue  # where both models agree, the sign of a log-ratio is that of rounding
            assert mine[name] == pytest.approx(its[name], abs=1e-4), name
    assert len(read_metrics(folder / "calibration.jsonl")) == 2
