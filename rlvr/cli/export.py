"""The verb that publishes: export."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rlvr.cli.quiet import quiet_libraries

app = typer.Typer(rich_markup_mode=None)


@app.command("export")
def export_run(
    run: Annotated[Path, typer.Argument(help="Folder of a run, of any task.")],
    step: Annotated[
        int | None, typer.Option(help="Which checkpoint; by default the last there is.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder to write; it appears whole or not at all.")
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Repository of the Hub; HF_TOKEN holds the token."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository a private one.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch of the repository, made if it is not there; by default main."),
    ] = None,
    adapter_only: Annotated[
        bool,
        typer.Option(
            "--adapter-only", help="Export LoRA adapters as they are, not merged into the base."
        ),
    ] = False,
    evaluations: Annotated[
        list[Path] | None,
        typer.Option(
            "--eval", help="Folder of a scored rlvr eval for the card's table; may be repeated."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, as the learner held it, or bfloat16, half the size.")
    ] = "float32",
    base: Annotated[
        str | None,
        typer.Option(
            help="The base model, where the recipe's path is not (or no longer) right: the folder "
            "or Hub id that adapters are merged into and that the card names."
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="License for the card, such as apache-2.0; by default that of the base model's "
            "own card, where it lies in its folder.",
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Put the export in the place of other content."),
    ] = False,
) -> None:
    """Turn a run into a model that others can load: a folder, a Hub repository, or both.

    It writes safetensors in the Hugging Face layout (weights that ZeRO parted over processes are
    whole, LoRA is merged), tokenizer, chat template, generation config, the recipe, and a model
    card with method, papers, data, curves, versions, scores with standard errors, and the command
    that reproduces it. transformers and vLLM load the result as it is.

    A folder: rlvr export runs/mine --to mine-hf

    An earlier checkpoint, with scores in the card: rlvr export runs/mine --step 40 --to mine-40
    --eval evals/mine-40

    The Hub: HF_TOKEN=... rlvr export runs/mine --push-to-hub me/mine --private

    An upload that breaks off goes on when the same command is given again. A repository or folder
    that holds other content is left alone unless --replace says so; --revision NAME puts the
    export beside it. To send every checkpoint while a run trains, set hub.repo in its recipe
    (docs/export.md).
    """
    quiet_libraries()
    from rlvr.hub.export import Wanted, export_run
    from rlvr.hub.quiet import quiet_hub

    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype {dtype!r} is neither float32 nor bfloat16")
    quiet_hub(bars=sys.stderr.isatty())
    wanted = Wanted(
        to=to,
        repo=push_to_hub,
        revision=revision,
        private=private,
        adapter_only=adapter_only,
        dtype=dtype,  # type: ignore[arg-type]
        evaluations=tuple(evaluations or ()),
        license=license_,
        replace=replace,
    )
    pushed = export_run(
        run, wanted, step=step, base=base, say=lambda text: typer.echo(text, err=True)
    )
    if to is not None:
        typer.echo(f"model: {to}")
    if pushed is not None:
        typer.echo(f"hub:   {pushed.url} (commit {pushed.commit[:10]})")
