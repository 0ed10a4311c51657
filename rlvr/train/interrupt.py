"""Ctrl-C and SIGTERM: stop where nothing is half done, save, and say so.

Sampling and verifying change nothing that a checkpoint holds, so a signal stops them at once. The
update and the writing of records do, so a signal that arrives then waits until they are through.
A second signal does not wait; that of a scheduler, SIGUSR1, says nothing new when it is repeated,
and some arrive twice (at the process, and passed on by a launcher).

With several processes nobody may stop alone: the others would wait for it. There a signal is only
noted (``deferred``); sampling looks at it at every sign of life, the rank that saw it says so where
rollouts are put together, and all stop there. Further signals are ignored: a launcher sends its own
after Ctrl-C.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The run was asked to stop; shells report 128 + ``signal_number``, 130 for Ctrl-C."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGUSR1 into :class:`Stopped` where the state is whole.

    SIGUSR1 is what schedulers are told to send some time before they take a machine away.
    """

    def __init__(self) -> None:
        self.deferred = False
        self._shielded = False
        self._pending: int | None = None
        self._seen = 0

    @contextmanager
    def watch(self) -> Iterator["StopSignals"]:
        """Handle the signals within the block; only the main thread can."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Hold a signal back until the block is through."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if not self.deferred:
            self.check()

    def check(self) -> None:
        """Raise what was held back."""
        if self._pending is not None:
            raise Stopped(self._pending)

    @property
    def pending(self) -> int:
        """Number of the signal that was held back, or 0."""
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
