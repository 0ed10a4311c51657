"""Where the time of a step goes: seconds per phase, and the start and end of each phase."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Span = Callable[[str, float, float], None]
"""Called with (phase, begin, end) in seconds since the epoch."""


class Clock:
    """Seconds per phase since its creation.

    Args:
        span: Called for every phase that ended.
    """

    def __init__(self, span: Span | None = None) -> None:
        self._started = time.perf_counter()
        self._span = span
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str, *, counted: bool = True) -> Iterator[None]:
        """Time a block under ``time/<phase>``; blocks of one phase add up.

        If ``counted`` is false, the block is only reported, because its parts are timed separately.
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
        """Seconds since its creation."""
        return time.perf_counter() - self._started
