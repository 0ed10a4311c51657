r"""Train a better policy from scratch in minutes, on two CPU cores, without a network.

The task is addition of three-digit numbers, ``123+456=``. A tiny Llama is warmed up by imitation of
a mixture: mostly short guesses, ``\boxed{...}`` with each digit randomised more often than not, and
some worked answers that write the column sums with their carries before the box. The warm-up stops
when a fraction of its samples is right. The model then prefers the short, often wrong answer;
reinforcement learning discovers that writing the work pays off, so accuracy and response length
rise together.

    rlvr quickstart --seed 0
    rlvr quickstart --moe           a mixture of eight experts instead, two per token

The reinforcement-learning stage is an ordinary recipe (``OUT/run/recipe.yaml``).
"""

import hashlib
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from rlvr.data import ArithmeticSource, Prompt, encode_prompts, load_problems, load_template
from rlvr.files import read_lines, write_atomically
from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings, Schedule
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.reinforce import Reinforce
from rlvr.objective.reducers import TokenMean
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.model import Policy
from rlvr.policy.saving import export_policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import BOX, TinySettings, write_tiny_model
from rlvr.progress import is_watched, live_progress
from rlvr.report import write_report
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train
from rlvr.rollout.groups import sample_groups
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.runs.log import read_metrics
from rlvr.runs.run_folder import versions
from rlvr.settings import Settings, load_settings
from rlvr.types import Batch

_DIGITS = 3
EXPERTS = TinySettings(experts=8)
_PROBLEMS = {"name": "arithmetic", "digits": _DIGITS, "least_operand": 10 ** (_DIGITS - 1)}


class WarmupSettings(Settings):
    """Settings of the imitation stage."""

    batch: int = Field(64, ge=1)
    """Number of demonstrations per step."""
    worked_share: float = Field(0.4, ge=0, le=1)
    """Share of demonstrations that show the work."""
    noise: float = Field(0.6, ge=0, le=1)
    """Probability that a guess replaces a digit of the sum with a random one."""
    slip: float = Field(0.0, ge=0, le=1)
    """Probability that a column sum of a worked answer has a wrong digit, which the box copies."""
    lr: float = Field(2e-3, gt=0)
    """Learning rate."""
    target_accuracy: float = Field(0.2, gt=0, lt=1)
    """Stop when this share of samples is right: reinforcement learning needs right and wrong
    answers in a group."""
    check_every: int = Field(50, ge=1)
    """Steps between measurements of the accuracy."""
    max_steps: int = Field(3000, ge=1)
    """Fail after this many steps."""


def quickstart(seed: int, out: Path, console: Console | None = None, *, moe: bool = False) -> Path:
    """Build, warm up, train, evaluate and report; return the path of the summary.

    A stopped quickstart continues when it is started again with the same folder.

    Args:
        seed: Seed of everything.
        out: Folder of the results.
        console: Where progress is shown; None is standard output.
        moe: Train a mixture of experts.

    Raises:
        ValueError: ``out`` contains a finished quickstart or other files.
    """
    console = console or Console()
    summary_path = out / "summary.json"
    _check_folder(out, summary_path)
    started = time.perf_counter()
    console.print(
        f"[bold]1 of 2[/] warm-up: imitation of {_DIGITS}-digit addition, mostly of guesses"
    )
    warmup = warm_up_once(seed, _model_folder(out, moe), console, EXPERTS if moe else None)
    console.print("[bold]2 of 2[/] reinforcement learning from the verifier's verdicts")
    learning = time.perf_counter()
    recipe = quickstart_recipe(seed, out, moe=moe)
    train(recipe, resume=True, console=console)
    finished = time.perf_counter()
    report = write_report(recipe.output, out / "report.html")
    seconds = {
        "warm_up": warmup["seconds"],
        "reinforcement_learning": round(finished - learning, 1),
        "total": round(time.perf_counter() - started, 1),
    }
    summary = quickstart_summary(recipe, seed, warmup, seconds, report)
    write_atomically(summary_path, json.dumps(summary, indent=1))
    _show(console, summary, recipe.output)
    return summary_path


