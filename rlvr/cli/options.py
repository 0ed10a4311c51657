"""Options that several verbs share, and groups of options as dataclasses.

A verb with many options takes a group of them as one argument::

    @dataclass(frozen=True)
    class Sizes:
        nodes: int | None = option("Nodes altogether; 1 by default.")

    @app.command()
    @grouped
    def launch(recipe: RecipeFile, *, sizes: Sizes) -> None: ...
"""

import inspect
from collections.abc import Callable
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

RecipeFile = Annotated[Path, typer.Argument(help="YAML file (see recipes/).")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="RUN[@STEP]",
        help="Branch: begin where a checkpoint of this run stands, the newest without @STEP.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the resolved recipe and derived numbers, then stop."),
]


def option(help_: str, *names: str, default: Any = None, **more: Any) -> Any:  # noqa: ANN401
    """A field of a group: an option with its help text.

    Args:
        help_: What ``--help`` says of it.
        names: How it is given; by default ``--`` and the field's name.
        default: What holds where it is not given.
        more: Further arguments of :func:`typer.Option`.
    """
    return field(default=default, metadata={"option": typer.Option(*names, help=help_, **more)})


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups: each field of a dataclass becomes an option of its own."""
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        group = parameter.annotation
        if not (isinstance(group, type) and is_dataclass(group)):
            flat.append(parameter)
            continue
        groups[name] = group
        flat += [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=Annotated[one.type, one.metadata["option"]],
            )
            for one in fields(group)
        ]

    def run(**given: Any) -> None:  # noqa: ANN401
        for name, group in groups.items():
            given[name] = group(**{one.name: given.pop(one.name) for one in fields(group)})
        command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return run
