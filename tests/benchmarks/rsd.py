r"""Does a student learn better from traces that it was allowed to veto? Minutes on a CPU.

The task is addition of three-digit numbers. Both models write three column sums, lowest digit
first, before the box, but in different notations of equal length. The student's is a sum of two
digits (``09``), the teacher's mostly the digit with a letter for the carry (``9a``), which the
student has never seen; the teacher knows the student's notation as well, and uses it in three
answers of ten.

    python -m tests.benchmarks.rsd runs/rsd --seeds 0,1,2

The teacher is trained once (seed 0), a student for each seed: on guesses mostly, with some worked
answers, until a fifth of its samples is right, as the quickstart's model is. Every arm then trains
the same student for the same number of steps. What is there already is not done again.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from rich.console import Console

from rlvr.data import ArithmeticSource, Prompt, encode_prompts, load_problems, load_template
from rlvr.distill.filter import run_filter
from rlvr.distill.generate import generate
from rlvr.distill.recipe import DistillRecipe
from rlvr.distill.surprisal import score_traces, surprisal
from rlvr.distill.trace import Trace, read_traces
from rlvr.files import write_atomically, write_lines
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
from rlvr.quickstart import guessed_answer, worked_answer
from rlvr.rollout.groups import sample_groups
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.runs.log import read_metrics
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task
from rlvr.tasks.sft import SftRecipe
from rlvr.types import Batch

DIGITS = 3
PROBLEMS = {"name": "arithmetic", "digits": DIGITS, "least_operand": 10 ** (DIGITS - 1)}
TEACHER = TinySettings(hidden_size=128, layers=4, heads=4, key_value_heads=4)
STUDENT = TinySettings(hidden_size=64, layers=2, heads=4, key_value_heads=4)
OWN_NOTATION = 0.7  # share of the teacher's answers in the notation that the student does not know
MAX_TOKENS = 16
SAMPLES = 8  # traces of a problem, of which the filter keeps one
SHOWN = 20000  # problems that the models were made with; traces are written for others
ACCURACY = "eval/held_out/accuracy"


def lettered_answer(a: int, b: int) -> str:
    """As ``worked_answer``, each column sum as its digit and a letter: a no carry, b carry."""
    carry, work = 0, ""
    for place in range(DIGITS):
        column = a // 10**place % 10 + b // 10**place % 10 + carry
        carry, work = column // 10, work + f"{column % 10}{'ab'[column // 10]}"
    return f"{work}{BOX}{a + b}}}"


def teachers_text(a: int, b: int, generator: random.Random) -> str:
    """What the teacher imitates."""
    own = generator.random() < OWN_NOTATION
    return lettered_answer(a, b) if own else worked_answer(a, b)


def students_text(a: int, b: int, generator: random.Random) -> str:
    """What the student imitates before it meets the teacher: mostly guesses."""
    worked = generator.random() < 0.4
    return worked_answer(a, b) if worked else guessed_answer(a, b, 0.6, generator)


def imitate(
    folder: Path,
    seed: int,
    shape: TinySettings,
    text: Callable[[int, int, random.Random], str],
    target: float,
    most: int,
) -> dict[str, float]:
    """Train a model from nothing by imitation until its samples are right often enough."""
    record = folder / "warmup.json"
    if record.is_file():
        found: dict[str, float] = json.loads(record.read_text())
        return found
    write_tiny_model(folder, seed, shape)
    model = ModelSettings(path=str(folder))
    policy, tokenizer = load_policy(model), load_tokenizer(model)
    settings = LearnerSettings(
        lr=2e-3, schedule=Schedule(warmup_updates=50), layout="padded", tokens_per_micro_batch=65536
    )
    learner = Learner(policy, Objective(Reinforce(), (), TokenMean()), settings)
    prompts = problems(tokenizer, SHOWN)
    generator = random.Random(seed)
    for step in range(1, most + 1):
        chosen = generator.choices(prompts, k=64)
        learner.update(demonstrations(chosen, tokenizer, text, generator))
        if step % 50:
            continue
        accuracy = sampled_accuracy(policy, tokenizer, prompts[:256], seed)
        print(f"{folder.name} step {step}: sampled accuracy {accuracy:.3f}", flush=True)
        if accuracy >= target:
            break
    export_policy(policy, folder)
    outcome = {"steps": step, "sampled_accuracy": accuracy}
    write_atomically(record, json.dumps(outcome))
    return outcome


def problems(tokenizer: Any, size: int) -> Sequence[Prompt]:
    """The first so many training problems, encoded."""
    source = load_settings(ArithmeticSource, {**PROBLEMS, "size": size})
    return encode_prompts(load_problems(source), load_template("plain"), tokenizer, 64).prompts


def demonstrations(
    chosen: Sequence[Prompt],
    tokenizer: Any,
    text: Callable[[int, int, random.Random], str],
    generator: random.Random,
) -> Batch:
    """A batch for maximum likelihood: every advantage is 1."""
    texts = [
        text(prompt.problem.metadata["a"], prompt.problem.metadata["b"], generator)
        for prompt in chosen
    ]
    completions = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    mask_BT = torch.zeros(len(texts), max(map(len, completions)))
    for row, ids in enumerate(completions):
        mask_BT[row, : len(ids)] = 1
    return Batch(
        prompt_ids=tuple(tuple(prompt.ids) for prompt in chosen),
        completion_ids=tuple(map(tuple, completions)),
        group_index_B=torch.arange(len(texts)),
        rewards_B=torch.ones(len(texts)),
        advantages_BT=mask_BT,
        mask_BT=mask_BT,
    )


def sampled_accuracy(policy: Policy, tokenizer: Any, prompts: Sequence[Prompt], seed: int) -> float:
    """Share of samples at temperature 1 that end in the right box."""
    engine = TransformersEngine(policy, [tokenizer.eos_token_id])
    engine.sync(policy, 0)
    groups = sample_groups(
        engine, prompts, 1, Sampling(max_tokens=MAX_TOKENS), run_seed=seed, step=0
    )
    texts = [
        tokenizer.decode(list(group.completions[0].token_ids), skip_special_tokens=True)
        for group in groups
    ]
    pairs = zip(texts, groups, strict=True)
    return fmean(text.endswith(f"{BOX}{group.problem.answer}}}") for text, group in pairs)


def build_models(out: Path, seeds: Sequence[int]) -> None:
    """The teacher, and a student for each seed."""
    imitate(out / "teacher", 0, TEACHER, teachers_text, 0.97, 2000)
    for seed in seeds:
        imitate(out / f"student{seed}", seed, STUDENT, students_text, 0.2, 4000)


@dataclass(frozen=True, slots=True)
class Arm:
    """Where an arm's traces come from."""

    samples: int
    rule: dict[str, Any]
    filter: dict[str, Any] = field(default_factory=dict)


