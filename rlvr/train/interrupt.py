"""Ctrl-C and SIGTERM: stop where nothing is half done, save, and say so.

Sampling and verifying change nothing that a checkpoint holds, so a signal stops them at once. The
update and the writing of records do, so a signal that arrives then waits until they are through.
A second signal does not wait.
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
    """Turns SIGINT and SIGTERM into :class:`Stopped` at moments where the state is whole."""

    def __init__(self) -> None:
        self._shielded = False
        self._pending: int | None = None
        self._seen = 0

    @contextmanager
    def watch(self) -> Iterator["StopSignals"]:
        """Handle the signals within the block; only the main thread can."""
        numbers = (signal.SIGINT, signal.SIGTERM)
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
        if self._pending is not None:
            raise Stopped(self._pending)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._seen += 1
        if self._shielded and self._seen == 1:
            self._pending = number
        else:
            raise Stopped(number)
