"""The verb of memory: fit."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlvr.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from rlvr.fit.asked import Asked

app = typer.Typer(rich_markup_mode=None)


@app.command()
def fit(
    model: Annotated[
        str, typer.Argument(help="Folder or Hub id; its config.json is read, no weights.")
    ],
    recipe: Annotated[
        str | None,
        typer.Argument(help="Recipe to start from, of any task; by default GRPO on arithmetic."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that are kept as you say them."),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="COUNTxGIB",
            help="GPUs of a node and the memory of each, such as 1x24 or 8x80; by default this "
            "machine.",
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, max=512, help="Machines with such GPUs.")] = 1,
    host: Annotated[
        float | None,
        typer.Option(help="GiB of a node's own memory; lets ZeRO offload to it. Needs --gpus."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Train all weights, whatever it takes; no adapters.")
    ] = False,
    lora: Annotated[bool, typer.Option("--lora", help="Train adapters from the start.")] = False,
    prompt: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt in tokens; 512, or the recipe's.")
    ] = None,
    completion: Annotated[
        int | None,
        typer.Option(min=1, help="Longest completion in tokens; 1024, or the recipe's."),
    ] = None,
    spare: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, help="Share of the memory to keep free, for what no formula knows."
        ),
    ] = 0.1,
    out: Annotated[Path | None, typer.Option(help="Recipe to write.")] = None,
) -> None:
    """Find settings with which a model fits into memory, the least harmful first.

    First what changes no number: recomputed activations, smaller micro-batches, fewer rows. Then
    sharding over the GPUs (ZeRO), bfloat16 passes, moments of AdamW in fewer bits, weights in
    fewer bits, offload to the host, and adapters (LoRA, then QLoRA) unless --full. Prints the
    table of what takes how much; exits with 1 if nothing fits, after saying by how much and what
    would do. Everything is an estimate (docs/memory.md), made without loading weights.

    Example: rlvr fit Qwen/Qwen2.5-7B-Instruct --gpus 1x24 --out fitted.yaml
    Example: rlvr fit ./smollm2 recipes/gsm8k/grpo.yaml --gpus 2x80 --full --completion 2048
    """
    if full and lora:
        raise ValueError("--full and --lora exclude each other; leave both out to try both")
    if out is not None and out.exists():
        raise ValueError(f"--out {str(out)!r} exists; choose another file")
    from rlvr.fit.asked import Asked

    words = [*([] if recipe is None else [recipe]), *(overrides or [])]
    asked = Asked(
        model,
        recipe=Path(words.pop(0)) if words and "=" not in words[0] else None,
        words=tuple(words),
        nodes=nodes,
        train="full" if full else "lora" if lora else None,
        prompt=prompt,
        completion=completion,
        spare=spare,
    )
    _answer(_on_machine(asked, gpus, host), out)


def _on_machine(asked: "Asked", gpus: str | None, host_gib: float | None) -> "Asked":
    """The question with its machine; what is wrong with the rest is said before torch loads.

    Raises:
        ValueError: The recipe, the model's folder or the machine is not there.
    """
    from rlvr.fit.asked import parse_gpus
    from rlvr.memory import GIB, Machine
    from rlvr.policy.settings import check_local

    check_local(asked.model)
    if gpus is not None:
        count, memory = parse_gpus(gpus)
        host = None if host_gib is None else host_gib * GIB
        asked = replace(asked, gpus=count, machine=Machine("cuda", memory, host))
    elif host_gib is not None:
        raise ValueError(f"--host {host_gib:g} goes with --gpus COUNTxGIB; give both")
    _ = asked.own
    if gpus is not None:
        return asked
    from rlvr.runs.memory import gpus_here, machine_here

    return replace(asked, gpus=max(1, gpus_here()), machine=machine_here())


def _answer(asked: "Asked", out: Path | None) -> None:
    quiet_libraries()
    from rlvr.files import write_atomically
    from rlvr.fit.recipe_file import recipe_text
    from rlvr.fit.report import found_lines, heading, missing_lines
    from rlvr.fit.search import alternatives, search, shapes

    shape_of = shapes()
    answer = search(asked, shape_of)
    typer.echo(heading(answer, shape_of(answer.given.recipe)))
    if not answer.fits:
        typer.echo("\n".join(missing_lines(answer, alternatives(asked, shape_of))))
        raise typer.Exit(1)
    typer.echo("\n".join(found_lines(answer, out or Path("RECIPE.yaml"))))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, recipe_text(answer.best, out))
        typer.echo(f"recipe: {out}\nnext:   rlvr train {out} --dry-run")