UNFILTERED = {"correctness": "none", "max_fallback": 1.0, "keep": "all"}
ARMS = {
    "direct": Arm(1, {"arm": "teacher"}, UNFILTERED),
    "teacher": Arm(SAMPLES, {"arm": "teacher"}),
    "student": Arm(SAMPLES, {"arm": "student"}),
    "student, 32 samples": Arm(32, {"arm": "student"}),
    "rsd": Arm(SAMPLES, {"arm": "rsd"}),
    "rsd, one draw": Arm(SAMPLES, {"arm": "rsd", "draws": 1}),
    "rsd, threshold 0.1": Arm(SAMPLES, {"arm": "rsd", "threshold": 0.1}),
    "rsd, threshold 0.001": Arm(SAMPLES, {"arm": "rsd", "threshold": 0.001}),
}


def make_traces(out: Path, seed: int, name: str, count: int) -> Path:
    """Generate and filter an arm's traces; the file of those kept."""
    arm, folder = ARMS[name], out / f"seed{seed}" / name.replace(", ", "_").replace(" ", "_")
    kept = folder / "traces" / "kept.jsonl"
    if kept.is_file():
        return kept
    recipe = load_settings(
        DistillRecipe,
        {
            "task": "distill",
            "output": str(folder / "traces"),
            "seed": seed,
            "teacher": {"path": str(out / "teacher")},
            "student": {"path": str(out / f"student{seed}")},
            # Other problems for every seed, none of which the models were shown the answers of.
            "data": {
                "source": {"name": "file", "path": str(problem_file(out, seed, count))},
                "template": "plain",
            },
            "samples": arm.samples,
            "max_tokens": MAX_TOKENS,
            "acceptance_rule": arm.rule,
            "filter": {"keep": "shortest", **arm.filter},
        },
    )
    generate(recipe, resume=True, console=Console(quiet=True))
    run_filter(recipe)
    return kept


def problem_file(out: Path, seed: int, count: int) -> Path:
    """The problems that traces are written for."""
    path = out / f"seed{seed}" / "problems.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        source = load_settings(ArithmeticSource, {**PROBLEMS, "size": SHOWN + 3 * 2000})
        mine = load_problems(source)[SHOWN + 2000 * (seed % 3) :][:count]
        rows = [{"problem": p.messages[-1]["content"], "answer": p.answer} for p in mine]
        write_lines(path, rows)
    return path


