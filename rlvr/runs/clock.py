"""Where the time of a run goes: seconds per phase, and the start and end of each phase.

Phases of a step, and what is done between steps, add up to the wall clock: what no phase names is
counted as ``time/other`` within a step, and as ``time/record`` between two (:class:`WallClock`).
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

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


def other_seconds(total: float, metrics: Mapping[str, float], beside: bool = False) -> float:
    """What is left of a step when its phases are taken away.

    Args:
        total: Seconds of the step.
        metrics: With ``time/<phase>`` of every phase.
        beside: Whether the phases of the engine ran beside the learner, and take none of its time.
    """
    engine = ("time/generate", "time/verify", "time/load") if beside else ()
    named = [v for name, v in metrics.items() if name.startswith("time/") and name not in engine]
    return max(0.0, total - sum(named))


def process_began() -> float:
    """When this process began, in seconds since the epoch."""
    try:
        # Ticks since boot are exact to 10 ms; the time of the boot is known to a second.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return psutil.Process().create_time()
    return time.time() - age


class WallClock:
    """The seconds of a process that nothing has named so far.

    Args:
        began: When the process began, in seconds since the epoch; None is now.
    """

    def __init__(self, began: float | None = None) -> None:
        self._since = time.perf_counter() - (0.0 if began is None else time.time() - began)
        self._named = 0.0
        self.start: float | None = None
        """Seconds until the loop began; None when they have been recorded."""

    def name(self, *seconds: float) -> None:
        """Have seconds named that went by since the last :meth:`unnamed`."""
        self._named += sum(seconds)

    def unnamed(self) -> float:
        """The seconds since the last call that were not named."""
        now = time.perf_counter()
        left = now - self._since - self._named
        self._since, self._named = now, 0.0
        return max(0.0, left)

    def begin_steps(self) -> None:
        """The loop begins: what went by so far was the start."""
        self.start = self.unnamed()

    def of_step(self, total: float) -> dict[str, float]:
        """A step has ended: its ``time/record``, and of a process's first also ``time/start``."""
        self.name(total)
        start = {} if self.start is None else {"time/start": self.start}
        self.start = None
        return {**start, "time/record": self.unnamed()}
