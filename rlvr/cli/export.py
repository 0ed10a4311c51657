"""The verb that publishes: export."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from rlvr.cli.options import grouped, option
from rlvr.cli.quiet import quiet_libraries

app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True)
class ExportOptions:
    """Fields of :class:`rlvr.hub.export.Wanted`."""

    to: Path | None = option("Folder to write; it appears whole or not at all.")
    repo: str | None = option(
        "Repository of the Hub; HF_TOKEN holds the token.", "--push-to-hub", metavar="OWNER/NAME"
    )
    private: bool = option("Make the repository a private one.", "--private", default=False)
    revision: str | None = option(
        "Branch of the repository, made if it is not there; by default main."
    )
    adapter_only: bool = option(
        "Export LoRA adapters as they are, not merged into the base.",
        "--adapter-only",
        default=False,
    )
    evaluations: list[Path] | None = option(
        "Folder of a scored rlvr eval for the card's table; may be repeated.", "--eval"
    )
    dtype: str = option(
        "float32, as the learner held it, or bfloat16, half the size.", default="float32"
    )
    license: str | None = option(
        "License for the card, such as apache-2.0; by default that of the base model's own card, "
        "where it lies in its folder.",
    )
    replace: bool = option(
        "Put the export in the place of other content.", "--replace", default=False
    )


@app.command("export")
@grouped
def export_run(
    run: Annotated[Path, typer.Argument(help="Folder of a run, of any task.")],
    step: Annotated[
        int | None, typer.Option(help="Which checkpoint; by default the last there is.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base model, where the recipe's path is not (or no longer) right: the folder "
            "or Hub id that adapters are merged into and that the card names."
        ),
    ] = None,
    *,
    options: ExportOptions,
) -> None:
    """Turn a run into a model that others can load: a folder, a Hub repository, or both.

    It writes safetensors in the Hugging Face layout (weights that ZeRO sharded over processes are
    whole, LoRA is merged), tokenizer, chat template, generation config, the recipe, and a model
    card with method, papers, data, curves, versions, scores with standard errors, and the command
    that reproduces it. transformers and vLLM load the result as it is.

    A folder: rlvr export runs/mine --to mine-hf

    An earlier checkpoint, with scores in the card: rlvr export runs/mine --step 40 --to mine-40
    --eval evals/mine-40

    The Hub: HF_TOKEN=... rlvr export runs/mine --push-to-hub me/mine --private

    An upload that breaks off goes on when the same command is given again. A repository or folder
    that holds other content is left alone unless --replace says so; --revision NAME puts the
    export on a branch of its own. To send every checkpoint while a run trains, set hub.repo in its
    recipe (docs/export.md).
    """
    if options.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype {options.dtype!r} is neither float32 nor bfloat16")
    if not run.is_dir():
        raise ValueError(f"run {str(run)!r} is not a folder; give that of a run")
    quiet_libraries()
    from rlvr.hub.export import Wanted, export_run
    from rlvr.hub.remote import quiet_hub

    quiet_hub(bars=sys.stderr.isatty())
    wanted = Wanted(**{**vars(options), "evaluations": tuple(options.evaluations or ())})
    pushed = export_run(
        run, wanted, step=step, base=base, notify=lambda text: typer.echo(text, err=True)
    )
    if options.to is not None:
        typer.echo(f"model: {options.to}")
    if pushed is not None:
        typer.echo(f"hub:   {pushed.url} (commit {pushed.commit[:10]})")
