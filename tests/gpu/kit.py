"""What all parts of a GPU day share: the parts, the setting they run in, and rows on disk.

Standard library alone: this must work where torch or the package itself cannot be imported.
"""

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "results.jsonl"
SEED = 0

Row = dict[str, Any]


class Part(NamedTuple):
    """A part of the day: a module whose ``measure(setting)`` yields rows, and its share of time."""

    name: str
    module: str
    share: int


PARTS = (
    Part("machine", "tests.gpu.machine", 40),
    Part("correctness", "tests.gpu.correctness", 110),
    Part("head", "tests.gpu.head", 60),
    Part("updates", "tests.gpu.updates", 130),
    Part("generation", "tests.gpu.generation", 60),
    Part("step", "tests.gpu.step", 100),
    Part("profile", "tests.gpu.profile", 40),
)
"""In order of importance: what time is left to the end is taken from the last ones."""


@dataclass(frozen=True)
class Setting:
    """What a part is run with.

    Attributes:
        tiny: Tiny shapes, which a CPU runs in seconds.
        out: Folder of the results; what a part writes itself goes in there.
        deadline: When the part is killed, as of ``time.monotonic``.
    """

    tiny: bool
    out: Path
    deadline: float

    @property
    def left(self) -> float:
        """Seconds until the part is killed."""
        return self.deadline - time.monotonic()

    def pick(self, tiny: Any, full: Any) -> Any:
        """One of two sizes."""
        return tiny if self.tiny else full


def attempt(row: Row, work: Callable[[], Row]) -> Row:
    """A row with what the work gives, or with why it failed: what comes after it is tried too."""
    try:
        return row | work()
    except Exception as fault:
        traceback.print_exc()
        return row | {"passed": False, "note": f"{type(fault).__name__}: {str(fault)[:200]}"}


def append(folder: Path, row: Mapping[str, Any]) -> None:
    """Add a row to the results at once, whole: whoever is killed after it loses nothing of it."""
    text = json.dumps({key: _writable(value) for key, value in row.items()}, allow_nan=False)
    descriptor = os.open(folder / RESULTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, (text + "\n").encode())
    finally:
        os.close(descriptor)


def _writable(value: object) -> object:
    """A number that is none is written as its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def read_rows(folder: Path) -> list[Row]:
    """The rows of a folder, in order; a line that a full disk cut off is left out.

    Raises:
        ValueError: There are none.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise ValueError(
            f"{str(path)!r} does not exist; run python -m tests.gpu.day --out {folder}"
        )
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
