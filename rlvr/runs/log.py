"""The records of a run for people: metrics, sample completions, trackers, live progress.

``metrics.jsonl`` gets a line when a step is finished, and another line for the same step when it
was evaluated or saved; readers merge lines of equal ``step``. ``timeline.jsonl`` records when each
phase of a step began and ended, ``accuracy.jsonl`` how many completions of each problem were right.
A resumed run first drops the lines and files of steps after its checkpoint, because those steps are
repeated with the same results.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from rlvr.data import accuracy_counts
from rlvr.files import (
    NOT_FINITE,
    append_line,
    read_lines,
    remove_leftovers,
    write_lines,
)
from rlvr.progress import PlainLines, is_watched, live_progress
from rlvr.runs.ledger import LEDGER
from rlvr.runs.scoring import ScoredCompletion
from rlvr.runs.tracker_settings import TrackSettings
from rlvr.runs.trackers import Trackers

# Files of a line for each step, or for what was done in it.
_RECORDS = (
    "metrics.jsonl",
    "timeline.jsonl",
    "accuracy.jsonl",
    "calibration.jsonl",
    "disputed.jsonl",
    "alarms.jsonl",
    "uploads.jsonl",
    LEDGER,
)
_MOST_DISPUTED = 32
"""Disputed completions of a step that are recorded; the counts in the metrics are of all."""
# The live display, in this order: metric, label, format.
_SHOWN = (
    ("reward/mean", "reward", "{:.3f}"),
    ("reward/correct", "right", "{:.3f}"),
    ("completion/length_mean", "length", "{:.1f}"),
    ("completion/truncated", "cut", "{:.2f}"),
    ("policy/entropy", "entropy", "{:.3f}"),
    ("preference/loss", "loss", "{:.4f}"),
    ("sft/loss", "loss", "{:.4f}"),
    ("sft/token_accuracy", "token", "{:.3f}"),
    ("preference/margin", "margin", "{:.3f}"),
    ("preference/reward_accuracy", "ranked", "{:.3f}"),
    ("learner/grad_norm", "grad", "{:.2f}"),
    ("time/step", "s/step", "{:.1f}"),
)


class RunLog:
    """Writes a run's records; a context manager around the training loop.

    Args:
        folder: The run folder.
        total_steps: Number of steps of the run.
        resumed_step: Number of steps already done; later records are dropped.
        track: Experiment trackers, which get what is written here.
        config: The recipe, for the trackers.
        console: Where progress is shown.

    Raises:
        ValueError: A tracker cannot start, and the run is new.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        *,
        resumed_step: int = 0,
        track: TrackSettings | None = None,
        config: dict[str, Any] | None = None,
        console: Console | None = None,
    ) -> None:
        self.folder, self.total, self.start = folder, total_steps, resumed_step
        self.finished = resumed_step
        self.console = console or Console()
        self.lines = PlainLines(self.console)
        self.metrics_path = folder / "metrics.jsonl"
        self.timeline_path = folder / "timeline.jsonl"
        self._recorded: dict[str, float] = {}
        _drop_after(folder, resumed_step, self.console)
        self.trackers = Trackers(
            track or TrackSettings(), folder, config or {}, resumed_step, self.notify
        )
        self.progress = live_progress(
            self.console,
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )

    def __enter__(self) -> "RunLog":
        self.progress.start()
        self.lines.__enter__()
        self._steps = self.progress.add_task(
            "step", total=self.total, completed=self.start, figures=""
        )
        self._lanes = {"learner": self.progress.add_task("starting", total=None, figures="")}
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.progress.stop()
        self.lines.__exit__()
        self.trackers.finish(error)

    def phase(
        self, name: str, done: int = 0, total: int | None = None, lane: str = "learner"
    ) -> None:
        """Show the current phase of a step; each lane (thread) has a separate line."""
        if lane not in self._lanes:
            self._lanes[lane] = self.progress.add_task(name, total=None, figures="")
        self.progress.update(self._lanes[lane], description=name, completed=done, total=total)
        after = f"after step {self.finished}, " if self.finished else ""
        self.lines.show(f"{after}{name}", done, total or 0)

    def span(self, lane: str, step: int, phase: str, begin: float, end: float) -> None:
        """Record in ``timeline.jsonl`` when a phase of a step ran, in seconds since the epoch."""
        times = {"begin": round(begin, 3), "end": round(end, 3)}
        append_line(self.timeline_path, {"step": step, "lane": lane, "phase": phase, **times})

    def notify(self, text: str) -> None:
        """Print one line for the person who watches the run."""
        notify(self.console, text)
        self.lines.rest()

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation after ``step`` steps is already recorded."""
        return any(
            row.get("step") == step and any(name.startswith("eval/") for name in row)
            for row in read_metrics(self.metrics_path)
        )

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of a step; several lines of one step are merged into its record."""
        if self.trackers.failures:
            metrics = metrics | {"log/tracker_failures": self.trackers.failures}
        row = {"step": step, **{name: _rounded(value) for name, value in metrics.items()}}
        self._recorded = (self._recorded if self._recorded.get("step") == step else {}) | row
        append_line(self.metrics_path, row, sync=True)
        self.trackers.log(step, metrics)
        figures = "  ".join(
            f"{label} {form.format(metrics[name])}"
            for name, label, form in _SHOWN
            if name in metrics
        )
        scores = [(name, value) for name, value in metrics.items() if _is_score(name, metrics)]
        figures += "".join(f"  {name.split('/')[1]} {value:.3f}" for name, value in scores)
        self.finished = step
        self.progress.update(self._steps, completed=step)
        if figures:
            self.progress.update(self._steps, figures=figures)
        if scores or (figures and not is_watched(self.console)):
            self.notify(f"step {step}/{self.total}  {figures}")

    def recorded(self, step: int) -> dict[str, float]:
        """The metrics of a step, where it is the one that was recorded last."""
        row = self._recorded if self._recorded.get("step") == step else {}
        return {name: value for name, value in row.items() if name != "step"}

    def accuracy(self, step: int, groups: Sequence[Sequence[ScoredCompletion]]) -> None:
        """Record a step's right completions by problem in ``accuracy.jsonl``."""
        flat = [item for group in groups for item in group]
        graded = [(i.completion.problem_id, i.correct) for i in flat if i.correct is not None]
        row = {"step": step, "counts": accuracy_counts(graded)}
        append_line(self.folder / "accuracy.jsonl", row)

    def disputed(self, step: int, items: Sequence[ScoredCompletion]) -> None:
        """Record in ``disputed.jsonl`` the completions whose verdict a second judge contradicts."""
        rows = [disputed_row(item, step) for item in items if item.disputed]
        for row in rows[:_MOST_DISPUTED]:
            append_line(self.folder / "disputed.jsonl", row)

    def alarm(self, row: Mapping[str, Any]) -> None:
        """Record in ``alarms.jsonl`` that an alarm began or ended."""
        append_line(self.folder / "alarms.jsonl", dict(row))

    def calibration(self, step: int, name: str, found: Mapping[str, Any]) -> None:
        """Record the calibration of a reward model's probabilities in ``calibration.jsonl``."""
        append_line(self.folder / "calibration.jsonl", {"step": step, "set": name, **found})

    def completions(self, kind: str, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write completions of a step as JSON lines; ``kind`` names the folder."""
        if not rows:
            return
        self.trackers.completions(kind, step, rows)
        path = self.folder / kind / f"step_{step:06d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_lines(path, rows)


class SilentLog(RunLog):
    """A log that records nothing, because only one process of a job keeps records."""

    def __init__(self) -> None:
        pass

    def __enter__(self) -> "SilentLog":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def phase(
        self, name: str, done: int = 0, total: int | None = None, lane: str = "learner"
    ) -> None:
        """Nothing."""

    def span(self, lane: str, step: int, phase: str, begin: float, end: float) -> None:
        """Nothing."""

    def notify(self, text: str) -> None:
        """Nothing."""

    def accuracy(self, step: int, groups: Sequence[Sequence[ScoredCompletion]]) -> None:
        """Nothing."""

    def disputed(self, step: int, items: Sequence[ScoredCompletion]) -> None:
        """Nothing."""

    def calibration(self, step: int, name: str, found: Mapping[str, Any]) -> None:
        """Nothing."""

    def alarm(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def evaluated(self, step: int) -> bool:
        """False; rank 0 knows."""
        return False

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def completions(self, kind: str, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Nothing."""


def completion_row(
    item: ScoredCompletion,
    step: int,
    tokenizer: Any,  # noqa: ANN401
    *,
    advantage: float | None = None,
    set_name: str | None = None,
) -> dict[str, Any]:
    """A completion as recorded: text, verdict, and every token with its log-probability."""
    completion = item.completion
    row = {
        "step": step,
        "problem_id": completion.problem_id,
        "group": completion.group_id,
        "sample": completion.sample_index,
        "prompt": tokenizer.decode(list(completion.prompt_ids)),
        "response": item.response,
        "answer": item.answer,
        "reward": item.reward,
        "rewards": item.rewards,
        "correct": item.correct,
        "extracted": None if item.grade is None else item.grade.extracted,
        "reason": None if item.grade is None else item.grade.reason,
        "finish_reason": completion.finish_reason,
        "advantage": advantage,
        "tokens": [tokenizer.decode([token]) for token in completion.token_ids],
        "logprobs": [round(value, 5) for value in completion.logprobs],
        "policy_version": completion.policy_version,
    }
    if completion.turns:
        row["turns"] = [[turn.start, turn.stop, turn.reward] for turn in completion.turns]
    if item.second is not None and item.second.grade is not None:
        row |= {"second_opinion": _opinion(item), "second_reason": item.second.grade.reason}
    row |= {name: value for name, value in item.extra.items() if name not in row}
    return row if set_name is None else {**row, "set": set_name}


def _opinion(item: ScoredCompletion) -> str:
    if item.second is None or item.second.says is None:
        return "cannot say"
    return "contradicts" if item.disputed else "agrees"


def disputed_row(item: ScoredCompletion, step: int) -> dict[str, Any]:
    """A completion on which two judges disagree, with what each has to say.

    Of each verdict: ``correct``, ``extracted``, ``path`` (what decided), ``reason`` and
    ``certainty`` (what a correct verdict rests on).
    """
    assert item.grade is not None
    assert item.second is not None
    second = item.second.grade
    assert second is not None
    completion = item.completion
    names = ("correct", "extracted", "path", "reason", "certainty")
    return {
        "step": step,
        "problem_id": completion.problem_id,
        "group": completion.group_id,
        "sample": completion.sample_index,
        "response": item.response,
        "answer": item.answer,
        "reward": item.reward,
        "verdict": {name: getattr(item.grade, name) for name in names},
        "second": {name: getattr(second, name) for name in names},
    }


def _is_score(name: str, metrics: Mapping[str, float]) -> bool:
    """Whether it is the main figure of an evaluation set."""
    whole = name.removesuffix("/reward")
    return name.endswith("/accuracy") or (whole != name and f"{whole}/accuracy" not in metrics)


def notify(console: Console, text: str) -> None:
    """Print one line without markup, because texts and paths may look like rich's markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl`` (or timeline), without an incomplete last line.

    Figures that are not finite are written as text, and are numbers again here.
    """
    return [
        {name: float(value) if value in NOT_FINITE else value for name, value in row.items()}
        for row in read_lines(path).objects
    ]


def _drop_after(folder: Path, step: int, console: Console) -> None:
    """Drop the records of steps after ``step``; other files of the folder are the user's."""
    remove_leftovers(folder, folder / "completions", folder / "evaluations")
    for path in (folder / name for name in _RECORDS if (folder / name).is_file()):
        lines = read_lines(path)
        steps = [(row, row.get("step")) for row in lines.objects]
        known = [(row, found) for row, found in steps if isinstance(found, int)]
        lost = len(lines.unreadable) + len(steps) - len(known)
        if lost:
            notify(console, f"{path}: {lost} lines that are no records were dropped")
        kept = [row for row, found in known if found <= step and step > 0]
        write_lines(path, kept)
    for path in (*folder.glob("completions/step_*"), *folder.glob("evaluations/step_*")):
        found = re.fullmatch(r"step_(\d+)\.jsonl", path.name)
        if found and (step == 0 or int(found[1]) > step):
            path.unlink()


def _rounded(value: float) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.9g}")
