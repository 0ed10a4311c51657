"""Alarms: lines that say when a run goes wrong, with their evidence, and what is to be done.

After every step each alarm reads a figure (:mod:`rlvr.runs.alarm_readings`). It begins when that is
above its threshold in several steps in a row, and ends when it is below four fifths of it in as
many; in between it holds. Steps without a reading change nothing.

Where an alarm stands follows from the metrics of the steps alone. So a run that is resumed reads
``metrics.jsonl`` again instead of keeping a state, and its alarms begin and end where they would
have without the interruption. Rank 0, which keeps the records, decides; the others are told where
an action depends on it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlvr.runs.alarm_readings import ALARMS, MISMATCH, Alarm, Past, Reading, Row, merged
from rlvr.runs.alarm_settings import AlarmRule, AlarmSettings
from rlvr.runs.base_run import BaseRun
from rlvr.runs.collectives import on_rank_zero
from rlvr.runs.log import read_metrics

RELEASE = 0.8
"""Share of its threshold below which an alarm's figure counts towards its end."""
_TF32_MISMATCH = 1e-2
_PAGE = "docs/alarms.md"


@dataclass(frozen=True, slots=True)
class Change:
    """The begin or the end of an alarm."""

    name: str
    event: Literal["begins", "ends"]
    step: int
    since: int
    rule: AlarmRule
    reading: Reading

    def row(self) -> dict[str, Any]:
        """As a line of ``alarms.jsonl``."""
        return {
            "step": self.step,
            "alarm": self.name,
            "event": self.event,
            "since": self.since,
            "action": self.rule.action,
            "figure": float(f"{self.reading.figure:.6g}"),
            "above": self.rule.above,
            "evidence": self.reading.says,
            "advice": ALARMS[self.name].advice,
        }

    def line(self) -> str:
        """As a person is told."""
        says, page = self.reading.says, f"{_PAGE}#{self.name}"
        if self.event == "ends":
            held = self.step - self.since
            return f"alarm {self.name} ends at step {self.step}, after {held} steps: {says}"
        text = f"alarm {self.name} begins at step {self.step}: {says}"
        bound = f"figure {self.reading.figure:.3g} above {self.rule.above:.3g}"
        count = f" in {self.rule.steps} readings" if self.rule.steps != 1 else ""
        return f"{text} ({bound}{count}); {ALARMS[self.name].advice}; {page}{self._consequence}"

    @property
    def _consequence(self) -> str:
        if self.rule.action == "stop":
            return "; the run ends here"
        return "; this step's checkpoint is kept" if self.rule.action == "save" else ""


@dataclass
class Watch:
    """One alarm over the steps of a run.

    Attributes:
        rule: Complete, without nulls.
        since: The step at which it began, while it holds.
        count: Readings in a row that speak for a change.
    """

    name: str
    alarm: Alarm
    rule: AlarmRule
    since: int | None = None
    count: int = 0

    def take(self, step: int, row: Row, past: Past) -> Change | None:
        """Read a step; a change, if it brings one."""
        reading = self.alarm.read(step, row, past)
        if reading is None:
            return None
        assert self.rule.above is not None
        assert self.rule.steps is not None
        if self.since is None:
            speaks = reading.figure > self.rule.above
        else:
            speaks = reading.figure < RELEASE * self.rule.above
        self.count = self.count + 1 if speaks else 0
        if self.count < self.rule.steps:
            return None
        self.count = 0
        return self._change(step, reading)

    def _change(self, step: int, reading: Reading) -> Change:
        if self.since is None:
            self.since = step
            return Change(self.name, "begins", step, step, self.rule, reading)
        since, self.since = self.since, None
        return Change(self.name, "ends", step, since, self.rule, reading)


