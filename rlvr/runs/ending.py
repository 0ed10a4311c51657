"""How a run ended that did not finish: ``ended.json`` in its folder says it to whoever looks.

A run that goes on has no such file, nor has one that finished, or whose process was killed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from json import dumps, loads
from pathlib import Path
from typing import Literal

from rlvr.files import write_atomically

NAME = "ended.json"
LOCK = "run.lock"
"""The lock that a run's process holds in its folder."""


@contextmanager
def ending_noted(folder: Path) -> Iterator[None]:
    """Write ``ended.json`` if the block ends by a signal or an error; remove an earlier one."""
    path = folder / NAME
    path.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        stopped = hasattr(error, "signal_number") or isinstance(error, KeyboardInterrupt)
        described = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        ended = {
            "state": "stopped" if stopped else "failed",
            "reason": "" if stopped else described,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_atomically(path, dumps(ended))
        raise


def read_ending(folder: Path) -> tuple[Literal["stopped", "failed"], str] | None:
    """How the run ended, and why if it failed; None if its folder does not say."""
    try:
        found = loads((folder / NAME).read_text(encoding="utf-8"))
        state, reason = found["state"], str(found.get("reason", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return (state, reason) if state in ("stopped", "failed") else None
