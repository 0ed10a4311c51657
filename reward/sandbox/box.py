"""The host's side of a sandbox: start it, run programs in it, end it."""

import json
import math
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from types import TracebackType
from typing import IO, Any

from reward.messages import receive_message, send_message
from reward.sandbox.layout import (
    INSIDE,
    PACKAGE,
    bubblewrap,
    environment,
    folders,
    interpreter,
)
from reward.sandbox.layout import packages as installed_packages
from reward.sandbox.limits import Limits, Outcome, Way
from reward.sandbox.zygote import ZYGOTE, Zygote

LARGEST_REPLY = 16 * 2**20
"""Bytes of a message from a sandbox; what a program returns is no longer."""
_START_SECONDS = 20.0
_GRACE_SECONDS = 2.0


class SandboxError(RuntimeError):
    """The sandbox itself does not start or does not answer, for no fault that is known to be the
    program's."""


class Box:
    """One sandbox, for one response: the programs that run in it share nothing with any other.

    Args:
        way: how it is made (`reward.sandbox.ways.way_of`).
        limits: of each program.
        packages: whether this environment's installed packages can be imported.
        zygote: what forks it, where it is made by namespaces; None is this process's.

    Raises:
        SandboxError: it does not start.
    """

    def __init__(
        self, way: Way, limits: Limits, packages: bool = False, zygote: Zygote | None = None
    ) -> None:
        self.limits = limits
        self._zygote = zygote or ZYGOTE
        self._undo = ExitStack()
        try:
            self._start(way, packages)
        except BaseException:
            self._undo.close()
            raise

    def _start(self, way: Way, packages: bool) -> None:
        self._control, control = socket.socketpair()
        self.calls, calls = socket.socketpair()
        for one in (self._control, self.calls):
            self._undo.callback(one.close)
        log = self._undo.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        with control, calls:
            if way == "namespaces":
                self._fork((control, calls), packages)
            else:
                self._launch(way, (control, calls), packages, log)
        try:
            ready = receive_message(self._control, deadline=time.monotonic() + _START_SECONDS)
        except (EOFError, OSError, ValueError) as error:
            time.sleep(0.1)  # what it has to say may be written after its sockets close
            log.seek(0)
            said = log.read()[-500:].decode(errors="replace").strip()
            raise SandboxError(f"it does not start ({said or type(error).__name__})") from error
        if "failed" in ready:
            raise SandboxError(str(ready["failed"]))

    def _fork(self, sockets: Sequence[socket.socket], packages: bool) -> None:
        """Have the sandbox forked by a process that is there for it."""
        descriptors = [one.fileno() for one in sockets]
        arguments = self._arguments("namespaces", packages)
        try:
            self._undo.callback(self._zygote.start(descriptors, arguments).end)
        except OSError as error:
            raise SandboxError(f"it does not start ({error})") from error

    def _launch(
        self, way: Way, sockets: Sequence[socket.socket], packages: bool, log: IO[bytes]
    ) -> None:
        """Start an interpreter for the sandbox."""
        descriptors = [one.fileno() for one in sockets]
        boxed, root, work = [], str(PACKAGE), None
        if way == "bubblewrap":
            boxed, root = bubblewrap(packages, self.limits.files_mib), INSIDE
        else:
            work = self._undo.enter_context(tempfile.TemporaryDirectory())
        command = [*boxed, *interpreter("inside"), root, *map(str, descriptors)]
        process = subprocess.Popen(
            [*command, *self._arguments(way, packages)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
            cwd=work,
            process_group=0,
        )
        self._undo.callback(_end, process)

    def _arguments(self, way: Way, packages: bool) -> list[str]:
        given = {
            "folders": folders(packages) if way == "namespaces" else [],
            "work_mib": self.limits.files_mib,
            "packages": installed_packages() if packages else [],
        }
        return [way, json.dumps(given)]

    def run(self, source: str, stdin: str) -> Outcome:
        """Run a program and wait for its end.

        Args:
            source: its text.
            stdin: what it reads.

        Raises:
            SandboxError: the sandbox gave no answer.
        """
        self.begin("program", source=source, stdin=stdin)
        return self.outcome()

    def begin(self, role: str, seconds: float | None = None, **given: Any) -> None:  # noqa: ANN401
        """Start a program in a role of `reward.sandbox.child`.

        Args:
            role: what it is there for.
            seconds: how long it may take in all; None is the limits'.
            given: what the role needs.
        """
        limits = self.limits if seconds is None else replace(self.limits, seconds=seconds)
        self._ends = time.monotonic() + limits.seconds + _GRACE_SECONDS
        try:
            self._control.settimeout(limits.seconds + _GRACE_SECONDS)
            send_message(self._control, {"role": role, "limits": asdict(limits), **given})
        except OSError as error:
            raise SandboxError(f"it takes no program ({error})") from error

    def outcome(self, within: float = math.inf) -> Outcome:
        """How the program that was started ended.

        Args:
            within: seconds to wait at most, besides the limit of the program.

        Raises:
            SandboxError: the sandbox gave no answer.
        """
        deadline = min(self._ends, time.monotonic() + within)
        largest = 16 * 1024 * self.limits.output_kib
        try:
            said = receive_message(self._control, largest, deadline)
            return Outcome(**said)
        except (EOFError, OSError, ValueError, TypeError, RecursionError) as error:
            raise SandboxError(f"it does not answer ({type(error).__name__})") from error

    def exchange(self, message: dict[str, Any], deadline: float) -> Any:  # noqa: ANN401
        """Send a message over the socket for calls, and receive one.

        Raises:
            TimeoutError: the time (`time.monotonic`) has passed.
            ConnectionError: the program has ended, or sent what is no message.
        """
        try:
            self.calls.settimeout(max(0.001, deadline - time.monotonic()))
            send_message(self.calls, message)
            return self.receive(deadline)
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionError(str(error)) from error

    def receive(self, deadline: float) -> Any:  # noqa: ANN401
        """The next message over the socket for calls.

        Raises:
            TimeoutError: the time (`time.monotonic`) has passed.
            ConnectionError: the program has ended, or sent what is no message.
        """
        try:
            return receive_message(self.calls, LARGEST_REPLY, deadline)
        except TimeoutError:
            raise
        except (EOFError, OSError, ValueError, RecursionError) as error:
            raise ConnectionError(str(error)) from error

    def close(self) -> None:
        """End everything in it."""
        self._undo.close()

    def __enter__(self) -> "Box":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what holds the sandbox, by which the kernel kills all in it, and reap it."""
    with suppress(ProcessLookupError):
        process.kill()
    process.wait(timeout=10)
