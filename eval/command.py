"""The commands of this room: turn command-line text into settings, run, and print results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.compare import (
    changed_problems,
    compare,
    comparison_table,
    disagreement_table,
    disputed_problems,
    leaderboard_table,
)
from eval.plan import make_evaluation_plan
from eval.protocols import protocol_by_name
from eval.report import write_report
from eval.run import evaluate, rescore
from eval.settings import EvalSettings, parse_ks
from eval.targets import find_targets, label_of, tokenizer_settings
from rlvr.data import load_template
from rlvr.data.shown import shown_prompt
from rlvr.data.templates import template_names
from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.settings import read_recipe


def run_evaluation(
    settings: EvalSettings,
    model: ModelSettings,
    *,
    out: Path | None = None,
    ks: str | None = None,
    all_checkpoints: bool = False,
    show_prompt: bool = False,
) -> list[Path]:
    """Evaluate as the command line says; returns the folders."""
    targets = find_targets(model, all_checkpoints)
    if show_prompt:
        _show_prompts(settings, load_tokenizer(tokenizer_settings(targets[0])))
        return []
    if (note := prompt_of_training(settings, Path(model.path))) is not None:
        _console().print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    out = out or Path("evals") / label_of(model.path)
    return evaluate(settings, targets, out, ks=parse_ks(ks), console=_console())


def prompt_of_training(settings: EvalSettings, run: Path) -> str | None:
    """What to know where a run learnt from other prompts than it is asked here, or None."""
    recipe = run / "recipe.yaml"
    if settings.template is not None or not recipe.is_file():
        return None
    data = read_recipe(recipe).data.get("data")
    trained = data.get("template") if isinstance(data, dict) else None
    protocol = protocol_by_name(settings.protocol)
    asked = [protocol.template_for(name) for name in settings.benchmarks]
    if trained is None:
        return None
    learnt = load_template(trained).settings
    if all(learnt == one for one in asked):
        return None
    name = next((n for n in template_names() if load_template(n).settings == learnt), None)
    remedy = "give data.template of its recipe.yaml as a file to --template"
    if name is not None:
        remedy = f"--template {name} asks as in training"
    return (
        f"the run learnt from other prompts than the protocol {settings.protocol!r} asks with; "
        f"{remedy}"
    )


def run_scoring(
    folder: Path, grader: str | None, ks: str | None, workers: int, timeout: float
) -> None:
    """Grade again and print the table."""
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
    """Compare and print; also write the page if ``out`` is set."""
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
        console.print(
            f"report: {write_report(folders, out, compared)}", soft_wrap=True, highlight=False
        )


def _console() -> Console:
    """Standard output, wide enough for a table even if it is piped into a file."""
    console = Console()
    return console if console.width >= 110 else Console(width=110)


def _show_prompts(settings: EvalSettings, tokenizer: Any) -> None:  # noqa: ANN401
    """Print the first prompt of each benchmark with its decoding."""
    plan = make_evaluation_plan(settings, tokenizer, (), None)
    for benchmark in plan.benchmarks:
        tokens = len(benchmark.prompts[0])
        text = shown_prompt(tokenizer, benchmark.prompts[0])
        shown = f"{len(benchmark.problems)} problems, {benchmark.decoding}, {tokens} tokens"
        print(f"--- {benchmark.name}: {shown}\n{text}\n---")
