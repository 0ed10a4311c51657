"""Progress of long work: a bar on a terminal or in a notebook, elsewhere a plain line now and then.

A log of SLURM or a file gets a line after ten seconds and then every thirty, whether anything moved
or not, so that a reader sees that the work is alive, how far it is and how long it will take:

    sampling qwen: 120 of 1319 (9%), 2.3 a second, 8 min 41 s left

``RLVR_PROGRESS_SECONDS`` is another interval; 0 prints none.
"""

import html
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_REDRAW_S = 0.25
"""Seconds between two drawings in a notebook, each of which is a message to the browser."""


@dataclass
class _Line:
    description: str
    completed: float = 0
    total: float | None = None
    figures: str = ""

    def __str__(self) -> str:
        total = "" if self.total is None else f' max="{self.total:g}" value="{self.completed:g}"'
        counted = "" if self.total is None else f" {self.completed:g}/{self.total:g}"
        return (
            f"<div><progress{total}></progress>{counted} {html.escape(self.description)} "
            f"{html.escape(self.figures)}</div>"
        )


@dataclass
class NotebookProgress:
    """Progress as one cell output that is drawn again; speaks as :class:`rich.progress.Progress`.

    rich draws in a notebook by widgets that many notebooks do not have; this is plain HTML.
    """

    lines: list[_Line] = field(default_factory=list)
    handle: Any = None
    drawn: float = 0.0

    def start(self) -> None:
        """Make room in the cell's output."""
        from IPython.display import HTML, display

        self.handle = display(HTML(""), display_id=True)

    def stop(self) -> None:
        """Draw the last state, without what was being done."""
        self.lines = [line for line in self.lines if line.total is not None]
        self._draw()

    def add_task(self, description: str, total: float | None = None, **values: Any) -> int:  # noqa: ANN401
        """Add a line; its number."""
        self.lines.append(_Line(description, total=total, **values))
        return len(self.lines) - 1

    def update(self, task_id: int, **values: Any) -> None:  # noqa: ANN401
        """Change a line: ``description``, ``completed``, ``total``, ``figures``."""
        vars(self.lines[task_id]).update(values)
        if time.monotonic() - self.drawn > _REDRAW_S:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML

        self.drawn = time.monotonic()
        if self.handle is not None:
            self.handle.update(HTML("".join(map(str, self.lines))))

    def __enter__(self) -> "NotebookProgress":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def is_watched(console: Console) -> bool:
    """Whether somebody sees the console live: a terminal, or the output of a notebook's cell."""
    return (console.is_terminal or console.is_jupyter) and not console.quiet


def live_progress(console: Console, *columns: ProgressColumn) -> Any:  # noqa: ANN401
    """A :class:`rich.progress.Progress`, or what does the same in a notebook."""
    if console.is_jupyter and not console.quiet:
        return NotebookProgress()
    return Progress(*columns, console=console, disable=not console.is_terminal)


_FIRST_S, _EVERY_S = 10.0, 30.0
Done = Callable[[int, int], None]
"""Told how many are done, out of how many."""


class PlainLines:
    """Prints the current work every so often, from a thread of its own; a context manager.

    Args:
        console: Where it is printed.
        every_s: Seconds between two lines; None is thirty, or what the environment says.

    Raises:
        ValueError: RLVR_PROGRESS_SECONDS is no number.
    """

    def __init__(self, console: Console, every_s: float | None = None) -> None:
        self.console = console
        self.every_s = _interval() if every_s is None else every_s
        self._what, self._done, self._total = "", 0, 0
        self._began, self._first_done = time.monotonic(), 0
        self._due = self._began + min(_FIRST_S, self.every_s)
        self._ended, self._thread = Event(), Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "PlainLines":
        if self.every_s > 0 and not is_watched(self.console) and not self.console.quiet:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def show(self, what: str, done: int, total: int) -> None:
        """Say what goes on; a ``total`` of 0 is unknown."""
        if what != self._what or done < self._done:
            self._began, self._first_done = time.monotonic(), done
        self._what, self._done, self._total = what, done, total

    def rest(self) -> None:
        """Another line was printed: the next one is due an interval later."""
        self._due = time.monotonic() + self.every_s

    def _tick(self) -> None:
        while not self._ended.wait(max(0.01, self._due - time.monotonic())):
            if time.monotonic() >= self._due:
                self.rest()
                if self._what:
                    line = self._line(time.monotonic() - self._began)
                    self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _line(self, seconds: float) -> str:
        done, total, moved = self._done, self._total, self._done - self._first_done
        if not total:
            return f"{self._what}: {duration(seconds)} so far"
        line = f"{self._what}: {done} of {total} ({done / total:.0%})"
        if moved <= 0:
            return f"{line}, {duration(seconds)} so far"
        rate = moved / max(seconds, 1e-9)
        speed = f"{rate:.1f} a second" if rate >= 0.1 else f"{1 / rate:.0f} s each"
        return f"{line}, {speed}, {duration((total - done) / rate)} left"


class Bar:
    """What a block of work shows: a bar where somebody watches, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.progress = live_progress(
            console,
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.lines = PlainLines(console)
        self.task: Any = None

    def show(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show the current work and its progress; a ``total`` of 0 is unknown."""
        self.lines.show(what, done, total)
        if self.task is None:
            self.task = self.progress.add_task(what, total=None)
        self.progress.update(self.task, description=what, completed=done, total=total or None)


@contextmanager
def progress_bar(console: Console) -> Iterator[Bar]:
    """Progress while the block runs."""
    bar = Bar(console)
    with bar.progress, bar.lines:
        yield bar


@contextmanager
def watching(what: str, console: Console | None = None) -> Iterator[Done]:
    """Progress of one piece of work, on the error stream unless a console is given: standard output
    is for results.

    Args:
        what: What is done, such as scoring.
        console: Where it is shown.
    """
    with progress_bar(console or Console(stderr=True)) as bar:
        bar.show(what)
        yield lambda done, total: bar.show(what, done, total)


def duration(seconds: float) -> str:
    """Such as 42 s, 8 min 41 s or 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _interval() -> float:
    text = os.environ.get("RLVR_PROGRESS_SECONDS", "").strip()
    if not text:
        return _EVERY_S
    try:
        return max(0.0, float(text))
    except ValueError:
        raise ValueError(
            f"RLVR_PROGRESS_SECONDS {text!r} is not a number of seconds, such as 60; 0 prints no "
            "lines of progress"
        ) from None
