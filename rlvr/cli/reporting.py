"""The verbs that show runs: report, dashboard."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folders of runs, or folders that contain runs.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write; by default RUN/report.html, and for several runs "
            "comparison.html in the folder that contains them."
        ),
    ] = None,
) -> None:
    """Write a page about runs: one HTML file that needs no network.

    Of one run: its curves, and a browser of its completions. Of several: their curves laid over
    each other, what differs in their recipes, and their completions side by side.

    Example: rlvr report runs/grpo-seed0 runs/grpo-seed1 --out page.html
    """
    from rlvr.report import write_comparison, write_report
    from rlvr.report.found_runs import common_folder, find_runs, is_run

    if len(runs) == 1 and (is_run(runs[0]) or not runs[0].is_dir()):
        typer.echo(write_report(runs[0], out))
        return
    found = find_runs(runs)
    typer.echo(write_comparison(found, out or common_folder(found) / "comparison.html"))


@app.command()
def dashboard(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS",
            help="Folders that contain runs, or folders of runs.",
            show_default=False,
        ),
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 0,
    host: Annotated[str, typer.Option(help="Address of loopback to listen on.")] = "127.0.0.1",
    beside_run: Annotated[bool, typer.Option("--beside-run", hidden=True)] = False,
) -> None:
    """Show runs in a browser while they go on: the report's pages, renewed as values come in.

    It prints the address to open, with a key in it, and ends with Ctrl-C. It listens on this
    machine alone; from another, open a tunnel with ssh -L PORT:127.0.0.1:PORT THIS_MACHINE.

    Example: rlvr dashboard runs --port 8080
    """
    from rlvr.report.dashboard import run_until_stopped
    from rlvr.report.found_runs import check_folder

    if beside_run:
        run_until_stopped(runs, host, port, typer.echo, depth=1, while_input_is_open=True)
        return
    for folder in runs:
        check_folder(folder)
    run_until_stopped(runs, host, port, typer.echo)