def quickstart_recipe(seed: int, out: Path, *, moe: bool = False) -> RLRecipe:
    """The reinforcement-learning stage as a recipe."""
    held_out = {**_PROBLEMS, "size": 256, "split": "held_out"}
    pathways: dict[str, Any] = {"pathways": {}} if moe else {}
    return load_settings(
        RLRecipe,
        {
            "output": str(out / "run"),
            "seed": seed,
            "steps": 80,
            "model": {"path": str(_model_folder(out, moe))},
            "router": {} if moe else None,
            "data": {
                "source": {**_PROBLEMS, "size": 20000},
                "template": "plain",
                "max_prompt_tokens": 16,
            },
            "rollout": {
                "prompts_per_step": 32,
                "samples_per_prompt": 8,
                "sampling": {"max_tokens": 24},
            },
            "learner": {
                "lr": 5e-4,
                "schedule": {"shape": "linear", "final_fraction": 0.1},
                "tokens_per_micro_batch": 8192,
                "layout": "padded",
                # The steps are tiny, so running every completion is cheap and keeps the entropy
                # curve complete.
                "skip_zero_advantage": False,
            },
            "evaluation": {"sets": {"held_out": held_out}, "every": 10, **pathways},
            "checkpoint": {"every": 50, "keep": 1},
        },
    )


def worked_answer(
    a: int,
    b: int,
    digits: int = _DIGITS,
    slip: float = 0.0,
    generator: random.Random | None = None,
) -> str:
    """Column sums with carry, lowest digit first, two digits each, then the box.

    With probability ``slip`` the digit of a column is wrong; the carries are still right.
    """
    carry, work, total = 0, "", ""
    for place in range(digits):
        column = a // 10**place % 10 + b // 10**place % 10 + carry
        carry, unit = divmod(column, 10)
        if generator is not None and generator.random() < slip:
            unit = (unit + generator.randrange(1, 10)) % 10
        work, total = work + f"{carry}{unit}", f"{unit}{total}"
    return f"{work}{BOX}{carry or ''}{total}}}"


def guessed_answer(a: int, b: int, noise: float, generator: random.Random) -> str:
    """Only the box; each digit of the sum is replaced with a random one with probability
    ``noise``."""
    digits = (
        str(generator.randrange(10)) if generator.random() < noise else digit
        for digit in str(a + b)
    )
    return f"{BOX}{''.join(digits)}}}"


def _model_folder(out: Path, moe: bool) -> Path:
    return out / ("tiny-moe" if moe else "tiny-llama")


