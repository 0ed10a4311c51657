"""The parent's end of one worker process: start, exchange with a deadline, kill."""

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
from typing import Any

from reward.verdict import Policy
from reward.worker import receive_message, send_message

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[1])
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from reward.worker import main; main()"
)


class WorkerExpired(Exception):
    """The worker gave no reply before the deadline."""


class WorkerDied(Exception):
    """The worker ended without a reply."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is told at its start; ``alarm`` in whole seconds."""

    grader: str
    policy: Policy
    alarm: int
    memory_gib: float


class WorkerProcess:
    """One started interpreter with its own socket.

    It belongs to one thread; only `signal_kill` may be called from another.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        ours, theirs = socket.socketpair()
        self._connection = ours
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        with theirs:
            # -P: the current folder must not shadow a module. Its own process group: Ctrl-C at
            # the terminal goes to the parent only.
            arguments = [sys.executable, "-P", "-c", _BOOTSTRAP, _PACKAGE_ROOT]
            self._process = subprocess.Popen(
                [*arguments, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                process_group=0,
            )
        self.pid = self._process.pid
        message = {**asdict(settings)}
        with contextlib.suppress(OSError):  # wait_ready reports a worker that died at once
            send_message(ours, message)

    def wait_ready(self, timeout: float) -> None:
        """Wait until the worker has imported everything.

        Raises:
            RuntimeError: with the end of what the worker wrote, when it does not come up.
        """
        self._connection.settimeout(timeout)
        try:
            receive_message(self._connection)
        except (TimeoutError, EOFError, OSError) as error:
            if not isinstance(error, TimeoutError):
                self._wait_for_end()  # what it has to say is written after its socket closes
            self._log.seek(0)
            written = self._log.read()[-2000:].decode(errors="replace").strip()
            self.kill()
            raise RuntimeError(
                f"verifier worker: not ready within {timeout} s ({error}); it wrote: {written!r}"
            ) from error

    def alive(self) -> bool:
        """Tell whether the process runs and its socket is open."""
        if self._process.poll() is not None:
            return False
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return not poll.poll(0)

    def exchange(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send one request and wait at most ``timeout`` seconds for its reply.

        Raises:
            WorkerExpired: no reply in time; the worker must be killed.
            WorkerDied: the process ended; the message says how.
        """
        end = time.monotonic() + timeout
        self._connection.settimeout(timeout)
        try:
            send_message(self._connection, message)
            self._connection.settimeout(max(0.01, end - time.monotonic()))
            return receive_message(self._connection)
        except TimeoutError as error:
            raise WorkerExpired from error
        except (EOFError, OSError) as error:
            self._wait_for_end()
            code = self._process.returncode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            raise WorkerDied(f"worker process ended while grading ({how})") from error

    def _wait_for_end(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)

    def signal_kill(self) -> None:
        """Kill the process at once, from any thread; its own thread then sees it end."""
        self._process.kill()

    def kill(self) -> None:
        """Kill the process at once, reap it and release its socket. May be called twice."""
        self._process.kill()
        self._process.wait(timeout=10)
        self._connection.close()
        self._log.close()

    def abandon(self) -> None:
        """Let go of a worker that belongs to the process this one was forked from."""
        self._process.returncode = 0  # not our child: never wait for it
        self._connection.close()
        self._log.close()
