"""What a run leaves for people: metrics, sample completions, trackers, live progress.

``metrics.jsonl`` gets a line when a step is finished, and another of the same step when it was
evaluated or saved; readers merge lines of equal ``step``. ``timeline.jsonl`` says when each phase
of a step began and ended, ``accuracy.jsonl`` how many completions of each problem were right.
A run that is resumed drops the lines and files of steps after its checkpoint first: those steps are
done again, and come out the same.
"""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlvr.data import accuracy_counts
from rlvr.train.scoring import Scored

# Shown live, in this order: metric, label, format.
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
        total_steps: Length of the run.
        resumed_step: Steps that are already done; records after it are dropped.
        trackers: Names of experiment trackers.
        console: Where progress goes.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        *,
        resumed_step: int = 0,
        trackers: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        console: Console | None = None,
    ) -> None:
        self.folder, self.total, self.start = folder, total_steps, resumed_step
        self.console = console or Console()
        self.metrics_path = folder / "metrics.jsonl"
        self.timeline_path = folder / "timeline.jsonl"
        _drop_after(folder, resumed_step)
        self.trackers = [_start_tracker(name, folder, config or {}) for name in trackers]
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "RunLog":
        self.progress.start()
        self._steps = self.progress.add_task(
            "step", total=self.total, completed=self.start, figures=""
        )
        self._lanes = {"learner": self.progress.add_task("starting", total=None, figures="")}
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        for tracker in self.trackers:
            tracker.finish()

    def phase(
        self, name: str, done: int = 0, total: int | None = None, lane: str = "learner"
    ) -> None:
        """Show what is going on within a step; each lane (thread) has a line of its own."""
        if lane not in self._lanes:
            self._lanes[lane] = self.progress.add_task(name, total=None, figures="")
        self.progress.update(self._lanes[lane], description=name, completed=done, total=total)

    def span(self, lane: str, step: int, phase: str, begin: float, end: float) -> None:
        """Record when a phase of a step ran, in seconds since the epoch, in ``timeline.jsonl``."""
        times = {"begin": round(begin, 3), "end": round(end, 3)}
        row = {"step": step, "lane": lane, "phase": phase, **times}
        with self.timeline_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def say(self, text: str) -> None:
        """One line for the person watching."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation after ``step`` steps is recorded already."""
        return any(
            row["step"] == step and any(name.startswith("eval/") for name in row)
            for row in read_metrics(self.metrics_path)
        )

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Record figures of a step; several lines of one step add up to its record."""
        row = {"step": step, **{name: _rounded(value) for name, value in metrics.items()}}
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for tracker in self.trackers:
            tracker.log(metrics, step=step)
        figures = "  ".join(
            f"{label} {form.format(metrics[name])}"
            for name, label, form in _SHOWN
            if name in metrics
        )
        scores = [(name, value) for name, value in metrics.items() if name.endswith("/accuracy")]
        figures += "".join(f"  {name.split('/')[1]} {value:.3f}" for name, value in scores)
        self.progress.update(self._steps, completed=step)
        if figures:
            self.progress.update(self._steps, figures=figures)
        if scores or (figures and not self.console.is_terminal):
            self.say(f"step {step}/{self.total}  {figures}")

    def accuracy(self, step: int, groups: Sequence[Sequence[Scored]]) -> None:
        """Count a step's right completions by problem, in ``accuracy.jsonl``."""
        graded = ((i.completion.problem_id, i.grade.correct) for group in groups for i in group)
        with (self.folder / "accuracy.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "counts": accuracy_counts(graded)}) + "\n")

    def calibration(self, step: int, name: str, found: Mapping[str, Any]) -> None:
        """Keep how a reward model's probabilities agree with labels, in ``calibration.jsonl``."""
        with (self.folder / "calibration.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "set": name, **found}) + "\n")

    def completions(self, kind: str, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Keep completions of a step as JSON lines; ``kind`` names the folder."""
        if not rows:
            return
        path = self.folder / kind / f"step_{step:06d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class SilentLog(RunLog):
    """Takes everything and leaves nothing: of the processes of a job one keeps records."""

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

    def say(self, text: str) -> None:
        """Nothing."""

    def accuracy(self, step: int, groups: Sequence[Sequence[Scored]]) -> None:
        """Nothing."""

    def calibration(self, step: int, name: str, found: Mapping[str, Any]) -> None:
        """Nothing."""

    def evaluated(self, step: int) -> bool:
        """The first rank knows."""
        return False

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def completions(self, kind: str, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Nothing."""


def completion_row(
    item: Scored,
    step: int,
    tokenizer: Any,  # noqa: ANN401
    *,
    advantage: float | None = None,
    set_name: str | None = None,
) -> dict[str, Any]:
    """A completion as it is kept: text, verdict, and every token with its log-probability."""
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
        "correct": item.grade.correct,
        "extracted": item.grade.extracted,
        "reason": item.grade.reason,
        "finish_reason": completion.finish_reason,
        "advantage": advantage,
        "tokens": [tokenizer.decode([token]) for token in completion.token_ids],
        "logprobs": [round(value, 5) for value in completion.logprobs],
        "policy_version": completion.policy_version,
    }
    return row if set_name is None else {**row, "set": set_name}


def say(console: Console, text: str) -> None:
    """One line as it is: words of data sets and paths may look like rich's markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl`` (or timeline), without a last line cut short."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _drop_after(folder: Path, step: int) -> None:
    for path in folder.glob("*.jsonl"):
        kept = [row for row in read_metrics(path) if row["step"] <= step and step > 0]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
    for path in (*folder.glob("completions/step_*"), *folder.glob("evaluations/step_*")):
        if step == 0 or int(path.stem.removeprefix("step_")) > step:
            path.unlink()


def check_trackers(names: Sequence[str]) -> None:
    """See that the trackers are installed, before a run leaves anything behind.

    Raises:
        ValueError: One is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise ValueError(
                f"log.track names {name!r}, which is not installed; run: pip install 'rlvr[track]'"
            )


def _start_tracker(name: str, folder: Path, config: dict[str, Any]) -> Any:  # noqa: ANN401
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    tracker_class = LOGGER_TYPE_TO_CLASS[name]
    needs_folder = tracker_class.requires_logging_directory
    arguments = {"logging_dir": str(folder / name)} if needs_folder else {}
    tracker = tracker_class(folder.name, **arguments)
    tracker.start()
    tracker.store_init_configuration(_flat(config))
    return tracker


def _flat(config: Any, prefix: str = "") -> dict[str, str]:  # noqa: ANN401
    """Nested settings as dotted keys: trackers take no nested values."""
    if not isinstance(config, dict):
        return {prefix: str(config)}
    return {
        key: text
        for name, value in config.items()
        for key, text in _flat(value, f"{prefix}.{name}" if prefix else name).items()
    }


def _rounded(value: float) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.9g}")
