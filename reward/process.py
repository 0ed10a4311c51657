"""The parent's side of one worker process: start, exchange with a deadline, kill."""

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from reward.messages import receive_message, send_message
from reward.verdict import GradingPolicy

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[1])
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from importlib import import_module; "
    "import_module(sys.argv.pop(1)).main()"
)


class WorkerUnavailable(RuntimeError, OSError):
    """No worker can be started; the message says why.

    An `OSError`, because the cause is the machine and not an answer.
    """


class WorkerExpired(Exception):
    """The worker gave no reply before the deadline."""


class WorkerDied(Exception):
    """The worker ended without a reply."""


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker; ``alarm`` is in whole seconds."""

    grader: str
    policy: GradingPolicy
    alarm: int
    memory_gib: float


class WorkerProcess:
    """One started interpreter with its own socket.

    It belongs to one thread; only `signal_kill` may be called from others.

    Args:
        settings: sent to it first.
        module: its ``main`` is what the interpreter runs.
        called: what it is called in messages.

    Raises:
        WorkerUnavailable: the system starts no process.
    """

    def __init__(
        self,
        settings: WorkerSettings | dict[str, Any],
        module: str = "reward.worker",
        called: str = "verifier worker",
    ) -> None:
        self.module, self.called = module, called
        try:
            self._start()
        except OSError as error:
            raise WorkerUnavailable(f"{called}: cannot be started ({error})") from error
        given = settings if isinstance(settings, dict) else asdict(settings)
        with contextlib.suppress(OSError):  # wait_ready reports a worker that died immediately
            send_message(self._connection, given)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            log = _log_file()
            undo.callback(log.close)
            # -P: the current folder must not shadow a module. A separate process group: Ctrl-C at
            # the terminal must reach only the parent.
            arguments = [sys.executable, "-P", "-c", _BOOTSTRAP, _PACKAGE_ROOT, self.module]
            self._process = subprocess.Popen(
                [*arguments, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
            undo.pop_all()
        self._connection, self._log, self.pid = ours, log, self._process.pid

    def wait_ready(self, timeout: float) -> None:
        """Wait until the worker has imported everything.

        Raises:
            WorkerUnavailable: it does not start; the message includes the end of its output.
        """
        self._connection.settimeout(timeout)
        try:
            receive_message(self._connection)
        except (EOFError, OSError, ValueError) as error:
            how = f"not ready within {timeout} s"
            if not isinstance(error, TimeoutError):
                self._wait_for_end()  # its output is written after its socket closes
                how = f"ended before it was ready ({self._ending})"
            self._log.seek(0)
            written = self._log.read()[-2000:].decode(errors="replace").strip()
            self.kill()
            raise WorkerUnavailable(f"{self.called}: {how}; it wrote: {written!r}") from error

    def alive(self) -> bool:
        """Tell whether the process runs and its socket is open."""
        if self._process.poll() is not None:
            return False
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return not poll.poll(0)

    def exchange(self, message: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        """Send one request and wait at most ``timeout`` seconds for its reply, or for ever.

        Raises:
            WorkerExpired: no reply in time; the worker must be killed.
            WorkerDied: the process ended; the message says how.
        """
        began = time.monotonic()
        self._connection.settimeout(timeout)
        try:
            send_message(self._connection, message)
            if timeout is not None:
                self._connection.settimeout(max(0.01, began + timeout - time.monotonic()))
            return receive_message(self._connection)
        except TimeoutError as error:
            raise WorkerExpired from error
        except (EOFError, OSError, ValueError) as error:
            self._wait_for_end()
            raise WorkerDied(
                f"worker process ended while {self._doing} ({self._ending})"
            ) from error

    @property
    def _doing(self) -> str:
        return "grading" if self.module == "reward.worker" else "it ran"

    @property
    def _ending(self) -> str:
        code = self._process.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def _wait_for_end(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)

    def signal_kill(self) -> None:
        """Kill the process immediately, from any thread; its own thread then sees it end."""
        self._process.kill()

    def kill(self) -> None:
        """Kill the process immediately, reap it and close its socket; it may be called twice."""
        self._process.kill()
        self._process.wait(timeout=10)
        self._connection.close()
        self._log.close()

    def abandon(self) -> None:
        """Release a worker that belongs to the process from which this one was forked."""
        self._process.returncode = 0  # not our child, so never wait for it
        self._connection.close()
        self._log.close()


def _log_file() -> BinaryIO:
    """A file without a name for what a worker writes; in memory where the system can, so that it
    does not depend on a temporary folder."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("verifier-worker"), "w+b")
    return tempfile.TemporaryFile()
