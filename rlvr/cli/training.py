"""The verbs around a run: train, quickstart, select, settings."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlvr.cli.options import DryRun, From, Resume
from rlvr.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from rlvr.runs.parent import Parent
    from rlvr.settings import Settings
    from rlvr.types import Problem


app = typer.Typer(rich_markup_mode=None)


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="YAML file (see recipes/); with --from it may be left out.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings that replace the recipe's, such as learner.lr=2e-6 or "
            "policy_loss.name=clip; `rlvr settings` lists all.",
        ),
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    dashboard: Annotated[
        bool,
        typer.Option("--dashboard", help="Show the run in a browser meanwhile (rlvr dashboard)."),
    ] = False,
    from_: From = None,
) -> None:
    """Train as a recipe says; the recipe's task (rl, preference, prm, ...) chooses the loop.

    A recipe may inherit from another: base: other.yaml. --dry-run prints the resolved whole.

    --from RUN@STEP begins a new run with weights, optimizer and place in the data of a checkpoint
    of RUN, and with whatever settings are changed (docs/going_on.md); without RECIPE, with RUN's.

    Example: rlvr train recipes/smollm2_arithmetic.yaml model.path=./smollm2 steps=20
    Example: rlvr train --from runs/first@100 learner.lr=5e-7 steps=200 output=runs/slower
    """
    from rlvr.settings import load_settings
    from rlvr.tasks.registry import task_of

    words = [*([] if recipe is None else [recipe]), *(overrides or [])]
    parent = None if from_ is None else _parent(from_)
    file = _recipe_file(words, parent)
    task = task_of(file, words)
    resolved = load_settings(task.schema, file, words)
    quiet_libraries()
    if dry_run:
        _check_launch(resolved)
        typer.echo(task.plan(resolved))
        if parent is not None:
            _show_branch(resolved, parent)
        return
    from rlvr.hub.background import uploading
    from rlvr.report import write_report
    from rlvr.report.beside import dashboard_beside
    from rlvr.runs.callers import CallerObjects
    from rlvr.runs.clock import process_began

    output: Path = getattr(resolved, "output")  # noqa: B009  (a recipe of any task has one)
    with dashboard_beside(output, typer.echo) if dashboard else nullcontext():
        caller = CallerObjects(began=process_began())
        folder = task.train(
            resolved, resume=resume, uploading=uploading, parent=parent, caller=caller
        )
    typer.echo(f"model:  {folder / 'model'}\nreport: {write_report(folder)}")


def _parent(text: str) -> "Parent":
    from rlvr.runs.parent import Parent

    return Parent.parse(text)


def _recipe_file(words: list[str], parent: "Parent | None") -> Path:
    """The recipe, taken off the command's words; without one that of the parent.

    Raises:
        ValueError: There is none.
    """
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        return Path(words.pop(0))
    if parent is not None:
        return parent.recipe
    raise ValueError(
        "give a recipe, rlvr train RECIPE.yaml [KEY=VALUE]..., or the run to branch from with "
        "--from RUN; recipes/ holds some"
    )


def _show_branch(recipe: Any, parent: "Parent") -> None:  # noqa: ANN401
    """Say where a branch would begin and what it changes.

    Raises:
        ValueError: It could not begin.
    """
    from rlvr.runs.parent import Branch
    from rlvr.runs.run_folder import check_other_folder

    check_other_folder(recipe.output, parent)
    branch = Branch.of(parent)
    branch.check(recipe)
    typer.echo(f"# branches after step {branch.step} from {branch.checkpoint}")
    for line in branch.changes(recipe):
        typer.echo(f"# changed: {line}")


def _check_launch(recipe: Any) -> None:  # noqa: ANN401  (of any task)
    """Refuse what the processes would refuse under the launcher that started this one.

    Raises:
        ValueError: The recipe does not go with them.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true", "yes")
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0") if deepspeed else "0"
    launched = recipe.zero_stage(int(stage) if stage.isdigit() else 0)
    for fault in recipe.launch_faults(processes, launched):
        raise ValueError(fault)