@dataclass
class Watches:
    """All alarms that are not off, and what they know of the steps so far."""

    watches: list[Watch]
    past: Past = field(default_factory=Past)

    def take(self, step: int, row: Row) -> list[Change]:
        """Read a step with every alarm; the changes that it brings."""
        changes = [watch.take(step, row, self.past) for watch in self.watches]
        self.past.add(step, row)
        return [change for change in changes if change is not None]

    def marks(self, changes: Sequence[Change]) -> dict[str, float]:
        """``alarm/NAME``: 1 while it holds, 0 at the step where it ends."""
        holding = {f"alarm/{watch.name}": 1.0 for watch in self.watches if watch.since is not None}
        return holding | {f"alarm/{c.name}": 0.0 for c in changes if c.event == "ends"}


def watches(settings: AlarmSettings, precision: str = "float32", device: str = "cpu") -> Watches:
    """The alarms that settings ask for.

    Args:
        settings: Of a recipe.
        precision: Of the policy, which says how much engine and learner may differ.
        device: Type of the device that it is on.
    """
    defaults = dict(ALARMS)
    bound = MISMATCH[precision]
    if device == "cuda":
        bound = max(bound, _TF32_MISMATCH)
    found = []
    for name in type(settings).model_fields:
        rule: AlarmRule = getattr(settings, name)
        above = bound if name == "mismatch" else defaults[name].above
        complete = {
            "above": above if rule.above is None else rule.above,
            "steps": rule.steps or defaults[name].steps,
        }
        if rule.action != "off":
            found.append(Watch(name, defaults[name], rule.model_copy(update=complete)))
    return Watches(found)


def replay(rows: Sequence[Mapping[str, Any]], taken: Watches) -> Iterator[list[Change]]:
    """The changes of each step of a ``metrics.jsonl``, in order."""
    for step, row in merged(rows).items():
        yield taken.take(step, row)


@dataclass(frozen=True, slots=True)
class Asked:
    """What alarms that began in a step ask of the run."""

    stop: bool = False
    save: tuple[str, ...] = ()
    """Alarms for which the step's checkpoint is kept."""


class RunAlarms:
    """The alarms of a run in progress; rank 0 has them.

    Args:
        run: Restored to where it goes on, its records open.
    """

    def __init__(self, run: BaseRun) -> None:
        self.run = run
        settings, model = run.recipe.alarms, run.recipe.model
        self._watches = watches(settings, model.precision, run.policy.device.type)
        self._acting = any(w.rule.action in ("stop", "save") for w in self._watches.watches)

    def resume(self) -> Asked:
        """Take in the steps that are recorded.

        A run that was stopped after its last step and before its alarms were told tells them now.
        """
        return self._decided(self._read_again)

    def check(self) -> Asked:
        """Read the step that has been recorded; collective where an action may follow."""
        return self._decided(lambda: self._tell(self.run.log.recorded(self.run.step)))

    def _decided(self, read: Callable[[], list[Change]]) -> Asked:
        if not self._acting:
            if self.run.ranks.first:
                read()
            return Asked()
        asked = on_rank_zero(self.run.ranks, lambda: _actions(read()))
        return Asked(asked[0], tuple(asked[1]))

    def _read_again(self) -> list[Change]:
        steps = merged(read_metrics(self.run.folder / "metrics.jsonl"))
        last = steps.pop(self.run.step, None)
        for step, row in steps.items():
            self._watches.take(step, row)
        if last is None or not self.run.step:
            return self._watches.take(0, last) if last else []
        if not any(name.startswith("alarm/") for name in last):
            return self._tell(last)
        # They were told, and a run that was stopped for one is meant to go on now.
        changes = self._watches.take(self.run.step, last)
        return [change for change in changes if change.rule.action != "stop"]

    def _tell(self, row: Row) -> list[Change]:
        changes = self._watches.take(self.run.step, row)
        marks = self._watches.marks(changes)
        with self.run.signals.shield():
            for change in changes:
                self.run.log.alarm(change.row())
                self.run.log.notify(change.line())
            if marks:
                self.run.log.step(self.run.step, marks)
        return changes


def _actions(changes: Sequence[Change]) -> tuple[bool, list[str]]:
    """As JSON values, for the other ranks."""
    begun = [change for change in changes if change.event == "begins"]
    saving = [change.name for change in begun if change.rule.action == "save"]
    return any(change.rule.action == "stop" for change in begun), saving
