"""The verb of grids: sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvr.cli.launching import Container, JobOptions, SiteFile, SiteOptions
from rlvr.cli.options import RecipeFile, grouped
from rlvr.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from launch.job import Job
    from rlvr.sweep.grid import Sweep

app = typer.Typer(rich_markup_mode=None)


@app.command()
@grouped
def sweep(
    recipe: RecipeFile,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE[,VALUE]...]...",
            help="Settings; each with several values, such as seed=0,1,2, is an axis of the grid.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs' folders; by default sweeps/RECIPE.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their steps, then stop.")
    ] = False,
    collect: Annotated[
        bool, typer.Option("--collect", help="Start nothing: write table and page of what is done.")
    ] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Queue a SLURM array, a task for each run.")
    ] = False,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Tasks of the array that may run at the same time.")
    ] = None,
    *,
    of_job: JobOptions,
    site: SiteFile = None,
    of_site: SiteOptions,
    container: Container = None,
) -> None:
    """Train a recipe with every combination of some settings, one run after another.

    Commas stand between values as YAML has them: losses=[{name: sigmoid}] is one. Runs that are
    done are skipped by the same command, those interrupted go on. It ends with a table of final
    metrics, mean and standard deviation over seeds, and a page that compares the runs
    (docs/sweep.md).
    The options from --nodes on are of --slurm, as of rlvr launch.

    Example: rlvr sweep recipes/smollm2_arithmetic.yaml seed=0,1,2 learner.lr=1e-6,3e-6
    """
    from rlvr.sweep.grid import check_sweep, plan_sweep

    quiet_libraries()
    planned = plan_sweep(recipe, values or [], out or Path("sweeps") / recipe.stem)
    if collect:
        _summarise(planned)
        return
    check_sweep(planned)
    jobs = _jobs(planned, of_job, site, of_site, container) if slurm else None
    if dry_run:
        _list(planned)
    elif jobs is not None:
        _submit(planned, jobs, at_once)
    else:
        _run(planned)


def _run(planned: "Sweep") -> None:
    from rlvr.sweep.local import InterruptedSweep, run_sweep

    try:
        failed = run_sweep(planned, typer.echo)
    except InterruptedSweep as stopped:
        raise typer.Exit(128 + stopped.signal_number) from None
    _summarise(planned)
    if failed:
        typer.echo(f"{len(failed)} of {len(planned.runs)} runs failed: {', '.join(failed)}")
        raise typer.Exit(1)


def _list(planned: "Sweep") -> None:
    from rlvr.sweep.state import run_state, steps_of

    total = left = 0
    for number, run in enumerate(planned.runs, 1):
        steps, state = steps_of(planned, run), run_state(run)
        total += steps
        left += 0 if state.finished else max(0, steps - state.done)
        typer.echo(f"[{number}/{len(planned.runs)}] {run.folder}: {steps} steps, {state.text}")
    typer.echo(f"{len(planned.runs)} runs, {total} steps altogether, {left} of them left")


def _summarise(planned: "Sweep") -> None:
    """Write and print what was found.

    Raises:
        ValueError: No run has begun.
    """
    from importlib import import_module

    from rlvr.sweep.summary import CSV_FILE, JSON_FILE, PAGE, write_summary

    begun = [run.folder for run in planned.runs if (run.folder / "metrics.jsonl").is_file()]
    if not begun:
        raise ValueError(f"no run in {str(planned.out)!r} has begun; there is nothing to compare")
    typer.echo(write_summary(planned))
    page = import_module("rlvr.report").write_comparison(begun, planned.out / PAGE)
    typer.echo(f"table: {planned.out / CSV_FILE}, {planned.out / JSON_FILE}\npage:  {page}")


def _jobs(
    planned: "Sweep",
    of_job: JobOptions,
    site: Path | None,
    of_site: SiteOptions,
    container: str | None,
) -> "list[Job]":
    from launch.settings import load_launch
    from rlvr.sweep.array import build_jobs
    from rlvr.sweep.state import run_state

    settings = load_launch(vars(of_job), site, vars(of_site), container)
    left = [run for run in planned.runs if not run_state(run).finished]
    return build_jobs(planned, left, settings)


def _submit(planned: "Sweep", jobs: "list[Job]", at_once: int | None) -> None:
    from rlvr.sweep.array import submit_array

    if not jobs:
        typer.echo("all runs are finished; --collect writes table and page")
        return
    number, script = submit_array(planned, jobs, at_once)
    typer.echo(
        f"array {number} of {len(jobs)} jobs is queued\nscript: {script}\n"
        f"state:  squeue --job {number}\nend:    scancel {number}\n"
        "then:   the same command with --collect instead of --slurm"
    )
