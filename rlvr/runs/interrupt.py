"""Ctrl-C and SIGTERM: stop at a consistent point, save, and report it.

Sampling and verifying change nothing in a checkpoint, so a signal stops them immediately. The
update and the writing of records do, so a signal that arrives then waits until they are finished. A
second signal does not wait, except for a scheduler's SIGUSR1: it means the same when repeated, and
some arrive twice (at the process, and forwarded by a launcher).

Python delivers signals to the main thread alone, so a run in another thread (of a notebook's
server, of a web application) is stopped by none.

With several processes none may stop alone, because the others would wait for it. Then a signal is
only noted (``deferred``); sampling checks for it regularly, the rank that received it tells the
others when rollouts are gathered, and all stop there. More signals are ignored, because a launcher
sends its own after Ctrl-C.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The run was asked to stop; shells report 128 + ``signal_number``, 130 for Ctrl-C."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGUSR1 into :class:`Stopped` when the state is consistent.

    Schedulers are configured to send SIGUSR1 some time before they take a machine away.
    """

    def __init__(self) -> None:
        self.deferred = False
        self._shielded = False
        self._pending: int | None = None
        self._seen = 0

    @contextmanager
    def watch(self) -> Iterator["StopSignals"]:
        """Handle the signals within the block; outside of the main thread, nothing is handled."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Delay a signal until the end of the block."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if not self.deferred:
            self.check()

    def check(self) -> None:
        """Raise a delayed signal."""
        if self._pending is not None:
            raise Stopped(self._pending)

    @property
    def pending(self) -> int:
        """Number of the delayed signal, or 0."""
        return self._pending or 0

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1 and self._seen:
            return
        self._seen += 1
        if self.deferred:
            self._pending = self._pending or number
        elif self._shielded and self._seen == 1:
            self._pending = number
        else:
            raise Stopped(number)
