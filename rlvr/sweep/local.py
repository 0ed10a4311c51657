"""Run a sweep on this machine, one run after another, each as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rlvr.sweep.grid import Sweep, SweepRun
from rlvr.sweep.state import run_state
from rlvr.sweep.summary import figures_of

_LOG = Path("launch") / "sweep.log"
# From being told to stop until it is killed: it has to finish an update and write a checkpoint.
_GRACE_S = 600
_PAUSE_S = 0.2


class InterruptedSweep(BaseException):
    """The sweep was asked to stop, and has stopped; by this signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def run_sweep(sweep: Sweep, say: Callable[[str], None]) -> list[str]:
    """Run what is not finished; names of the runs that failed.

    A run that fails does not end the others.

    Raises:
        InterruptedSweep: A signal came; the run in progress has saved.
    """
    failed = []
    with _signals() as seen:
        for number, run in enumerate(sweep.runs, 1):
            head, state = f"[{number}/{len(sweep.runs)}] {run.name}", run_state(run)
            if state.finished:
                say(f"{head}: finished before  {figures_of(run)}")
                continue
            say(f"{head}: {state.text}, log {run.folder / _LOG}")
            began = time.monotonic()
            code = _train(sweep, run, seen)
            if seen:
                say(f"{head}: stopped; the same command goes on")
                raise InterruptedSweep(seen[0])
            took = f"{time.monotonic() - began:.0f} s"
            if code:
                failed.append(run.name)
                say(f"{head}: failed after {took} (exit code {code}): {_last_line(run)}")
            else:
                say(f"{head}: done in {took}  {figures_of(run)}")
    return failed


def command_of(sweep: Sweep, run: SweepRun) -> list[str]:
    """What trains one run; it goes on where there is something to go on from."""
    return [sys.executable, "-m", "rlvr", "train", str(sweep.recipe), *run.words, "--resume"]


def _train(sweep: Sweep, run: SweepRun, seen: list[int]) -> int:
    """Train one run in a session of its own, which nothing of it outlives; its exit code."""
    path = run.folder / _LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    held = [sys.executable, "-P", "-m", "launch.node", "--with-parent", "--grace", str(_GRACE_S)]
    with path.open("ab") as log:
        process = subprocess.Popen(
            [*held, "--", *command_of(sweep, run)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        told = 0
        while process.poll() is None:
            if len(seen) > told:
                told = len(seen)
                process.send_signal(signal.SIGTERM)
            time.sleep(_PAUSE_S)
    return process.returncode


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals to stop that came within the block."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(run: SweepRun) -> str:
    lines = (run.folder / _LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
