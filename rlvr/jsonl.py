"""JSON lines that survive a kill, and files that are there whole or not at all."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lines:
    """The objects of a file, how many lines were no object, and whether the last was cut short."""

    rows: tuple[Row, ...]
    damaged: int
    cut: bool


def read_lines(path: Path) -> Lines:
    """The objects of a file of JSON lines; a line that cannot be read is left out and counted.

    A process that was killed leaves at most its last line cut; a machine that lost power may leave
    others.
    """
    text = path.read_bytes() if path.is_file() else b""
    lines = text.split(b"\n")
    rows = [_object(line) for line in lines[:-1] if line.strip()]
    found = tuple(row for row in rows if row is not None)
    return Lines(found, len(rows) - len(found), bool(lines[-1].strip()))


def _object(line: bytes) -> Row | None:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def line(row: Row) -> str:
    """A row as a line of its own."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    write_atomically(path, "".join(line(row) for row in rows))


class Appender:
    """Appends whole lines to a file; a context manager.

    A line that an earlier process left cut is removed first, so that nothing is glued to it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            _drop_cut_line(path)
        self._file: TextIO = path.open("a", encoding="utf-8", errors="replace")

    def add(self, row: Row) -> None:
        """Append a row and hand it to the system, which keeps it when this process is killed."""
        self._file.write(line(row))
        self._file.flush()

    def __enter__(self) -> "Appender":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _drop_cut_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


def differences(before: Row, after: Row, prefix: str = "") -> Iterator[str]:
    """``key was X and is Y`` for every value that two nested mappings do not share."""
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        key = f"{prefix}{name}"
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{key}.")
        elif old != new:
            yield f"{key} was {_short(old)} and is {_short(new)}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