def fine_tune(out: Path, seed: int, name: str, kept: Path, steps: int, lr: float) -> Path:
    """Train the seed's student on the traces; the run folder."""
    recipe = load_settings(
        SftRecipe,
        {
            "task": "sft",
            "output": str(kept.parents[1] / f"sft_{steps}_{lr:g}"),
            "seed": seed,
            "steps": steps,
            "model": {"path": str(out / f"student{seed}")},
            "data": {"sources": [str(kept)], "template": "plain", "per_step": 16},
            "learner": {"lr": lr, "tokens_per_micro_batch": 4096},
            "evaluation": {
                "every": steps,
                "sets": {"held_out": {**PROBLEMS, "size": 512, "split": "held_out"}},
                "sampling": {"max_tokens": MAX_TOKENS, "temperature": 0.0},
            },
            "checkpoint": {"every": steps, "keep": 1},
        },
    )
    if not (recipe.output / "model").is_dir():
        find_task("sft").train(recipe, resume=True, console=Console(quiet=True))
    return recipe.output


def measure(out: Path, seed: int, name: str, chosen: argparse.Namespace) -> dict[str, float]:
    """One arm of one seed: what its traces are like, and what the student learnt."""
    kept = make_traces(out, seed, name, chosen.problems)
    found = surprisal(score_traces([kept], str(out / f"student{seed}")))
    traces = read_traces(kept)
    own = [re.search(r"[ab]", trace.text.partition(BOX)[0]) is not None for trace in traces]
    folder = fine_tune(out, seed, name, kept, chosen.steps, chosen.lr)
    rows = read_metrics(folder / "metrics.jsonl")
    accuracy = [row[ACCURACY] for row in rows if ACCURACY in row]
    return {
        "traces": len(traces),
        "right": fmean(trace.text.endswith(f"{BOX}{trace.answer}}}") for trace in traces),
        "sound": fmean(map(sound, traces)),
        "teachers_notation": fmean(own),
        "by_student": fmean(trace.fallback_rate for trace in traces),
        "tokens": found.all.tokens,
        "improbable": found.all.improbable,
        "nll": found.all.nll,
        "before": accuracy[0],
        "after": accuracy[-1],
    }


def sound(trace: Trace) -> bool:
    """Whether the work is there and right, in either notation, and not the answer alone."""
    a, b = map(int, re.findall(r"\d+", trace.prompt)[:2])
    return trace.text in (worked_answer(a, b), lettered_answer(a, b))


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Means and standard deviations over seeds, as Markdown."""
    columns = {
        "traces": "{:.0f}",
        "right": "{:.3f}",
        "sound": "{:.3f}",
        "teachers_notation": "{:.3f}",
        "by_student": "{:.3f}",
        "improbable": "{:.2%}",
        "nll": "{:.3f}",
        "before": "{:.3f}",
        "after": "{:.3f}",
    }
    lines = ["| arm | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, seeds in results.items():
        cells = []
        for key, form in columns.items():
            values = [row[key] for row in seeds.values()]
            spread = f" ± {form.format(stdev(values))}" if len(values) > 1 else ""
            cells.append(form.format(fmean(values)) + spread)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, dict[str, float]]], out: Path) -> None:
    """Accuracy after training by arm, and against what the student thought of the traces before."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.8))
    for index, seeds in enumerate(results.values()):
        after = [row["after"] for row in seeds.values()]
        left.barh(index, fmean(after), color=f"C{index}", alpha=0.35)
        left.plot(after, [index] * len(after), "o", color=f"C{index}")
        right.plot([row["nll"] for row in seeds.values()], after, "o", color=f"C{index}")
    left.set_yticks(range(len(results)), list(results))
    left.invert_yaxis()
    left.set_xlim(0, 1.03)
    left.set_xlabel("held-out accuracy after training (a point is a seed)")
    right.set_xlim(0)
    right.set_ylim(0, 1.03)
    right.set_xlabel("mean NLL of the traces under the student before training (nats)")
    right.set_ylabel("held-out accuracy after training")
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    """Read the command line, make what is missing, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default="direct;teacher;student;rsd")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--steps", type=int, default=375)
    parser.add_argument("--lr", type=float, default=5e-4)
    chosen = parser.parse_args()
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    build_models(chosen.out, seeds)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in chosen.arms.split(";"):
        for seed in seeds:
            found = measure(chosen.out, seed, name, chosen)
            results.setdefault(name, {})[str(seed)] = found
            print(name, seed, {key: round(value, 4) for key, value in found.items()}, flush=True)
    name = f"results_{chosen.problems}_{chosen.steps}_{chosen.lr:g}"
    write_atomically(chosen.out / f"{name}.json", json.dumps(results, indent=1))
    draw(results, chosen.out / f"{name}.png")
    print(table(results))


if __name__ == "__main__":
    main()
