"""JSON lines that survive a kill, files that are there whole or not at all, and locks."""

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite, isnan
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import psutil

Row = dict[str, Any]

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""How numbers that are not finite are written; ``float`` reads them back."""


@dataclass(frozen=True, slots=True)
class Lines:
    """The objects of a file of JSON lines, and what could not be read.

    ``unreadable`` holds the line numbers (from 1) that are not a JSON object, apart from an
    incomplete last line, which ``incomplete`` tells.
    """

    objects: tuple[Row, ...]
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


def read_lines(path: Path, *, ended: bool = False) -> Lines:
    """The objects of a file of JSON lines; a missing file has none, blank lines count for nothing.

    A process that was killed leaves at most its last line cut; a machine that lost power may leave
    others. What cannot be read is a fact to tell, not a fault to stop at.

    Args:
        path: The file.
        ended: Whether an object whose line has no end yet counts as incomplete, as it does for
            whoever goes on writing the file with :class:`Appender`.
    """
    lines = (path.read_bytes() if path.is_file() else b"").split(b"\n")
    open_end = len(lines)
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    parsed = [
        (number, None if ended and number == open_end else _object(line))
        for number, line in numbered
    ]
    unreadable = [number for number, value in parsed if value is None]
    incomplete = bool(numbered) and numbered[-1][0] in unreadable
    return Lines(
        tuple(value for _, value in parsed if value is not None),
        tuple(unreadable[:-1] if incomplete else unreadable),
        incomplete,
    )


@dataclass(frozen=True, slots=True)
class LinePosition:
    """How far a file was read that others append to: which file (inode), and how many bytes."""

    inode: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class NewLines:
    """Objects that were appended to a file, where they end, and whether they are all there are.

    ``restarted`` is true if the file was replaced since the earlier position, so that what was
    read before no longer counts.
    """

    objects: tuple[Row, ...]
    position: LinePosition
    restarted: bool


def read_new_lines(path: Path, since: LinePosition, most: int = 8_000_000) -> NewLines:
    """The whole lines that were appended since a position, without those that are no object.

    Args:
        path: The file; a missing one has no lines.
        since: Where the last call ended; the default reads from the start.
        most: Bytes to read at once; the rest is left to the next call.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return NewLines((), LinePosition(), restarted=since != LinePosition())
    with file:
        status = os.fstat(file.fileno())
        goes_on = status.st_ino == since.inode and since.offset <= status.st_size
        start = since.offset if goes_on else 0
        file.seek(start)
        data = file.read(min(most, status.st_size - start))
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and len(data) == most:
        return read_new_lines(path, since, 4 * most)  # a single line is longer
    parsed = [_object(line) for line in whole.split(b"\n") if line.strip()]
    objects = tuple(value for value in parsed if value is not None)
    return NewLines(objects, LinePosition(status.st_ino, start + len(whole)), not goes_on)


def enumerate_(items: Sequence[object], most: int = 8) -> str:
    """``1, 2, 3`` with the tail told as a count."""
    head = ", ".join(str(item) for item in items[:most])
    return head if len(items) <= most else f"{head} and {len(items) - most} more"


def _object(line: bytes) -> Row | None:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def line(row: Row) -> str:
    """A row as a line of its own; numbers that JSON does not have are text (:data:`NOT_FINITE`)."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_strict(row), ensure_ascii=False, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:  # noqa: ANN401
    """A JSON value with text in place of NaN and infinities."""
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write in place of ``path``, which it becomes when the block ends without an error.

    The disk holds it before it takes its name, so nobody ever reads half of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(*folders: Path) -> None:
    """Remove what :func:`replacing` left in folders when its process was killed."""
    for folder in folders:
        for path in folder.glob(".*"):
            found = re.fullmatch(r"\..+\.(\d+)", path.name)
            if found and not psutil.pid_exists(int(found[1])):
                path.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill in place of ``folder``, which it becomes when the block ends."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed here
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def append_line(path: Path, row: Row, *, sync: bool = False) -> None:
    """Append a row to a file of JSON lines.

    Args:
        path: The file; it need not be there.
        row: What the line holds.
        sync: Wait until the disk holds it, so that a loss of power does not take it back.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(line(row))
        if sync:
            file.flush()
            os.fsync(file.fileno())


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


class InUseError(ValueError):
    """Another process holds a lock; the message names it."""


@contextmanager
def locked(path: Path, what: str, *, patience_s: float = 2.0) -> Iterator[None]:
    """Hold a file as a lock for as long as the block runs.

    The system releases it when this process dies, however that happens. Processes that this one
    starts do not hold it. Where the file system has no locks, nothing is locked.

    Args:
        path: The lock's file. It is made with its folder, names its holder, and is removed.
        what: What is locked, for the message.
        patience_s: How long to wait for a holder that is about to end.

    Raises:
        InUseError: Another process holds it, or another part of this one.
    """
    deadline = time.monotonic() + patience_s
    while (descriptor := _take(path)) is None:
        if time.monotonic() > deadline:
            raise InUseError(
                f"{what} is in use by {_holder(path)}; wait until that ends or stop it, or choose "
                "another folder"
            )
        time.sleep(0.05)
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, line(holder).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_locked(path: Path) -> bool | None:
    """Whether a living process holds a lock of :func:`locked`; None if that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None  # a file system without locks
    finally:
        os.close(descriptor)
    return False


def _take(path: Path) -> int | None:
    """The open, locked file; None while another holds it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            return descriptor  # a file system without locks
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its last holder has just removed it


def _holder(path: Path) -> str:
    found = read_lines(path).objects
    if not found:
        return "another process"
    row = found[0]
    return f"process {row.get('pid')} on {row.get('host')}, since {row.get('since')}"


def differences(before: Row, after: Row, prefix: str = "") -> Iterator[str]:
    """``key was X and is Y`` for every value that two nested mappings do not share.

    Lists of equal length are compared place by place, as ``key.0``. Of two choices with different
    names the name alone is told: their other settings mean different things.
    """
    for name in dict.fromkeys([*before, *after]):
        yield from _differences(before.get(name), after.get(name), f"{prefix}{name}")


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:  # noqa: ANN401
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get("name") != new.get("name"):
            old, new = ({"name": choice.get("name")} for choice in (old, new))
        yield from differences(old, new, f"{key}.")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{key}.{place}")
    elif old != new:
        both = [json.dumps(value, ensure_ascii=False, default=str) for value in (old, new)]
        short = [text if len(text) <= 80 else text[:77] + "..." for text in both]
        was, becomes = short if short[0] != short[1] else both
        yield f"{key} was {was} and is {becomes}"
