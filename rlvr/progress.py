"""One line of progress on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """One line of progress; where no terminal is there, nothing."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task: Any = None

    def show(self, what: str, done: int, total: int) -> None:
        """Say what is going on and how far it is."""
        if self.task is None:
            self.task = self.progress.add_task(what, total=total)
        self.progress.update(self.task, description=what, completed=done, total=total)


@contextmanager
def progress_bar(console: Console) -> Iterator[Bar]:
    """A line of progress for as long as the block lasts."""
    bar = Bar(console)
    with bar.progress:
        yield bar
