"""A process that forks sandboxes, so that none waits for an interpreter to start.

It is a fresh interpreter that has imported what a sandbox needs and nothing else: it holds no test
and runs no program, and each sandbox starts from a copy of it as it was. One serves a process of
the host, and ends with it.
"""

import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress

from reward.sandbox import system
from reward.sandbox.layout import PACKAGE, environment, interpreter

_MOST = 2**16
_SECONDS = 20.0


class Started:
    """A process that another one started, held by a descriptor that no later process can have."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        poll.poll(10_000)
        os.close(self.descriptor)


class Zygote:
    """The host's side of it; it may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def start(self, descriptors: Sequence[int], arguments: Sequence[str]) -> Started:
        """Fork a sandbox.

        Args:
            descriptors: of the sockets for control and calls; they stay open here.
            arguments: what `reward.sandbox.inside.main` takes after them.

        Raises:
            OSError: it cannot be started, or does not answer.
        """
        with self._lock:
            if not self._alive():
                self._launch()
            try:
                return self._asked(descriptors, arguments)
            except BaseException:  # its answer, if it comes, is nobody's
                self._stop()
                raise

    def stop(self) -> None:
        """End it, and every sandbox that it forked."""
        with self._lock:
            self._stop()

    def _alive(self) -> bool:
        """Whether it runs, and is this process's own and not that of one it was forked from."""
        if self._process is None or self._owner != os.getpid():
            return False
        return self._process.poll() is None

    def _asked(self, descriptors: Sequence[int], arguments: Sequence[str]) -> Started:
        body = json.dumps(list(arguments)).encode()
        socket.send_fds(self._socket, [body], list(descriptors))
        said, received, _, _ = socket.recv_fds(self._socket, 16, 1)
        if not said or not received:
            raise OSError("the process that forks sandboxes has ended")
        return Started(received[0])

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [*interpreter("zygote"), str(PACKAGE), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
                process_group=0,
            )
        self._socket, self._owner = ours, os.getpid()

    def _stop(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait(timeout=10)
            self._socket.close()
        self._process = None


ZYGOTE = Zygote()
"""The one of this process; it is started by the first sandbox."""


def main(arguments: list[str]) -> None:
    """Fork a sandbox for each message until the host closes."""
    from reward.sandbox import calling, checking, inside, supervise  # noqa: F401

    connection = socket.socket(fileno=int(arguments[0]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what it forks
    while True:
        body, descriptors, _, _ = socket.recv_fds(connection, _MOST, 2)
        if not body:
            return
        parent, child = os.getpid(), os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            system.prctl(system.PR_SET_PDEATHSIG, signal.SIGKILL)
            connection.close()
            if os.getppid() == parent:
                inside.main([*map(str, descriptors), *json.loads(body)])
            os._exit(0)
        held = os.pidfd_open(child)
        socket.send_fds(connection, [b"."], [held])
        for descriptor in (held, *descriptors):
            os.close(descriptor)