@app.command()
def quickstart(
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default in runs/.")
    ] = None,
    moe: Annotated[
        bool, typer.Option("--moe", help="A mixture of eight experts, two for each token.")
    ] = False,
) -> None:
    """Train a tiny model from nothing, in minutes, without a network or a GPU.

    It warms a 0.3-million-parameter Llama up on three-digit addition by imitation, improves it by
    reinforcement learning, and shows held-out accuracy before and after.

    With --moe the model is a mixture of experts of a million parameters: its routers are kept
    balanced, and the report shows how tokens go through it.
    """
    quiet_libraries()
    from rlvr.quickstart import quickstart as run

    name = f"quickstart{'-moe' if moe else ''}-seed{seed}"
    run(seed, out or Path("runs") / name, moe=moe)


@app.command()
def select(
    history: Annotated[Path, typer.Argument(help="Accuracy history file, or folder of a run.")],
    out: Annotated[Path, typer.Option(help="Data file to write, JSON lines.")],
    data: Annotated[
        Path | None,
        typer.Option(help="File of the problems; by default the run's own data."),
    ] = None,
    ranks: Annotated[
        str, typer.Option(help="Ranks to take, such as 1 or 1,2,13 or 1-16; 1 is the first.")
    ] = "1",
    by: Annotated[str, typer.Option(help="Ranking: variance of the accuracy over visits.")] = (
        "variance"
    ),
) -> None:
    """Pick training problems by how their accuracy varied over an earlier run.

    Example: rlvr select runs/full --ranks 1,13 --out data/pi1_pi13.jsonl
    """
    from rlvr.data import rank_by_variance, read_accuracy_history, write_selection

    if by != "variance":
        raise ValueError(f"--by {by!r} is unknown; the known one is variance")
    ranking = rank_by_variance(read_accuracy_history(history))
    problems = _problems_of(history, data)
    for found in write_selection(out, ranking, _whole_numbers(ranks), problems):
        typer.echo(
            f"rank {found.rank}: {found.id}  std {found.std:.4f}  mean {found.mean:.3f}  "
            f"{found.visits} visits"
        )


@app.command()
def settings(
    prefix: Annotated[
        str, typer.Argument(help="Show only settings that begin so, such as learner.")
    ] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of docs/settings.md.")
    ] = False,
    task: Annotated[
        str, typer.Option(help="Whose recipe; a task that is not there lists all.")
    ] = "rl",
) -> None:
    """List every setting of a recipe with its type, default and meaning."""
    from rlvr.tasks.registry import find_task

    show_settings(find_task(task).schema, prefix, markdown=markdown)


def show_settings(schema: "type[Settings]", prefix: str, *, markdown: bool) -> None:
    """Print the settings of a schema that begin with ``prefix``."""
    from rlvr.settings import INHERIT, describe, markdown_table

    found = [item for item in (INHERIT, *describe(schema)) if item.key.startswith(prefix)]
    if not found:
        raise ValueError(f"no setting begins with {prefix!r}; `rlvr settings` lists all")
    if markdown:
        typer.echo(markdown_table(found))
        return
    for item in found:
        default = f" = {item.default}" if item.default else ""
        typer.echo(f"{item.key} ({item.type}){default}\n    {item.help}")


def _problems_of(history: Path, data: Path | None) -> "list[Problem]":
    """The problems that a history is about: of a file, or of the run's recipe."""
    from rlvr.data import FileSource, load_problems
    from rlvr.rl.recipe import RLRecipe
    from rlvr.settings import load_settings

    if data is not None:
        return load_problems(FileSource(path=data))
    if not history.is_dir():
        raise ValueError("a history file says nothing of the problems' texts; give --data FILE")
    return load_problems(load_settings(RLRecipe, history / "recipe.yaml").data.source)


def _whole_numbers(text: str) -> list[int]:
    """1,2,5-7 as [1, 2, 5, 6, 7]."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"--ranks {text!r} is not a list such as 1 or 1,2,13 or 1-16")
        found += range(int(first), int(last or first) + 1)
    return found
