"""A sweep as an array of the real scheduler: every task is the job of one run."""

import re
import subprocess
import sys
import time

import pytest
import yaml

from rlvr.sweep.grid import plan_sweep
from rlvr.sweep.state import run_state
from tests.launch.test_slurm import ROOT, cluster  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_an_array_trains_every_run(cluster, recipe_values, tmp_path):  # noqa: F811
    values = {**recipe_values, "steps": 1, "output": "unused", "evaluation": {"sets": {}}}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(values))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"environment": environment, "python": sys.executable}))
    line = [sys.executable, "-m", "rlvr", "sweep", recipe, "seed=0,1", "--out", out, "--slurm"]
    line += ["--gpus-per-node", "0", "--accelerate", "cpu", "--site", site]

    def run():
        done = subprocess.run(
            list(map(str, line)),
            cwd=ROOT,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    number = re.match(r"array (\d+) of 2 jobs is queued", run())[1]
    sweep = plan_sweep(recipe, ["seed=0,1"], out)
    deadline = time.monotonic() + 500
    while not all(run_state(one).finished for one in sweep.runs):
        logs = "\n".join(path.read_text()[-2000:] for path in out.rglob("*.log"))
        assert time.monotonic() < deadline, logs
        time.sleep(1)
    while (
        number
        in subprocess.run(
            ["squeue", "--noheader", "--format=%A"],
            env=cluster.environment,
            capture_output=True,
            text=True,
        ).stdout
    ):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert "all runs are finished" in run()
