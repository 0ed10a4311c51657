"""Start a job of several processes as a user would, through ``accelerate launch``."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def command(config, *arguments, processes=2):
    """``accelerate launch`` with a file of launch/accelerate."""
    path = ROOT / "launch" / "accelerate" / f"{config}.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    launcher += ["--num_processes", str(processes)]
    return [*launcher, "--main_process_port", str(free_port()), *map(str, arguments)]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def launch(config, *arguments, processes=2, timeout=240):
    """Run to the end; its output, or a failure that shows it."""
    done = subprocess.run(
        command(config, *arguments, processes=processes),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def run_job(config, case, model, out, *arguments, processes=2, jobs="jobs.py", timeout=240):
    """Run a case of jobs.py, or of another file beside it; the path it wrote."""
    file = ROOT / "tests" / "learner" / jobs
    whole = (config, file, case, model, out, *arguments)
    launch(*whole, processes=processes, timeout=timeout)
    return out
