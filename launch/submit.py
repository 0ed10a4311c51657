"""Write a job's script and hand it to sbatch."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from launch.job import Job
from launch.script import render_script
from rlvr.files import write_atomically

_SUBMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job in SLURM's queue."""

    number: str
    script: Path
    log: Path


def write_script(job: Job) -> Path:
    """The script in the run's folder, whole or not at all."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.sh"
    write_atomically(path, render_script(job))
    return path


def submit(job: Job) -> Submitted:
    """Queue the job.

    Raises:
        ValueError: There is no SLURM here, or it refuses the job.
    """
    sbatch = find_sbatch()
    script = write_script(job)
    number = hand_over(sbatch, script, job.workdir)
    return Submitted(number, script, Path(job.folder) / f"job-{number}.log")


def find_sbatch() -> str:
    """SLURM's command to queue a job.

    Raises:
        ValueError: There is no SLURM here.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise ValueError(
            "sbatch is not on this machine; submit from a login node of the cluster, look at the "
            "script with --dry-run, or run here (rlvr launch --local, rlvr sweep without --slurm)"
        )
    return sbatch


def hand_over(sbatch: str, script: Path, workdir: str) -> str:
    """Queue a script; the number of its job.

    Raises:
        ValueError: SLURM refuses it, or does not answer.
    """
    try:
        done = subprocess.run(
            [sbatch, "--parsable", str(script)],
            cwd=workdir,
            capture_output=True,
            text=True,
            timeout=_SUBMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"sbatch did not answer within {_SUBMIT_S:g} s; see whether the controller runs "
            "(scontrol ping)"
        ) from None
    if done.returncode != 0:
        raise ValueError(f"sbatch refuses {script}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]
