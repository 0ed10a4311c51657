"""What stays in a sandbox: it runs one program after the other and says how each ended.

It is process 1 of the namespace, holds no reference, and runs no program itself: each runs in a
fork of it, which has no descriptor but its three streams and, for calls, a socket. Process 1 takes
no signal from within its namespace, and cannot be traced. After a program, all that it started is
killed. Whatever reaches this process by way of a program is a claim, compared elsewhere.
"""

import os
import select
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from reward.messages import receive_message, send_message
from reward.sandbox import system
from reward.sandbox.child import run_child
from reward.sandbox.limits import Finish, Limits

_PAGE = os.sysconf("SC_PAGE_SIZE")
_WATCH_SECONDS = 0.02


def serve(control: socket.socket, calls: socket.socket, alone: bool) -> None:
    """Answer requests until the other side closes.

    Args:
        control: requests of the host: what to run, and its limits; the answer is the outcome.
        calls: the socket that a program gets which serves calls.
        alone: whether this is process 1 of a namespace, in which everything else may be killed.
    """
    if alone and os.getpid() != 1:
        raise RuntimeError("the sandbox has no process namespace of its own")
    system.prctl(system.PR_SET_DUMPABLE, 0)
    # Process 1 gets no signal that it has no handler for; elsewhere Ctrl-C is the host's.
    signal.signal(signal.SIGINT, signal.SIG_DFL if alone else signal.SIG_IGN)
    if not alone:
        system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
    send_message(control, {"ready": True})
    number = 0
    with suppress(EOFError, ConnectionError):
        while True:
            request = receive_message(control)
            number += 1
            send_message(control, _Run(control, calls, alone, request, number).outcome())


class _Run:
    """One program, from its fork until nothing of it is left."""

    def __init__(
        self,
        control: socket.socket,
        calls: socket.socket,
        alone: bool,
        request: dict[str, Any],
        number: int,
    ) -> None:
        self.control, self.alone, self.number = control, alone, number
        self.limits = Limits(**request["limits"])
        self.given = request.get("stdin", "").encode("utf-8", "replace")
        self.kept = {"stdout": bytearray(), "stderr": bytearray()}
        self.finish: Finish | None = None
        self.began = time.monotonic()
        streams = [os.pipe() for _ in range(3)]
        self.pid = os.fork()
        if self.pid == 0:
            ours = (streams[0][0], streams[1][1], streams[2][1])
            run_child(ours, calls, request, self.limits, number)
        if request["role"] != "program":
            calls.close()  # so that the other side sees the end of the only process that has it
        for descriptor in (streams[0][0], streams[1][1], streams[2][1]):
            os.close(descriptor)
        self.stdin = streams[0][1]
        self.reading = {streams[1][0]: "stdout", streams[2][0]: "stderr"}
        for descriptor in (self.stdin, *self.reading):
            os.set_blocking(descriptor, False)

    def outcome(self) -> dict[str, Any]:
        """Wait for its end, or cause it."""
        status = self._wait()
        seconds = time.monotonic() - self.began
        _kill_all(self.pid, self.alone)
        # What it wrote; a tree that is too deep for this stays, and takes room from later runs of
        # the same program only.
        with suppress(OSError, RecursionError):
            shutil.rmtree(f"{os.getcwd()}/{self.number}")
        for descriptor in list(self.reading):
            self._read(descriptor)
            os.close(descriptor)
        if self.stdin >= 0:
            os.close(self.stdin)
        texts = {name: bytes(kept).decode("utf-8", "replace") for name, kept in self.kept.items()}
        finish = self.finish or _finish(status, texts["stderr"])
        return {"finish": finish, "status": status, "seconds": seconds, **texts}

    def _wait(self) -> int:
        """The exit status, after the end of the program itself."""
        poll = select.poll()
        for descriptor in self.reading:
            poll.register(descriptor, select.POLLIN)
        poll.register(self.stdin, select.POLLOUT)
        poll.register(self.control, select.POLLRDHUP)
        ended = os.pidfd_open(self.pid)
        poll.register(ended, select.POLLIN)
        watched = self.began
        try:
            while self.finish is None:
                now = time.monotonic()
                if now - self.began >= self.limits.seconds:
                    self.finish = "timeout"
                    break
                if now - watched >= _WATCH_SECONDS:
                    watched = now
                    self._watch_memory()
                for descriptor, event in poll.poll(1000 * _WATCH_SECONDS):
                    if descriptor == ended:
                        return self._reaped()
                    self._attend(poll, descriptor, event)
        finally:
            os.close(ended)
        os.kill(self.pid, signal.SIGKILL)
        return self._reaped()

    def _reaped(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _attend(self, poll: "select.poll", descriptor: int, event: int) -> None:
        if descriptor == self.control.fileno():
            os._exit(1)  # whoever asked is gone
        if descriptor == self.stdin:
            self._write(poll)
        elif not self._read(descriptor):
            poll.unregister(descriptor)

    def _write(self, poll: "select.poll") -> None:
        try:
            self.given = self.given[os.write(self.stdin, self.given) :] if self.given else b""
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.given = b""
        if not self.given:
            poll.unregister(self.stdin)
            os.close(self.stdin)
            self.stdin = -1

    def _read(self, descriptor: int) -> bool:
        """Keep what was written, up to the limit; whether there may be more."""
        kept, most = self.kept[self.reading[descriptor]], 1024 * self.limits.output_kib
        while True:
            try:
                piece = os.read(descriptor, 2**16)
            except BlockingIOError:
                return True
            kept += piece[: most - len(kept)]
            if len(kept) >= most:
                self.finish = self.finish or "output"
                return False
            if not piece:
                return False

    def _watch_memory(self) -> None:
        """Stop at the limit of all processes together, where the sandbox sees them."""
        if self.alone and _resident_bytes() > self.limits.memory_mib * 2**20:
            self.finish = "memory"


def _resident_bytes() -> int:
    """Memory of all processes but this one that no file stands behind."""
    total = 0
    for name in os.listdir("/proc") if Path("/proc/1").exists() else ():
        if name.isdecimal() and name != "1":
            with suppress(OSError, ValueError, IndexError):  # it ended
                words = Path("/proc", name, "statm").read_text().split()
                total += (int(words[1]) - int(words[2])) * _PAGE
    return total


def _finish(status: int, stderr: str) -> Finish:
    if status == 0:
        return "ok"
    if status == -signal.SIGXCPU:
        return "timeout"
    last = stderr.strip().rpartition("\n")[2]
    return "memory" if last.startswith("MemoryError") else "crashed"


def _kill_all(pid: int, alone: bool) -> None:
    """Kill all that a program left behind, and reap it."""
    while True:
        with suppress(ProcessLookupError, PermissionError):
            if alone:
                os.kill(-1, signal.SIGKILL)  # all of the namespace but this process
            else:
                os.killpg(pid, signal.SIGKILL)
        for child in () if alone else _children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    """Processes whose parent is this one now, as theirs ended."""
    own = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(word) for word in own.read_text().split()] if own.exists() else []
