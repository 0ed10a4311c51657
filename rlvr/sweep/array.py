"""A sweep as a SLURM array: every task of it is the job of one run (``launch/``)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.job import Job, build_job
from launch.script import directives
from launch.settings import LaunchSettings
from launch.submit import find_sbatch, hand_over, write_script
from rlvr.files import write_atomically
from rlvr.sweep.grid import Sweep, SweepRun

_PORTS = 1000


def build_jobs(sweep: Sweep, runs: Sequence[SweepRun], settings: LaunchSettings) -> list[Job]:
    """The job of each run; two that share a node have different ports.

    Raises:
        ValueError: A run cannot be launched so; it is named.
    """
    jobs = []
    for place, run in enumerate(runs):
        apart = place % _PORTS
        own = settings.model_copy(
            update={
                "name": settings.name or sweep.recipe.stem,
                "main_port": _port(settings.main_port + apart),
                "server_port": _port(settings.server_port + apart * settings.servers),
            }
        )
        try:
            jobs.append(build_job(own, sweep.recipe, run.words, resume=True))
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from None
    return jobs


def _port(number: int) -> int:
    return number if number <= 65535 else 20000 + number % 40000


def render_array(jobs: Sequence[Job], folder: Path, at_once: int | None) -> str:
    """The script of the array.

    Args:
        jobs: Of its tasks, at least one; their scripts are beside their runs.
        folder: Absolute, for the array's logs.
        at_once: How many tasks may run at the same time; None is no limit.
    """
    own = [f"--output={folder}/array-%A_%a.log" if line.startswith("--output=") else line
           for line in directives(jobs[0])]  # fmt: skip
    limit = "" if at_once is None else f"%{at_once}"
    lines = ["#!/bin/bash", *(f"#SBATCH {line}" for line in own)]
    lines += [f"#SBATCH --array=0-{len(jobs) - 1}{limit}", "#"]
    lines += ["# Rendered by rlvr sweep: each task is the job of one run.", "scripts=("]
    lines += [f"    {shlex.quote(f'{job.folder}/job.sh')}" for job in jobs]
    lines += [")", 'exec bash "${scripts[SLURM_ARRAY_TASK_ID]}"', ""]
    return "\n".join(lines)


def submit_array(sweep: Sweep, jobs: Sequence[Job], at_once: int | None) -> tuple[str, Path]:
    """Queue the array; its number and script.

    Raises:
        ValueError: There is no SLURM here, or it refuses the job.
    """
    sbatch = find_sbatch()
    folder = sweep.out.absolute() / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        write_script(job)
    script = folder / "array.sh"
    write_atomically(script, render_array(jobs, folder, at_once))
    return hand_over(sbatch, script, jobs[0].workdir), script
