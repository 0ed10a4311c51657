"""A run as its folder holds it: figures, completions, model and report as Python objects."""

from functools import cached_property
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rlvr.api.quiet import as_found
from rlvr.api.report_path import ReportPath
from rlvr.files import read_lines
from rlvr.policy.loading import load_causal_lm, load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.runs.log import read_metrics
from rlvr.runs.run_folder import contains_run
from rlvr.settings import Settings, load_settings
from rlvr.tasks.registry import task_of

if TYPE_CHECKING:
    from rlvr.api.measuring import EvaluationResult


class RecordedRun:
    """A run that has ended, was stopped, or still goes on elsewhere; read from its folder.

    Args:
        folder: The run folder.
        model: The run's final model, where it is in memory already.

    Raises:
        ValueError: There is no run in the folder.
    """

    def __init__(self, folder: "str | PathLike[str]", model: Any = None) -> None:  # noqa: ANN401
        self.folder = Path(folder)
        """The run folder."""
        if not contains_run(self.folder):
            raise ValueError(
                f"{str(self.folder)!r} holds no run (it has no recipe.yaml); give the output "
                "folder of one"
            )
        self._model = model

    def __repr__(self) -> str:
        return f"<rlvr run {str(self.folder)!r}: {self._state()}>"

    def _repr_html_(self) -> str:
        metrics = self.metrics
        shown = metrics.tail(1).dropna(axis=1).T.to_html() if len(metrics) else ""
        return f"<p>{escape(str(self.folder))}: {escape(self._state())}</p>{shown}"

    def _state(self) -> str:
        ended = "finished" if (self.folder / "model").is_dir() else "no final model"
        steps = int(self.metrics.index.max()) if len(self.metrics) else 0
        return f"task {self.task}, {steps} steps, {ended}"

    @property
    def task(self) -> str:
        """What was trained: rl, sft, ..."""
        return task_of(self.folder / "recipe.yaml").name

    @cached_property
    def recipe(self) -> Settings:
        """Every setting of the run, as attributes: ``run.recipe.learner.lr``."""
        path = self.folder / "recipe.yaml"
        return load_settings(task_of(path).schema, path)

    @property
    def metrics(self) -> pd.DataFrame:
        """What was logged, a row a step (0 is before training); docs/metrics.md says what it is."""
        merged: dict[int, dict[str, Any]] = {}
        for row in read_metrics(self.folder / "metrics.jsonl"):
            merged.setdefault(int(row["step"]), {}).update(row)
        rows = [merged[step] for step in sorted(merged)]
        return pd.DataFrame(rows, columns=None if rows else ["step"]).set_index("step")

    def completions(self, step: int | None = None) -> pd.DataFrame:
        """Training completions that were kept, a row each: prompt, response, reward, tokens, ...

        Args:
            step: Of this step alone; None is of all.

        Raises:
            ValueError: None were kept of that step.
        """
        return self._rows("completions", step)

    def evaluations(self, step: int | None = None) -> pd.DataFrame:
        """Answers to the problems of evaluation sets, as :meth:`completions`; step 0 is before
        training."""
        return self._rows("evaluations", step)

    def _rows(self, kind: str, step: int | None) -> pd.DataFrame:
        files = sorted((self.folder / kind).glob("step_*.jsonl"))
        if step is not None:
            wanted = f"step_{step:06d}"
            known = [path.stem for path in files]
            if wanted not in known:
                steps = ", ".join(str(int(name.removeprefix("step_"))) for name in known) or "none"
                raise ValueError(f"no {kind} were kept of step {step}; the steps kept are: {steps}")
            files = [path for path in files if path.stem == wanted]
        return pd.DataFrame([row for path in files for row in read_lines(path).objects])

    def report(self, out: "str | PathLike[str] | None" = None) -> ReportPath:
        """Write the run's report, one HTML page, and return its path.

        Last in a notebook's cell, the page is shown below it.
        """
        from rlvr.report import write_report

        return ReportPath(write_report(self.folder, None if out is None else Path(out)))

    @property
    def model(self) -> Any:  # noqa: ANN401
        """The final model, of transformers: the one given if it was in memory, else loaded once.

        Of a reward model it is the language model, without the head.

        Raises:
            ValueError: The run has none yet.
        """
        if self._model is None:
            with as_found():
                self._model = load_causal_lm(self._settings())
        return self._model

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """The tokenizer of the final model."""
        with as_found():
            return load_tokenizer(self._settings())

    def _settings(self) -> ModelSettings:
        return ModelSettings(path=str(self.folder.absolute()))

    def evaluate(self, benchmarks: Any = "math500", **settings: Any) -> "EvaluationResult":  # noqa: ANN401
        """Measure the final model; see :func:`rlvr.evaluate`."""
        from rlvr.api.measuring import evaluate

        return evaluate(self, benchmarks, **settings)


def load(folder: "str | PathLike[str]") -> RecordedRun:
    """Open the folder of a run, however it was started.

    Raises:
        ValueError: There is no run in it.
    """
    return RecordedRun(folder)
