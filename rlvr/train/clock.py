"""Where the time of a step goes: seconds per phase, and when each phase began and ended."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Span = Callable[[str, float, float], None]
"""Called with (phase, begin, end) in seconds since the epoch."""


class Clock:
    """Seconds per phase since it was made.

    Args:
        span: Told about every phase that ended.
    """

    def __init__(self, span: Span | None = None) -> None:
        self._started = time.perf_counter()
        self._span = span
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str, *, counted: bool = True) -> Iterator[None]:
        """Time a block under ``time/<phase>``; blocks of one phase add up.

        What is not ``counted`` is only told: others time its parts.
        """
        started = time.perf_counter()
        yield
        taken = time.perf_counter() - started
        if counted:
            name = f"time/{phase}"
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
        if self._span is not None:
            now = time.time()
            self._span(phase, now - taken, now)

    @property
    def total(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started
