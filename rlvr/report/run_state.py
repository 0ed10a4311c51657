"""Whether a run goes on, and how far it is: what a dashboard lists."""

import time
from collections import deque
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rlvr.files import LinePosition, is_locked, read_new_lines
from rlvr.report.history import read_row, spent
from rlvr.runs.ending import LOCK, read_ending
from rlvr.settings import parse_yaml

SILENT_S = 120.0
"""Seconds without a new line after which a run counts as silent, or ten of its steps if longer."""
HEADLINE = (
    "eval/*/accuracy",
    "reward/mean",
    "reward/correct",
    "eval/*/reward_accuracy",
    "eval/*/auc_within",
    "preference/loss",
    "sft/loss",
    "rm/loss",
    "eval/*/nll",
    "completion/length_mean",
)
HEADLINES = 4

State = Literal["running", "silent", "finished", "stopped", "failed"]


@dataclass
class WatchedRun:
    """A run folder whose metrics are read as they are appended.

    Attributes:
        path: The folder.
        latest: The newest value of each metric.
        step: The last step; None before the first.
    """

    path: Path
    latest: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    _position: LinePosition = field(default_factory=LinePosition)
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    _total: tuple[int, int | None] = (0, None)

    def poll(self) -> None:
        """Read what was appended."""
        new = read_new_lines(self.path / "metrics.jsonl", self._position)
        self._position = new.position
        if new.restarted:
            self.latest, self.step = {}, None
            self._seconds.clear()
        for row in new.objects:
            step = row.get("step")
            if isinstance(step, int):
                self.step = step
            values, _ = read_row({key: row[key] for key in row if key != "step"})
            self.latest.update(values)
            if "time/step" in values:
                self._seconds.append(spent(row)[1])

    def describe(self) -> dict[str, Any]:
        """``state``, ``reason``, ``step``, ``total``, ``figures``, ``eta`` and ``age`` in seconds.

        ``figures`` are the newest values of up to four metrics; ``eta`` is None unless the run
        goes on and has taken steps.
        """
        self.poll()
        state, reason = self.state()
        total, left = self.total(), None
        if state in ("running", "silent") and total and self.step is not None and self._seconds:
            left = max(0, total - self.step) * median(self._seconds)
        return {
            "state": state,
            "reason": reason,
            "step": self.step or 0,
            "total": total,
            "figures": [[name, self.latest[name]] for name in self._headline()],
            "eta": left,
            "age": self._age(),
        }

    def state(self) -> tuple[State, str]:
        """The state, and what else is known about it.

        The lock in the folder tells whether the run's process lives; on a file system without
        locks, the time of its last line does.
        """
        held = is_locked(self.path / LOCK)
        age = self._age()
        alive = held if held is not None else age is not None and age < self._patience()
        if alive:
            silent = age is not None and age > self._patience()
            return ("silent", f"no line for {age:.0f} s") if silent else ("running", "")
        ended = read_ending(self.path)
        if ended is not None:
            return ended
        if (self.path / "model").is_dir() or (self.path / "summary.json").is_file():
            return "finished", ""
        if (self.path / LOCK).is_file():
            return "failed", "its process was killed"
        return "stopped", ""

    def total(self) -> int | None:
        """The number of steps that the recipe plans, if it says so."""
        path = self.path / "recipe.yaml"
        stamp = path.stat().st_mtime_ns if path.is_file() else 0
        if stamp != self._total[0]:
            self._total = (stamp, _planned(path))
        return self._total[1]

    def _headline(self) -> list[str]:
        found = [name for pattern in HEADLINE for name in self.latest if fnmatch(name, pattern)]
        return list(dict.fromkeys(found))[:HEADLINES]

    def _age(self) -> float | None:
        paths = [self.path / name for name in ("metrics.jsonl", "timeline.jsonl", "run.json")]
        times = [path.stat().st_mtime for path in paths if path.is_file()]
        return max(0.0, round(time.time() - max(times), 1)) if times else None

    def _patience(self) -> float:
        return max(SILENT_S, 10 * median(self._seconds)) if self._seconds else SILENT_S


def _planned(recipe_path: Path) -> int | None:
    try:
        text = recipe_path.read_text(encoding="utf-8", errors="replace")
        recipe = parse_yaml(text, str(recipe_path))
    except (OSError, ValueError):
        return None
    steps = recipe.get("steps") if isinstance(recipe, dict) else None
    return steps if isinstance(steps, int) else None
