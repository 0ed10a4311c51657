"""The verb that proves a run's books: audit."""

import json
from pathlib import Path
from typing import Annotated

import typer

from rlvr.cli.quiet import quiet_libraries

app = typer.Typer(rich_markup_mode=None)


@app.command()
def audit(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)
    ],
    sample: Annotated[
        int, typer.Option(min=0, help="Kept completions, at most, that are graded again.")
    ] = 1000,
    replay: Annotated[
        int,
        typer.Option(
            min=0,
            help="Completions, at most, that are sampled again (see rlvr replay), of those whose "
            "weights are at hand: those of a checkpoint, or of the beginning. Loads the model.",
        ),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check a run's ledger: every prompt drawn has one fate, and the rows agree with the files.

    It says what was checked and how many, a line each, and names each fault with its row and what
    was expected. It ends with 0 if the books are closed and with 1 if anything is wrong.

    Example: rlvr audit runs/grpo --sample 200 --replay 20
    """
    quiet_libraries()
    from rlvr.rl.audit import audit as audit_run

    found = audit_run(run, sample=sample, replay=replay)
    if as_json:
        typer.echo(json.dumps(found.record(), indent=1))
    else:
        for check in found.checks:
            typer.echo(str(check))
        for line in (*found.notes, *found.faults):
            typer.echo(line)
        typer.echo("the books are closed" if found.closed else f"{len(found.faults)} faults")
    if not found.closed:
        raise typer.Exit(1)
