"""What stands behind the verbs: strings of the command line into settings, and results shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.benchmarks import BENCHMARKS
from eval.compare import (
    changed_problems,
    compare,
    comparison_table,
    disagreement_table,
    disputed_problems,
    leaderboard_table,
)
from eval.models import find_targets, tokenizer_settings
from eval.plan import EvalSettings, make_plan
from eval.report import write_report
from eval.run import evaluate, rescore
from rlvr.policy import ModelSettings, load_tokenizer
from rlvr.settings import load_settings


def run_evaluation(
    model: str,
    given: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    out: Path | None = None,
    ks: str | None = None,
    all_checkpoints: bool = False,
    show_prompt: bool = False,
) -> list[Path]:
    """Evaluate as the command line says; returns the folders."""
    settings, model_settings = build_settings(model, given, overrides)
    targets = find_targets(model_settings, all_checkpoints)
    if show_prompt:
        _show_prompts(settings, load_tokenizer(tokenizer_settings(targets[0])))
        return []
    return evaluate(
        settings, targets, out or Path("evals") / _name(model), ks=parse_ks(ks), console=_console()
    )


def build_settings(
    model: str, given: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[EvalSettings, ModelSettings]:
    """Flags and ``key=value`` overrides as settings; ``model.*`` goes to the model's.

    Raises:
        ValueError: An unknown setting or a value that it cannot take.
    """
    values = {name: value for name, value in given.items() if value is not None}
    values["benchmarks"] = benchmark_names(str(values["benchmarks"]))
    mine = [item for item in overrides if not item.startswith("model.")]
    models = [item.removeprefix("model.") for item in overrides if item.startswith("model.")]
    settings = load_settings(EvalSettings, values, mine)
    return settings, load_settings(ModelSettings, {"path": model}, models)


def benchmark_names(text: str) -> list[str]:
    """``a,b`` as a list; ``all`` is every benchmark there is."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("--benchmarks is empty; name some, or 'all'")
    return list(BENCHMARKS) if names == ["all"] else names


def parse_ks(text: str | None) -> list[int] | None:
    """``1,4,8`` as numbers.

    Raises:
        ValueError: They are no positive whole numbers.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--k {text!r}: give positive whole numbers parted by commas, such as 1,8")
    return sorted({int(part) for part in parts})


def run_scoring(
    folder: Path, grader: str | None, ks: str | None, workers: int, timeout: float
) -> None:
    """Grade again and show the table."""
    settings = EvalSettings(workers=workers, timeout=timeout)
    rescore(folder, settings, grader=grader, ks=parse_ks(ks), console=_console())


def run_comparison(
    folders: Sequence[Path],
    out: Path | None,
    tournaments: int,
    seed: int,
    epsilon: float = 0.01,
    delta: float = 0.3,
) -> None:
    """Compare and show; write the page where one is asked for."""
    compared = compare(folders, tournaments=tournaments, seed=seed, epsilon=epsilon, delta=delta)
    console = _console()
    console.print(comparison_table(compared))
    for line in changed_problems(compared):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if compared.standings:
        console.print(leaderboard_table(compared))
    if compared.disagreements:
        console.print(disagreement_table(compared))
        for line in disputed_problems(compared):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    for note in compared.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    if out is not None:
        console.print(f"report: {write_report(folders, out)}", soft_wrap=True, highlight=False)


def _console() -> Console:
    """Standard output, wide enough for a table also where it is piped into a file."""
    console = Console()
    return console if console.width >= 110 else Console(width=110)


def _name(model: str) -> str:
    path = Path(model)
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}-{path.name}"
    return path.resolve().name if path.exists() else model.replace("/", "--")


def _show_prompts(settings: EvalSettings, tokenizer: Any) -> None:  # noqa: ANN401
    """The first prompt of each benchmark with its decoding."""
    plan = make_plan(settings, tokenizer, (), None)
    for task in plan.tasks:
        shown = f"{len(task.problems)} problems, {task.decoding}, {len(task.prompts[0])} tokens"
        print(f"--- {task.name}: {shown}\n{task.texts[0]}\n---")
