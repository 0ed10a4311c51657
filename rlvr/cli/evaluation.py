"""The verbs of measuring: eval, score, compare, grade."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rlvr.cli.options import grouped, option
from rlvr.cli.quiet import quiet_libraries

app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True)
class EvalOptions:
    """Fields of :class:`eval.plan.EvalSettings`; ``engine`` is the name of one."""

    benchmarks: str = option(
        "Names separated by commas, 'all', or your own files: math500,mine=problems.jsonl.",
        "--benchmarks",
        "-b",
        default="math500",
    )
    protocol: str = option("Prompt, decoding and grader by name.", default="rlvr")
    template: str | None = option("Prompt template instead of the protocol's: name or YAML.")
    samples: int | None = option("Samples of each problem.", "--n", min=1)
    greedy: bool = option("Also one greedy completion of each problem.", "--greedy", default=False)
    temperature: float | None = option("0 is greedy.", min=0)
    top_p: float | None = option("Mass of the tokens kept.")
    max_tokens: int | None = option("Limit of a completion.", min=1)
    seed: int = option("Seed of all sampling.", default=0, min=0)
    engine: str = option(
        "transformers, vllm or vllm_server (docs/rollout.md).", default="transformers"
    )
    data: Path | None = option("Folder of benchmark files instead of the Hub (or RLVR_BENCHMARKS).")
    limit: int | None = option("Only so many problems of each: a trial.", min=1)
    task_loss: bool = option(
        "Also bits per byte of the reference answers.", "--task-loss", default=False
    )

    @property
    def given(self) -> dict[str, Any]:
        """As the settings are written."""
        data = None if self.data is None else str(self.data)
        return {**vars(self), "engine": {"name": self.engine}, "data": data}


@dataclass(frozen=True)
class ShowOptions:
    """What is evaluated, and what is shown of it."""

    out: Path | None = option("Folder; by default evals/<MODEL>.")
    ks: str | None = option("The k of pass@k, such as 1,4,8; by default all up to n.", "--k")
    all_checkpoints: bool = option(
        "Every checkpoint of a run, with one engine.", "--all-checkpoints", default=False
    )
    show_prompt: bool = option(
        "Print the first prompt of each, and stop.", "--show-prompt", default=False
    )


@app.command("eval")
@grouped
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Model folder, Hub id, run folder, or a checkpoint of a run.")
    ] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Any other setting, such as model.precision=bfloat16, engine.max_num_seqs=64 or "
            "workers=4 (docs/evaluation.md).",
        ),
    ] = None,
    *,
    how: EvalOptions,
    show: ShowOptions,
    list_known: Annotated[
        bool, typer.Option("--list", help="List benchmarks and protocols, and stop.")
    ] = False,
) -> None:
    """Measure a model on math benchmarks; the same command goes on after an interruption.

    Every sample is kept in OUT as it finishes, with its seed fixed by problem and index, so stop it
    when you like. Scores come with standard errors and 95 % intervals over problems.

    Greedy accuracy: rlvr eval ./model -b math500,gsm8k --temperature 0 --out evals/model

    avg@8, pass@k and maj@k: rlvr eval ./model -b aime24,amc23 --n 8 --temperature 0.6 --engine vllm

    As a paper did: rlvr eval ./model -b all --protocol one_shot_rlvr --engine vllm

    How a run progressed: rlvr eval runs/mine -b math500 --all-checkpoints --out evals/mine

    A quick look first: add --limit 20 --max-tokens 512, and see the prompts with --show-prompt.

    Several GPUs: torchrun --nproc-per-node 4 -m rlvr eval ... Then: rlvr score OUT grades again,
    rlvr compare A B tests whether two evaluations differ.
    """
    if list_known:
        from eval.catalogue import catalogue

        typer.echo(catalogue())
        return
    if not model:
        raise ValueError("give a model folder, Hub id or run folder; see rlvr eval --help")
    from eval.settings import build_settings
    from rlvr.policy.settings import check_local

    check_local(model)
    settings = build_settings(model, how.given, overrides or [])
    quiet_libraries()
    from eval.command import run_evaluation

    run_evaluation(*settings, **vars(show))


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(exists=True, help="Folder of a finished evaluation.")],
    grader: Annotated[
        str | None,
        typer.Option(help="rlvr, one_shot_rlvr, qwen, exact or math_verify; by default as before."),
    ] = None,
    k: Annotated[str | None, typer.Option(help="The k of pass@k, such as 1,4,8.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Grading processes.")] = 2,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a verdict may take.")] = 5.0,
) -> None:
    """Grade the samples of an evaluation again, without the model.

    Writes verdicts, disagreements between graders, results and the page anew.

    Example: rlvr score evals/model --grader qwen --k 1,8
    """
    from eval.command import run_scoring

    run_scoring(folder, grader, k, workers, timeout)


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(exists=True, help="Two or more scored evaluations.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="HTML page to write, with the problems side by side.")
    ] = None,
    tournaments: Annotated[
        int, typer.Option(min=1, help="Simulated Swiss tournaments of the leaderboard.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of tournaments and resampling.")] = 0,
    epsilon: Annotated[
        float, typer.Option(min=0, help="Accuracies this close to the baseline's are as good.")
    ] = 0.01,
    delta: Annotated[
        float, typer.Option(min=0, help="Difference of pass rates that is a disagreement.")
    ] = 0.3,
) -> None:
    """Test whether evaluations differ on the same problems, and rank them.

    The first is the baseline. Greedy accuracy: McNemar's exact test; averages of samples: paired
    bootstrap over problems; p-values also adjusted for their number (Holm). From three on, a
    leaderboard by mean and by Swiss tournaments; and where three or more are about as good as the
    baseline, such as seeds of one recipe, how much they disagree on single problems beyond chance.

    Example: rlvr compare evals/base evals/step_100 evals/step_200 --out compare.html
    """
    from eval.command import run_comparison

    run_comparison(folders, out, tournaments, seed, epsilon, delta)


@app.command(context_settings={"ignore_unknown_options": True})
def grade(
    items: Annotated[
        list[str], typer.Argument(metavar="FILE | PRED GOLD", help="JSON-lines file to grade.")
    ],
    out: Annotated[Path | None, typer.Option(help="Where the graded rows go.")] = None,
    response_field: Annotated[
        str, typer.Option(help="Field with a whole response; the answer is extracted from it.")
    ] = "response",
    pred_field: Annotated[
        str | None, typer.Option(help="Field with a bare answer, instead of a response.")
    ] = None,
    gold_field: Annotated[
        str, typer.Option(help="Field with the reference answer, or a list of them.")
    ] = "gold",
    grader: Annotated[
        str,
        typer.Option(
            help="rlvr, qwen, exact (docs/verifier.md), code, choice (docs/domains.md) ..."
        ),
    ] = "rlvr",
    workers: Annotated[int, typer.Option(min=1, help="Verifier processes.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a verdict may take.")] = 5.0,
    sandbox: Annotated[
        str, typer.Option(help="For code: auto, bubblewrap, namespaces (docs/code.md).")
    ] = "auto",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say how PRED is compared with GOLD.")
    ] = False,
) -> None:
    """Grade responses or answers against references, or explain one verdict.

    Examples: rlvr grade rollouts.jsonl --out graded.jsonl --workers 2, and
    rlvr grade --explain "0.5" "\\frac12"
    """
    from reward.command import explain as explain_pair
    from reward.command import grade_file
    from reward.sandbox.ways import check_isolation
    from reward.verdict import DEFAULT
    from rlvr.progress import watching

    # Unknown options are let through because an answer may begin with a minus sign.
    mistyped = [item for item in items if item.startswith("--")]
    if mistyped:
        raise ValueError(f"no such option {mistyped[0]!r}; see rlvr grade --help")
    if len(items) != (2 if explain else 1):
        wanted = "--explain takes an answer and a reference"
        if not explain:
            wanted = "give one file, or --explain with an answer and a reference"
        raise ValueError(f"{wanted}, not {len(items)} values: {items}")
    if explain:
        typer.echo(explain_pair(items[0], items[1]))
        return
    policy = replace(DEFAULT, sandbox=check_isolation(sandbox))
    with watching(f"grading {items[0]}") as progress:
        grade_file(
            items[0],
            out,
            response_field=response_field,
            pred_field=pred_field,
            gold_field=gold_field,
            grader=grader,
            workers=workers,
            timeout=timeout,
            policy=policy,
            echo=typer.echo,
            progress=progress,
        )
