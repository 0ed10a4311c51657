"""The verbs of converting: convert trl."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None)
convert = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Recipes from the settings of other trainers."
)
app.add_typer(convert, name="convert")


@convert.command()
def trl(
    config: Annotated[Path, typer.Argument(help="YAML file, as of trl grpo --config.")],
    out: Annotated[
        Path | None, typer.Option(help="Recipe to write; by default it is printed.")
    ] = None,
    trainer: Annotated[
        str | None, typer.Option(help="grpo, dpo or sft; told by the settings where possible.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that TRL would be launched with.")
    ] = 1,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of the data, where epochs become steps.")
    ] = None,
) -> None:
    """Write a recipe that means what a TRL configuration means, TRL's defaults included.

    What has no counterpart, or is not quite the same, is said line by line, here and at the top of
    the recipe. docs/from_trl.md has the settings side by side.

    Example: rlvr convert trl grpo.yaml --processes 8 --out recipe.yaml
    """
    from rlvr.cli.quiet import quiet_libraries
    from rlvr.convert.trl import convert_trl
    from rlvr.files import write_atomically

    if out is not None and out.exists():
        raise ValueError(f"--out {str(out)!r} exists; choose another file")
    quiet_libraries()
    found = convert_trl(config, trainer, processes=processes, rows=rows)
    command = f"rlvr train {out or 'recipe.yaml'}"
    text = found.text(config, command)
    if out is None:
        typer.echo(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text)
    for line in found.lines:
        typer.echo(line, err=out is None)
    if out is not None:
        typer.echo(f"recipe: {out}\nnext:   {command} --dry-run")