def warm_up_once(
    seed: int, folder: Path, console: Console, shape: TinySettings | None = None
) -> dict[str, Any]:
    """Warm up, or read the result of an earlier start of this quickstart."""
    record = folder / "warmup.json"
    if not record.is_file():
        started = time.perf_counter()
        write_tiny_model(folder, seed, shape)
        outcome = warm_up(folder, seed, WarmupSettings(), console)
        outcome["seconds"] = round(time.perf_counter() - started, 1)
        outcome["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        write_atomically(record, json.dumps(outcome))
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def warm_up(folder: Path, seed: int, settings: WarmupSettings, console: Console) -> dict[str, Any]:
    """Train the model in ``folder`` in place by imitation, until enough of its samples are right.

    Raises:
        ValueError: The target was not reached within ``max_steps``.
    """
    model = ModelSettings(path=str(folder))
    policy, tokenizer = load_policy(model), load_tokenizer(model)
    learner_settings = LearnerSettings(
        lr=settings.lr,
        schedule=Schedule(warmup_updates=50),
        layout="padded",
        tokens_per_micro_batch=65536,
    )
    learner = Learner(policy, Objective(Reinforce(), (), TokenMean()), learner_settings)
    source = load_settings(ArithmeticSource, {**_PROBLEMS, "size": 20000})
    prompts = encode_prompts(load_problems(source), load_template("plain"), tokenizer, 64).prompts
    generator = random.Random(seed)
    columns = (TextColumn("warm-up"), BarColumn(bar_width=20), MofNCompleteColumn())
    with live_progress(
        console, *columns, TimeElapsedColumn(), TextColumn("{task.fields[figures]}")
    ) as progress:
        task = progress.add_task("", total=settings.max_steps, figures="")
        for step in range(1, settings.max_steps + 1):
            chosen = generator.choices(prompts, k=settings.batch)
            metrics = learner.update(_demonstrations(chosen, tokenizer, settings, generator))
            progress.update(task, completed=step)
            if step % settings.check_every:
                continue
            accuracy = _sampled_accuracy(policy, tokenizer, prompts[:256], seed, step)
            figures = f"loss {metrics['policy/loss']:.3f}  sampled accuracy {accuracy:.3f}"
            progress.update(task, figures=figures)
            if not is_watched(console) and step % 250 == 0:
                console.print(f"warm-up step {step}  {figures}", highlight=False)
            if accuracy >= settings.target_accuracy:
                export_policy(policy, folder)
                return {"steps": step, "sampled_accuracy": accuracy}
    raise ValueError(
        f"the warm-up did not reach a sampled accuracy of {settings.target_accuracy} in "
        f"{settings.max_steps} steps; try another --seed"
    )


def _demonstrations(
    prompts: Sequence[Prompt],
    tokenizer: Any,  # noqa: ANN401
    settings: WarmupSettings,
    generator: random.Random,
) -> Batch:
    """A batch for maximum likelihood: every advantage is 1."""
    texts = []
    for prompt in prompts:
        a, b = prompt.problem.metadata["a"], prompt.problem.metadata["b"]
        worked = generator.random() < settings.worked_share
        guess = guessed_answer(a, b, settings.noise, generator)
        slips = generator if settings.slip else None
        texts.append(worked_answer(a, b, slip=settings.slip, generator=slips) if worked else guess)
    completions = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    mask_BT = torch.zeros(len(texts), max(len(ids) for ids in completions))
    for row, ids in enumerate(completions):
        mask_BT[row, : len(ids)] = 1
    return Batch(
        prompt_ids=tuple(tuple(prompt.ids) for prompt in prompts),
        completion_ids=tuple(tuple(ids) for ids in completions),
        group_index_B=torch.arange(len(texts)),
        rewards_B=torch.ones(len(texts)),
        advantages_BT=mask_BT,
        mask_BT=mask_BT,
    )


def _sampled_accuracy(
    policy: Policy,
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[Prompt],
    seed: int,
    step: int,
) -> float:
    """Share of samples at temperature 1 that end in the right box."""
    engine = TransformersEngine(policy, [tokenizer.eos_token_id])
    sampling = Sampling(max_tokens=24)
    groups = sample_groups(engine, prompts, 1, sampling, run_seed=seed, step=step)
    right = 0
    for group in groups:
        text = tokenizer.decode(list(group.completions[0].token_ids), skip_special_tokens=True)
        right += text.endswith(f"{BOX}{group.problem.answer}}}")
    return right / len(groups)


def quickstart_summary(
    recipe: RLRecipe, seed: int, warmup: dict[str, Any], seconds: dict[str, float], report: Path
) -> dict[str, Any]:
    """The content of ``summary.json``."""
    rows = read_metrics(recipe.output / "metrics.jsonl")
    evaluations = [row for row in rows if "eval/held_out/accuracy" in row]
    first, last = evaluations[0], evaluations[-1]
    return {
        "seed": seed,
        "accuracy_before": first["eval/held_out/accuracy"],
        "accuracy_after": last["eval/held_out/accuracy"],
        "length_before": first["eval/held_out/length"],
        "length_after": last["eval/held_out/length"],
        "held_out_problems": recipe.evaluation.sets["held_out"].size,  # type: ignore[union-attr]
        "warm_up_steps": warmup["steps"],
        "steps": recipe.steps,
        "seconds": seconds,
        "versions": versions(),
        "report": str(report),
        "model": str(recipe.output / "model"),
    }


def _show(console: Console, summary: dict[str, Any], run: Path) -> None:
    console.print(
        f"\nHeld-out {_DIGITS}-digit addition, {summary['held_out_problems']} problems, seed "
        f"{summary['seed']}",
        highlight=False,
    )
    table = Table()
    for name in ("", "before", "after"):
        table.add_column(name, justify="left" if not name else "right")
    for label, key, form in (("accuracy", "accuracy", "{:.3f}"), ("tokens", "length", "{:.1f}")):
        values = (form.format(summary[f"{key}_{when}"]) for when in ("before", "after"))
        table.add_row(label, *values)
    console.print(table)
    for when, row in _example(run, summary["steps"]):
        verdict = "right" if row["correct"] else "wrong"
        question = row["prompt"].removeprefix("<bos>")
        console.print(f"{when:6}  {question} {row['response']}  ({verdict})", markup=False)
    seconds = summary["seconds"]
    console.print(
        f"{seconds['total']} s in total (warm-up {seconds['warm_up']} s, reinforcement learning "
        f"{seconds['reinforcement_learning']} s)\nmodel:  {summary['model']}\n"
        f"report: {summary['report']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _example(run: Path, last_step: int) -> list[tuple[str, dict[str, Any]]]:
    """The greedy answers to one problem before and after; the first whose verdict changed, if
    any."""
    before, after = (
        read_lines(run / "evaluations" / f"step_{step:06d}.jsonl").objects
        for step in (0, last_step)
    )
    pairs = list(zip(before, after, strict=True))
    changed = [pair for pair in pairs if pair[0]["correct"] != pair[1]["correct"]]
    return list(zip(("before", "after"), (changed or pairs)[0], strict=True))


def _check_folder(out: Path, summary: Path) -> None:
    if summary.is_file():
        raise ValueError(
            f"{str(out)!r} contains a finished quickstart; choose another --out, or read "
            f"{out / 'report.html'}"
        )
    if out.is_dir() and any(
        item.name not in ("tiny-llama", "tiny-moe", "run") for item in out.iterdir()
    ):
        raise ValueError(f"{str(out)!r} contains other files; choose another --out")
