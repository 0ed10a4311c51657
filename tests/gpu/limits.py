"""A command with a time limit, ended together with everything that it started."""

import contextlib
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.gpu.kit import ROOT

_MARK = "RLVR_STARTED_BY"


class Ended(NamedTuple):
    """How a command ended; ``code`` is None where the limit ended it."""

    code: int | None
    seconds: float


def run_limited(
    command: Sequence[str], limit: float, log: Path, environment: Mapping[str, str]
) -> Ended:
    """Run a command in the repository's root; what is left of it at its end is killed.

    Its environment carries a mark of its own, by which processes are found that have left its
    process tree.

    Args:
        command: Program and arguments.
        limit: Seconds.
        log: File that its output is added to.
        environment: Its environment.
    """
    mark = uuid.uuid4().hex
    began = time.monotonic()
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = child.wait(timeout=max(limit, 0.0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            kill_marked(child, mark)
    return Ended(code, time.monotonic() - began)


def kill_marked(child: "subprocess.Popen[bytes]", mark: str) -> None:
    """Kill a child, its descendants and all that carry its mark, until there are none."""
    while found := {*_descendants(child.pid), *_marked(mark)}:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        child.poll()
        psutil.wait_procs(list(found), timeout=5)
    child.wait()


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [p for p in (process, *process.children(recursive=True)) if _runs(p)]
    except psutil.NoSuchProcess:
        return []


def _marked(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _runs(process) and _has(process, mark)]


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark
    except psutil.Error:  # another user's, or gone
        return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
