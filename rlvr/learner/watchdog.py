"""A watchdog: a phase that takes far longer than it ever did ends the process, and says where.

A job of several processes mostly dies silently: one rank fails or hangs, and the others wait for it
in a collective. Each rank watches itself. When a phase has lasted ``factor`` times its median, and
at least ``least_s``, the watchdog prints the phase, the rank and the stack of every thread to
standard error and ends the process; the launcher then ends the others, and the run goes on from its
checkpoint with ``--resume``. A first occurrence has no median and is given ``first_s``.
"""

import faulthandler
import os
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TextIO

EXIT_CODE = 75
"""EX_TEMPFAIL: trying again may help."""

_REMEMBERED = 50


class Watchdog:
    """Watches one phase at a time in each thread that enters :meth:`phase`.

    Args:
        rank: Named when something hangs.
        factor: Times the median that a phase may last.
        least_s: Seconds that any phase may last.
        first_s: Seconds that a phase may last which was not seen before.
        end: Ends the process with a code; tests put their own.
        output: Where the stacks go; a real file.
    """

    def __init__(
        self,
        rank: int = 0,
        *,
        factor: float = 20.0,
        least_s: float = 300.0,
        first_s: float = 3600.0,
        end: Callable[[int], None] = os._exit,
        output: TextIO | None = None,
    ) -> None:
        self.rank, self.factor, self.least_s, self.first_s = rank, factor, least_s, first_s
        self._end, self._output = end, output or sys.__stderr__
        self._taken: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._deadlines: dict[int, tuple[float, str, float]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch a block; its time, if it ends, counts towards the median of its name."""
        began, thread = time.monotonic(), threading.get_ident()
        with self._changed:
            before = self._deadlines.get(thread)
            self._deadlines[thread] = (began + self.limit(name), name, began)
            self._changed.notify_all()
        try:
            yield
            self._taken[name].append(time.monotonic() - began)
        finally:
            with self._changed:
                del self._deadlines[thread]
                if before is not None:
                    self._deadlines[thread] = before

    def limit(self, name: str) -> float:
        """Seconds that the phase may last."""
        taken = self._taken[name]
        return max(self.least_s, self.factor * median(taken)) if taken else self.first_s

    def close(self) -> None:
        """Stop watching."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                due = min(self._deadlines.values(), default=None)
                if due is not None and time.monotonic() >= due[0]:
                    self._report(due[1], time.monotonic() - due[2])
                    return
                self._changed.wait(None if due is None else due[0] - time.monotonic())

    def _report(self, name: str, lasted: float) -> None:
        taken = self._taken[name]
        usual = f"usually {median(taken):.1f} s" if taken else "not seen before"
        assert self._output is not None
        self._output.write(
            f"rlvr: rank {self.rank} hangs in phase {name!r} for {lasted:.0f} s ({usual}); "
            "stacks of all threads follow; go on with --resume\n"
        )
        self._output.flush()
        faulthandler.dump_traceback(self._output, all_threads=True)
        self._end(EXIT_CODE)
