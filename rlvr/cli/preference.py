"""The verbs of preferences: logic (decompile, compile, lattice) and pairs."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(rich_markup_mode=None)

logic_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Preference losses as logic: read an equation, write a loss as formulas, see them all.",
)
app.add_typer(logic_app, name="logic")


@logic_app.command()
def decompile(
    equation: Annotated[str, typer.Argument(help='Such as "Pw*(1-Pl) / (Pl*(1-Pw))".')],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a loss equation means: its formulas, a reading, and which known loss it is."""
    from rlvr.preference.explain import explain_equation

    _show_logic(explain_equation(equation), as_json)


@logic_app.command("compile")
def compile_structure(
    core: Annotated[str, typer.Option("--P", help='Core formula, such as "l -> w".')],
    condition: Annotated[str, typer.Option("--P_C", help="Conditioning constraint.")] = "true",
    added: Annotated[str, typer.Option("--P_A", help="Additive constraint.")] = "false",
    at: Annotated[str | None, typer.Option(help="A point, such as Pw=.6,Pl=.3.")] = None,
    form: Annotated[str, typer.Option("--f", help="logistic, squared or hinge.")] = "logistic",
    beta: Annotated[float, typer.Option(help="f's parameter, above 0.")] = 1.0,
    reference: Annotated[
        bool, typer.Option("--reference", help="Take the form with a reference model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Turn formulas into a loss equation, and into numbers at a point."""
    from rlvr.preference.explain import compile_formulas

    found = compile_formulas(
        core, condition, added, at=at, form=form, beta=beta, reference=reference
    )
    _show_logic(found, as_json)


@logic_app.command()
def lattice(
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
) -> None:
    """Draw the landscape of losses as one HTML page."""
    from rlvr.report.lattice import write_lattice

    typer.echo(write_lattice(out))


def _show_logic(found: dict[str, Any], as_json: bool) -> None:
    import json

    from rlvr.preference.explain import render

    typer.echo(json.dumps(found, indent=1) if as_json else render(found))


@app.command()
def pairs(
    source: Annotated[
        list[Path], typer.Argument(help="Run folders, or JSONL files of graded completions.")
    ],
    out: Annotated[Path, typer.Option(help="JSONL file of preferences to write.")],
    per_prompt: Annotated[int, typer.Option(min=1, help="Most pairs of one prompt.")] = 1,
    labelled: Annotated[
        bool, typer.Option("--labelled", help="Single completions with a label, for kto.")
    ] = False,
) -> None:
    """Make preferences from graded completions: right against wrong answers to one prompt.

    A run folder stands for its training completions. Example:
    rlvr pairs runs/smollm2-arithmetic --out pairs.jsonl
    """
    from rlvr.data.graded import write_preferences

    count = write_preferences(source, out, per_prompt=per_prompt, labelled=labelled)
    typer.echo(f"{count} preferences: {out}")
