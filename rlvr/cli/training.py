"""The verbs around a run: train, quickstart, report, select, settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvr.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from rlvr.settings import Settings
    from rlvr.types import Problem


app = typer.Typer(rich_markup_mode=None)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file (see recipes/).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings that replace the recipe's, such as learner.lr=2e-6 or "
            "policy_loss.name=clip; `rlvr settings` lists all.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved recipe and derived numbers, then stop."),
    ] = False,
) -> None:
    """Train as a recipe says; the recipe's task (rl, preference, prm, reward_model) chooses
    the loop.

    Example: rlvr train recipes/smollm2_arithmetic.yaml model.path=./smollm2 steps=20
    """
    from rlvr.settings import load_settings
    from rlvr.train.tasks import task_of

    task = task_of(recipe, overrides or [])
    resolved = load_settings(task.schema, recipe, overrides or [])
    if dry_run:
        typer.echo(task.plan(resolved))
        return
    quiet_libraries()
    from rlvr.report import write_report

    folder = task.train(resolved, resume=resume)
    typer.echo(f"model:  {folder / 'model'}\nreport: {write_report(folder)}")


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
    from rlvr.train.quickstart import quickstart as run

    name = f"quickstart{'-moe' if moe else ''}-seed{seed}"
    run(seed, out or Path("runs") / name, moe=moe)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write; by default RUN/report.html.")
    ] = None,
) -> None:
    """Write a run's report: one HTML page with curves and a browser of completions."""
    from rlvr.report import write_report

    typer.echo(write_report(run, out))


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
    from rlvr.data import rank_by_variance, read_history, write_selection

    if by != "variance":
        raise ValueError(f"--by {by!r} is unknown; the known one is variance")
    ranking = rank_by_variance(read_history(history))
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
    from rlvr.train.tasks import find_task

    show_settings(find_task(task).schema, prefix, markdown=markdown)


def show_settings(schema: "type[Settings]", prefix: str, *, markdown: bool) -> None:
    """Print the settings of a schema that begin with ``prefix``."""
    from rlvr.settings import describe, markdown_table

    found = [item for item in describe(schema) if item.key.startswith(prefix)]
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
    from rlvr.settings import load_settings
    from rlvr.train.recipe import RLRecipe

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
