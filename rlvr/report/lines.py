"""Read JSON lines that a running, killed or resumed process wrote.

A report is asked for most often while something is wrong, so a file that ends in the middle of a
line is a fact to tell, not a fault to stop at.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Lines:
    """The objects of one file, and what could not be read.

    ``unreadable`` holds the line numbers (from 1) that are not a JSON object, apart from an
    incomplete last line, which ``incomplete`` tells.
    """

    objects: tuple[dict[str, Any], ...]
    unreadable: tuple[int, ...] = ()
    incomplete: bool = False

    def notes(self, name: str) -> list[str]:
        """Sentences for the reader about what was left out of the file ``name``."""
        notes = []
        if self.incomplete:
            notes.append(
                f"The last line of {name} is incomplete and was left out: the run was still "
                "writing it, or was killed while doing so."
            )
        if self.unreadable:
            notes.append(f"{name} has lines that could not be read: {enumerate_(self.unreadable)}.")
        return notes


def read_lines(path: Path) -> Lines:
    """The JSON objects of ``path``, one per line; blank lines count for nothing."""
    texts = [
        (number, line)
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1)
        if line.strip()
    ]
    parsed = [(number, _object(line)) for number, line in texts]
    unreadable = [number for number, value in parsed if value is None]
    incomplete = bool(texts) and texts[-1][0] in unreadable
    return Lines(
        objects=tuple(value for _, value in parsed if value is not None),
        unreadable=tuple(unreadable[:-1] if incomplete else unreadable),
        incomplete=incomplete,
    )


def enumerate_(numbers: tuple[int, ...] | list[int], most: int = 8) -> str:
    """``1, 2, 3`` with the tail told as a count."""
    head = ", ".join(str(number) for number in numbers[:most])
    return head if len(numbers) <= most else f"{head} and {len(numbers) - most} more"


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8", errors="replace"))
    except (json.JSONDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
