"""``rlvr.evaluate`` and ``rlvr.grade``: what ``rlvr eval`` and ``rlvr grade`` do, from Python."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import pandas as pd
from rich.console import Console

from eval.evaluation_folder import RESULTS, SCORES
from eval.run import evaluate as run_evaluation
from eval.settings import EvalSettings, build_settings
from eval.targets import find_targets, label_of
from reward import DEFAULT, Grade, VerifierPool
from reward.graders import grader_by_name
from rlvr.api.inputs import rows_of, tokenizer_of
from rlvr.api.quiet import as_found
from rlvr.api.report_path import ReportPath
from rlvr.api.settings_given import overrides_of
from rlvr.files import read_lines, write_lines
from rlvr.policy.in_memory import check_in_memory


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation as its folder holds it."""

    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        """Everything that was computed (``results.json``)."""
        found: dict[str, Any] = json.loads((self.folder / RESULTS).read_text(encoding="utf-8"))
        return found

    @property
    def scores(self) -> pd.DataFrame:
        """The headline figure of each benchmark, with standard error and 95 % interval."""
        benchmarks = self.results["benchmarks"]
        rows = {name: _headline(found) for name, found in benchmarks.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("benchmark")

    @property
    def samples(self) -> pd.DataFrame:
        """Every graded sample, a row each."""
        return pd.DataFrame(read_lines(self.folder / SCORES).objects)

    def report(self) -> ReportPath:
        """The page of the evaluation; last in a notebook's cell, it is shown below it."""
        return ReportPath(self.folder / "report.html")

    def __repr__(self) -> str:
        return f"<rlvr evaluation {str(self.folder)!r}>\n{self.scores}"

    def _repr_html_(self) -> str:
        return str(self.scores.to_html())


def evaluate(
    model: Any,  # noqa: ANN401
    benchmarks: Any = "math500",  # noqa: ANN401
    *,
    out: "str | PathLike[str] | None" = None,
    progress: bool = True,
    **settings: Any,  # noqa: ANN401
) -> EvaluationResult:
    """Measure a model on benchmarks or on rows of your own, as ``rlvr eval`` does.

    Every sample is kept in ``out`` as it finishes, and the same call goes on after an interruption.

    Args:
        model: A folder, Hub id, run, checkpoint, or a model of transformers in memory.
        benchmarks: Names of benchmarks (text with commas, or a list), rows with ``problem`` and
            ``answer``, or a mapping of names to rows or files.
        out: Folder; by default evals/MODEL.
        progress: Show progress and the table of results.
        settings: Any setting of an evaluation (docs/evaluation.md): ``samples=8``,
            ``temperature=0.6``, ``engine="vllm"``, ``**{"model.precision": "bfloat16"}``.

    Raises:
        ValueError: It cannot be run, or ``out`` holds an evaluation with other settings.
    """
    if isinstance(settings.get("engine"), str):
        settings["engine"] = {"name": settings["engine"]}
    with as_found(), _as_path(model) as path:
        folder = Path(out) if out is not None else Path("evals") / label_of(path)
        given = {"benchmarks": ",".join(_benchmarks(benchmarks, folder.parent))}
        more = overrides_of(EvalSettings, settings)
        resolved, model_settings = build_settings(path, given, more)
        targets, console = find_targets(model_settings), Console(quiet=not progress)
        (written,) = run_evaluation(resolved, targets, folder, console=console)
    return EvaluationResult(written)


@overload
def grade(
    response: str, answer: str, *, grader: str = ..., workers: int = ..., timeout: float = ...
) -> Grade: ...


@overload
def grade(
    response: list[str] | tuple[str, ...],
    answer: str | Sequence[str],
    *,
    grader: str = ...,
    workers: int = ...,
    timeout: float = ...,
) -> list[Grade]: ...


def grade(
    response: str | list[str] | tuple[str, ...],
    answer: str | Sequence[str],
    *,
    grader: str = "rlvr",
    workers: int = 1,
    timeout: float = 5.0,
) -> Grade | list[Grade]:
    """Say whether a response is right, or each of several.

    One response is graded in this process, where nothing ends a comparison that hangs. Several are
    graded by processes of their own, which are ended after ``timeout``.

    Args:
        response: What a model wrote, from which the answer is taken; or a list.
        answer: The reference; or a list, one for each response.
        grader: Name of the grader (docs/verifier.md, docs/domains.md).
        workers: Processes, for lists.
        timeout: Seconds that a verdict may take, for lists; later, the response counts as wrong.

    Raises:
        ValueError: The lists differ in length, or no grader has that name.
    """
    if isinstance(response, str):
        if isinstance(answer, int | float):
            raise ValueError(f"the answer {answer!r} is a number; give it as text, as written")
        if not isinstance(answer, str):
            raise ValueError(
                f"one response and {len(answer)} answers; give lists of the same length"
            )
        return grader_by_name(grader)(response, answer, DEFAULT)
    answers = [answer] * len(response) if isinstance(answer, str) else list(answer)
    if len(answers) != len(response):
        raise ValueError(
            f"{len(response)} responses and {len(answers)} answers; give one for each, or one text "
            "for all"
        )
    with VerifierPool(workers=workers, timeout=timeout, grader=grader) as pool:
        return pool.grade_many(list(zip(response, answers, strict=True)))


def _headline(found: Mapping[str, Any]) -> dict[str, Any]:
    estimate = found["avg"] if "avg" in found else found["greedy"]
    return {"metric": found["headline"], "problems": found["problems"], **estimate}


def _benchmarks(given: Any, beside: Path) -> list[str]:  # noqa: ANN401
    """Benchmarks as the command line names them; rows in memory become files."""
    if isinstance(given, str | PathLike):
        return [fspath(given)]
    if isinstance(given, Mapping):
        return [f"{name}={_file(str(name), rows, beside)}" for name, rows in given.items()]
    given = list(given)
    if given and all(isinstance(item, str | PathLike) for item in given):
        return [fspath(item) for item in given]
    return [f"rows={_file('rows', given, beside)}"]


def _file(name: str, rows: Any, beside: Path) -> Path:  # noqa: ANN401
    """The file of a benchmark; one of rows is named by its content, so that a second call with the
    same rows goes on with the same evaluation."""
    if isinstance(rows, str | PathLike):
        return Path(rows)
    found = rows_of(name, rows)
    digest = hashlib.sha256(json.dumps(found, default=str).encode()).hexdigest()[:12]
    path = beside / "rows" / f"{name}-{digest}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, found)
    return path


@contextmanager
def _as_path(model: Any) -> Iterator[str]:  # noqa: ANN401
    """The place of a model; one in memory is written to a folder meanwhile."""
    if isinstance(model, str | PathLike):
        yield fspath(model)
    elif hasattr(model, "folder"):  # a rlvr.RecordedRun
        yield str(model.folder)
    else:
        check_in_memory(model, adapters=True)
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / label_of(model.name_or_path or "model")
            model.save_pretrained(folder)
            tokenizer_of(model).save_pretrained(folder)
            yield str(folder)
