r"""Does another comp-sum loss learn more from demonstrations with wrong tokens? Minutes on a CPU.

    python -m tests.benchmarks.noisy_sft runs/noisy_sft --seeds 0,1,2

Addition of three-digit numbers by the students of ``tests.benchmarks.rsd``, which guess mostly.
They are fine-tuned on worked answers in which every digit is, with some probability, another one
drawn at random. The same problems, digits and order in every arm; only ``tau`` of ``task: sft``
differs. What is there already is not done again.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch
from rich.console import Console

from rlvr.data import ArithmeticSource, encode_prompts, load_problems, load_template
from rlvr.data.demonstrations import load_demonstrations
from rlvr.files import write_atomically, write_lines
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.responses import response_logprobs
from rlvr.policy.settings import ModelSettings
from rlvr.quickstart import worked_answer
from rlvr.runs.log import read_metrics
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task
from rlvr.tasks.sft import SftRecipe
from tests.benchmarks.rsd import (
    ACCURACY,
    MAX_TOKENS,
    PROBLEMS,
    SHOWN,
    STUDENT,
    imitate,
    sampled_accuracy,
    students_text,
)

HELD_OUT = {**PROBLEMS, "size": 512, "split": "held_out"}


def spoilt(text: str, noise: float, generator: random.Random) -> str:
    """Every digit is another one with probability ``noise``."""
    return "".join(
        generator.choice([d for d in "0123456789" if d != letter])
        if letter.isdigit() and generator.random() < noise
        else letter
        for letter in text
    )


def write_traces(path: Path, seed: int, noise: float, count: int) -> Path:
    """Demonstrations for problems that the student was not shown, with their clean text."""
    if not path.is_file():
        source = load_settings(ArithmeticSource, {**PROBLEMS, "size": SHOWN + 3 * 2000})
        mine = load_problems(source)[SHOWN + 2000 * (seed % 3) :][:count]
        generator = random.Random(f"{seed} {noise}")
        rows = []
        for problem in mine:
            clean = worked_answer(problem.metadata["a"], problem.metadata["b"])
            rows.append(
                {
                    "prompt": problem.messages[-1]["content"],
                    "response": spoilt(clean, noise, generator),
                    "clean": clean,
                }
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, rows)
    return path


def fine_tune(student: Path, traces: Path, seed: int, tau: float, chosen: argparse.Namespace):
    """Train the student on the traces; the run folder."""
    recipe = load_settings(
        SftRecipe,
        {
            "task": "sft",
            "output": str(traces.with_name(f"{traces.stem}_tau_{tau:g}")),
            "seed": seed,
            "steps": chosen.steps,
            "tau": tau,
            "model": {"path": str(student)},
            "data": {"sources": [str(traces)], "template": "plain", "per_step": 16},
            "learner": {"lr": chosen.lr, "tokens_per_micro_batch": 4096},
            "evaluation": {
                "every": chosen.steps // 5,
                "sets": {"held_out": HELD_OUT},
                "sampling": {"max_tokens": MAX_TOKENS, "temperature": 0.0},
            },
            "checkpoint": {"every": chosen.steps, "keep": 1},
        },
    )
    if not (recipe.output / "model").is_dir():
        find_task("sft").train(recipe, resume=True, console=Console(quiet=True))
    return recipe.output


def measure(
    student: Path, traces: Path, seed: int, tau: float, chosen: argparse.Namespace
) -> dict[str, float]:
    """What became of one student."""
    folder = fine_tune(student, traces, seed, tau, chosen)
    rows = read_metrics(folder / "metrics.jsonl")
    greedy = [row[ACCURACY] for row in rows if ACCURACY in row]
    model = ModelSettings(path=str(folder / "model"))
    policy, tokenizer = load_policy(model), load_tokenizer(model)
    template = load_template("plain")
    held_out = load_problems(load_settings(ArithmeticSource, HELD_OUT))
    prompts = encode_prompts(held_out, template, tokenizer, 64).prompts
    learnt = load_demonstrations([traces], template, tokenizer)
    logprobs = torch.cat(
        response_logprobs(
            policy, [item.prompt_ids for item in learnt], [item.token_ids for item in learnt]
        )
    )
    clean = [tokenizer(item.row["clean"])["input_ids"] for item in learnt]
    wrong = torch.tensor(
        [
            given != right
            for item, ids in zip(learnt, clean, strict=True)
            for given, right in zip(item.token_ids, [*ids, tokenizer.eos_token_id], strict=True)
        ]
    )
    return {
        "before": greedy[0],
        "greedy": greedy[-1],
        "best": max(greedy),
        "sampled": sampled_accuracy(policy, tokenizer, prompts, seed),
        "p_right": logprobs[~wrong].exp().mean().item(),
        "p_wrong": logprobs[wrong].exp().mean().item() if wrong.any() else 0.0,
        "wrong": wrong.double().mean().item(),
    }


def table(results: Mapping[tuple[float, float], Sequence[dict[str, float]]]) -> str:
    """Means and standard deviations over seeds, as Markdown."""
    columns = list(next(iter(results.values()))[0])
    lines = [
        "| noise | tau | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for (noise, tau), rows in results.items():
        cells = []
        for name in columns:
            values = [row[name] for row in rows]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.3f}{spread}")
        lines.append(f"| {noise:g} | {tau:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, make what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--noise", default="0,0.1,0.3", help="wrong digits, as probabilities")
    parser.add_argument("--tau", default="1,1.4,1.7")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--steps", type=int, default=375)
    parser.add_argument("--lr", type=float, default=5e-4)
    chosen = parser.parse_args()
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    results: dict[tuple[float, float], list[dict[str, float]]] = {}
    for seed in seeds:
        student = chosen.out / f"student{seed}"
        imitate(student, seed, STUDENT, students_text, 0.2, 4000)
        for noise in map(float, chosen.noise.split(",")):
            name = f"traces_{noise:g}_{chosen.problems}_{chosen.steps}_{chosen.lr:g}.jsonl"
            traces = write_traces(chosen.out / f"seed{seed}" / name, seed, noise, chosen.problems)
            for tau in map(float, chosen.tau.split(",")):
                found = measure(student, traces, seed, tau, chosen)
                results.setdefault((noise, tau), []).append(found)
                shown = {key: round(value, 4) for key, value in found.items()}
                print(f"noise {noise:g} tau {tau:g} seed {seed} {shown}", flush=True)
    kept = [{"noise": n, "tau": t, "seeds": rows} for (n, t), rows in results.items()]
    write_atomically(chosen.out / "results.json", json.dumps(kept, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
