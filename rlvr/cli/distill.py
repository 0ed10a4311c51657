"""The verbs of distillation: ``rlvr distill`` generate, filter, surprisal, page, settings."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rlvr.cli.quiet import quiet_libraries

distill_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help=(
        "Reasoning traces that a small student can learn from: a teacher proposes every token and "
        "the student refuses what it finds improbable (docs/methods/"
        "reverse_speculative_decoding.md). First generate, then filter; what is kept is trained on "
        "with rlvr train and task: sft."
    ),
)

app = typer.Typer(rich_markup_mode=None)
app.add_typer(distill_app, name="distill")

_Recipe = Annotated[Path, typer.Argument(help="YAML file with task: distill (recipes/distill/).")]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help=(
            "Settings that replace the recipe's, such as acceptance_rule.threshold=0.03; `rlvr "
            "distill settings` lists all."
        ),
    ),
]


@distill_app.command("generate")
def distill_generate(
    recipe: _Recipe,
    overrides: _Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Generate what is missing; finished traces stay.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved recipe and derived numbers, then stop."),
    ] = False,
) -> None:
    """Generate traces, each written to OUTPUT/parts the moment it is finished.

    Stop it when you like: with --resume the same command generates what is missing, and the set of
    traces comes out the same. Several GPUs: torchrun --nproc-per-node 4 -m rlvr distill generate
    ...; several machines: a SLURM array, whose tasks share the work (or shard.index and
    shard.count).

    Example: rlvr distill generate recipes/distill/tiny.yaml samples=4
    """
    from rlvr.distill.recipe import DistillRecipe
    from rlvr.settings import load_settings

    resolved = load_settings(DistillRecipe, recipe, overrides or [])
    quiet_libraries()
    if dry_run:
        from rlvr.distill.plan import render_plan

        typer.echo(render_plan(resolved))
        return
    from rlvr.distill.generate import generate

    typer.echo(f"traces: {generate(resolved, resume=resume)}")
    filtering = ["rlvr", "distill", "filter", str(recipe), *(overrides or [])]
    typer.echo(f"next:   {shlex.join(filtering)}")


@distill_app.command("filter")
def distill_filter(
    recipe: _Recipe,
    overrides: _Overrides = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Filter what there is although traces are missing.")
    ] = False,
) -> None:
    """Grade all traces and keep the best of each problem, in OUTPUT/kept.jsonl.

    Dropped are, in this order: traces without the form, those of which the student wrote too much,
    those without an answer, and wrong ones. OUTPUT/filter.json counts them.

    Example: rlvr distill filter recipes/distill/tiny.yaml filter.keep=random
    """
    from rlvr.distill.recipe import DistillRecipe
    from rlvr.settings import load_settings

    resolved = load_settings(DistillRecipe, recipe, overrides or [])
    quiet_libraries()
    from rlvr.distill.filter import KEPT, run_filter

    summary = run_filter(resolved, partial=partial)
    dropped = ", ".join(f"{count} {name}" for name, count in summary["dropped"].items())
    typer.echo(
        f"{summary['traces']} traces of {summary['problems']} problems; dropped: {dropped}\n"
        f"kept {summary['kept']} for {summary['problems_with_trace']} problems: "
        f"{resolved.output / KEPT}"
    )


@distill_app.command("settings")
def distill_settings(
    prefix: Annotated[
        str, typer.Argument(help="Show only settings that begin so, such as rule.")
    ] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of docs/settings_distill.md.")
    ] = False,
) -> None:
    """List every setting of a recipe with task: distill."""
    from rlvr.cli.training import show_settings
    from rlvr.distill.recipe import DistillRecipe

    show_settings(DistillRecipe, prefix, markdown=markdown)


_Traces = Annotated[
    list[Path],
    typer.Argument(
        exists=True,
        help="JSONL files of traces, or of prompts with responses, or of messages; run folders.",
    ),
]
_Template = Annotated[
    str,
    typer.Option(
        help="How a prompt of text becomes tokens: a name or a YAML file; traces have ids."
    ),
]
_Reencode = Annotated[
    bool,
    typer.Option(
        "--reencode",
        help="Encode the traces' text by the student's tokenizer; their ids are another's.",
    ),
]
_Threshold = Annotated[float, typer.Option(help="Probability below which a token is improbable.")]


@distill_app.command("surprisal")
def distill_surprisal(
    traces: _Traces,
    model: Annotated[str, typer.Option(help="Folder or Hub id of the student, untrained.")],
    threshold: _Threshold = 0.01,
    template: _Template = "raw",
    reencode: _Reencode = False,
    bins: Annotated[int, typer.Option(min=1, help="Points of the curve along the trace.")] = 20,
    top: Annotated[int, typer.Option(min=0, help="How many improbable tokens to list.")] = 20,
    tokens: Annotated[int, typer.Option(min=1, help="Most input positions run at once.")] = 4096,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
) -> None:
    """Say how improbable a student finds the tokens of traces: what makes them hard to learn.

    Prints the share of tokens below the threshold, the mean negative log-likelihood in nats,
    quantiles, the curve along the trace and the worst tokens; by who wrote them, where the traces
    say so. Any student and any set of traces go together: traces that were made for one student
    may be improbable to another.

    Example: rlvr distill surprisal runs/distill/kept.jsonl --model ./student --out surprisal.json
    """
    quiet_libraries()
    from rlvr.distill.surprisal import score_traces, surprisal, surprisal_table, write_surprisal
    from rlvr.progress import watching

    with watching(f"scoring by {model}") as progress:
        scored = score_traces(
            traces,
            model,
            template=template,
            reencode=reencode,
            tokens_per_micro_batch=tokens,
            progress=progress,
        )
    found = surprisal(scored, threshold=threshold, bins=bins, top=top)
    typer.echo(surprisal_table(found))
    if out is not None:
        write_surprisal(found, out, {"student": model, "sources": [str(path) for path in traces]})


@distill_app.command("page")
def distill_page(
    traces: _Traces,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="A student to score them with; without it, what the traces carry."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Whose tokens they are, where no recipe next to them names the student."),
    ] = None,
    threshold: _Threshold = 0.01,
    template: _Template = "raw",
    reencode: _Reencode = False,
    most: Annotated[int, typer.Option(min=1, help="Traces that the page holds.")] = 200,
) -> None:
    """Show traces as one HTML page: who wrote each token, and how probable the student finds it.

    The page needs neither a network nor other files. Example:
    rlvr distill page runs/distill/kept.jsonl --out traces.html
    """
    quiet_libraries()
    from rlvr.report.traces import PageSettings, write_traces_page

    how = PageSettings(model, tokenizer, template, reencode, threshold, most)
    typer.echo(write_traces_page(traces, out, how))
