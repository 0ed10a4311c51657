"""Hold one role on one node: ``python -m launch.node [--stopped FOLDER] -- COMMAND...``

Between the scheduler and the role's command, because launchers stand in the way of both things that
a job needs:

- A notice to stop (SIGUSR1) has to reach the learner's processes, once, and nobody else: torch's
  launcher starts them in sessions of their own and would die of the signal. So it is passed on to
  those processes below that *handle* it, also to those that begin to only later; all others ignore
  it from their start on. A role that ended upon a notice has done what it was told: the exit code
  is 0, and a file in the ``--stopped`` folder says so.
- Nothing may outlive the role. Processes whose parent died are adopted here, and what is left is
  killed when the command ends, when this process is told to end (SIGTERM, SIGINT, SIGHUP; SIGUSR2
  for all processes of a step, which the others ignore), or, with ``--with-parent``, when its own
  parent disappears.

The exit code is the command's otherwise, 128 + the signal's number where one ended it.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

GRACE_S = 20.0
"""From being told to end until everything is killed: less than SLURM's own KillWait of 30 s."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
_WATCHED = (signal.SIGUSR1, signal.SIGCHLD, *_ENDING)
_LEFTOVERS_S = 3.0


class Role:
    """A command with everything below it.

    Args:
        command: What to run; standard streams are this process's.
        stopped: Folder that is told when the command ended upon a notice.
        grace_s: Seconds for an orderly end.
    """

    def __init__(
        self, command: Sequence[str], stopped: Path | None = None, grace_s: float = GRACE_S
    ) -> None:
        self.command, self.stopped, self.grace_s = command, stopped, grace_s
        self._deaf = signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        self._noticed = False
        self._told: set[int] = set()
        self._deadline: float | None = None

    def run(self) -> int:
        """Run it to its end; the exit code."""
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        try:
            child = subprocess.Popen(self.command, preexec_fn=_fresh_signals)
        except OSError as error:
            _say(f"cannot start {self.command[0]!r}: {error.strerror}")
            return 127
        try:
            while child.poll() is None:
                self._look(signal.sigtimedwait(_WATCHED, 0.5), child)
        finally:
            end_all(_LEFTOVERS_S)
        return self._code(child.returncode)

    def _look(self, seen: signal.struct_siginfo | None, child: subprocess.Popen[bytes]) -> None:
        number = seen.si_signo if seen else None
        if number == signal.SIGUSR1 and not self._deaf:
            self._noticed = True
        elif number in _ENDING and self._deadline is None:
            self._deadline = time.monotonic() + self.grace_s
            child.send_signal(signal.SIGTERM)
        if self._noticed:
            self._pass_on()
        if self._deadline is not None and time.monotonic() > self._deadline:
            end_all(0.0)

    def _pass_on(self) -> None:
        for process in psutil.Process().children(recursive=True):
            if process.pid not in self._told and handles_notice(process.pid):
                self._told.add(process.pid)
                os.kill(process.pid, signal.SIGUSR1)

    def _code(self, code: int) -> int:
        if self._noticed and code != 0:
            if self.stopped is not None:
                self.stopped.mkdir(parents=True, exist_ok=True)
                (self.stopped / node_name()).write_text(f"{code}\n")
            return 0
        return 128 - code if code < 0 else code


def handles_notice(pid: int) -> bool:
    """Whether a process has a handler for SIGUSR1, as the kernel has it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def end_all(patience_s: float) -> None:
    """End everything below this process: asked first, where there is patience, then killed."""
    found = psutil.Process().children(recursive=True)
    if patience_s > 0:
        for process in found:
            _send(process, signal.SIGTERM)
        psutil.wait_procs(found, timeout=patience_s)
    # Until nothing is left: some may have been started meanwhile.
    while found := [p for p in psutil.Process().children(recursive=True) if _lives(p)]:
        for process in found:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(found, timeout=1.0)


def node_name() -> str:
    """Of this node, as SLURM calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _fresh_signals() -> None:
    """In the child: nothing blocked, and deaf to notices, which the learner changes for itself."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _say(text: str) -> None:
    print(f"rlvr launch: node {node_name()}: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m launch.node")
    parser.add_argument("--stopped", type=Path)
    parser.add_argument("--grace", type=float, default=GRACE_S)
    parser.add_argument("--with-parent", action="store_true")
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args(arguments)
    if chosen.with_parent:
        parent = os.getppid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before that
            return 128 + signal.SIGTERM
    return Role(chosen.command, chosen.stopped, chosen.grace).run()


if __name__ == "__main__":
    sys.exit(main())
