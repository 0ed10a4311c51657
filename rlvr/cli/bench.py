"""The verbs of speed: bench and plan."""

from pathlib import Path
from typing import Annotated

import typer

from rlvr.cli.quiet import quiet_libraries

app = typer.Typer(rich_markup_mode=None)


@app.command()
def bench(
    model: Annotated[
        str, typer.Argument(help="Folder or Hub id; by default a tiny model, random weights.")
    ] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the recipe's."),
    ] = None,
    parts: Annotated[str, typer.Option(help="Of generation, update and run.")] = (
        "generation,update"
    ),
    workloads: Annotated[
        str, typer.Option(help="Shapes of an update: uniform, lognormal, outlier.")
    ] = "uniform,lognormal,outlier",
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of a step.")] = 2,
    samples: Annotated[int, typer.Option(min=1, help="Completions of a prompt.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest completion.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements; medians are shown.")] = 3,
    recipe: Annotated[Path | None, typer.Option(help="What the part run trains.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of it; the first warms up.")] = 4,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Say where the seconds of a step go, next to what this machine could do at best.

    Generation and update do a fixed amount of work: completions all run to their forced lengths, so
    two versions, or two machines, do the same. The ceilings (matrix products in the model's shapes,
    copying memory and, with --engine vllm, vLLM's own LLM.generate) are measured in the same run.

    A model on this machine: rlvr bench ./smollm2 --engine vllm --prompts 4

    Where a recipe's seconds go: rlvr bench ./smollm2 --parts run --recipe
    recipes/smollm2_arithmetic.yaml model.path=./smollm2
    """
    from rlvr.bench.size import Size, check_names

    names, shapes = parts.split(","), workloads.split(",")
    check_names(names, shapes, engine, recipe)
    quiet_libraries()
    from rich.console import Console

    from rlvr.bench.command import run_benchmark
    from rlvr.bench.render import render, write_json

    found = run_benchmark(
        model,
        parts=names,
        workloads=shapes,
        engine=engine,
        precision=precision,
        size=Size(prompts, samples, prompt_tokens, tokens),
        repeats=repeats,
        recipe=recipe,
        overrides=overrides or [],
        steps=steps,
    )
    render(found, Console())
    if out is not None:
        write_json(found, out)


@app.command()
def plan(
    measured: Annotated[
        Path, typer.Argument(help="YAML of measured phase times (recipes/plan/*.yaml).")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's."),
    ] = None,
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs, separated by commas.")] = (
        "1,2,4,8,16,32,64,128,256,512"
    ),
    staleness: Annotated[
        int, typer.Option(min=0, help="rollout.max_staleness: rollouts ahead of the learner.")
    ] = 1,
    steps: Annotated[int, typer.Option(min=2, help="Simulated steps.")] = 20,
) -> None:
    """Predict seconds per step from 1 to 512 GPUs, and the split of rollout and learner GPUs.

    A discrete-event model of the asynchronous pipeline, fed with phase times of one GPU; what it
    counts and leaves out is in docs/bench.md. Colocated means that all GPUs generate and train in
    turn.

    Example: rlvr plan recipes/plan/example_7b.yaml --gpus 8,64,512 --staleness 1
    """
    from rlvr.bench.plan import plan_table

    typer.echo(plan_table(measured, overrides or [], gpus, staleness, steps))
