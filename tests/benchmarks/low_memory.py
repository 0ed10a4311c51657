r"""What do weights, moments and gradients in fewer bits cost in accuracy? Minutes on a CPU.

    python -m tests.benchmarks.low_memory runs/low_memory --seeds 0,1,2

The task of ``rlvr quickstart``, shorter: one tiny model, warmed up by imitation, from which every
option learns by 20 steps of 16 problems x 8 samples; a seed is one of problems, samples and
adapters. What is there already is not done again, so that a stopped command goes on when it is
given again; it ends with the table of what is there.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from rlvr.files import write_atomically
from rlvr.quickstart import quickstart_recipe, warm_up_once
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train
from rlvr.runs.log import read_metrics
from rlvr.settings import load_settings

LORA = {"model.lora.rank": 16, "model.lora.alpha": 32, "learner.lr": 4e-3}
OPTIONS: dict[str, dict[str, Any]] = {
    "all float32": {},
    "weights bfloat16": {"model.weights": "bfloat16"},
    "moments bfloat16": {"learner.optimizer_states": "bfloat16"},
    "moments int8": {"learner.optimizer_states": "int8"},
    "per_tensor": {"learner.in_backward": "per_tensor"},
    "weights bfloat16, moments int8, per_tensor": {
        "model.weights": "bfloat16",
        "learner.optimizer_states": "int8",
        "learner.in_backward": "per_tensor",
    },
    "adapters, base float32": LORA,
    "adapters, base nf4": {**LORA, "model.frozen_weights": "nf4"},
}
SHORTER: dict[str, Any] = {
    "steps": 20,
    "rollout.prompts_per_step": 16,
    "learner.lr": 1e-3,
    "evaluation.every": 20,
    "checkpoint.every": 20,
    "watchdog": None,
    "log.completions_per_step": 0,
}


def recipe_of(seed: int, option: str, place: Path) -> RLRecipe:
    """The quickstart's recipe with an option's settings."""
    data = quickstart_recipe(seed, place).model_dump(mode="json")
    output = place / f"seed{seed}" / option.replace(" ", "_").replace(",", "")
    for key, value in {**SHORTER, **OPTIONS[option], "output": str(output)}.items():
        inner, names = data, key.split(".")
        for name in names[:-1]:
            inner[name] = inner.get(name) or {}
            inner = inner[name]
        inner[names[-1]] = value
    return load_settings(RLRecipe, data)


def run(seed: int, option: str, place: Path, console: Console) -> dict[str, float]:
    """Held-out accuracy before and after, trained unless it has been."""
    recipe = recipe_of(seed, option, place)
    record = recipe.output / "accuracy.json"
    if not record.is_file():
        warm_up_once(0, place / "tiny-llama", console)
        train(recipe, resume=True, console=console)
        rows = read_metrics(recipe.output / "metrics.jsonl")
        values = [r["eval/held_out/accuracy"] for r in rows if "eval/held_out/accuracy" in r]
        write_atomically(record, json.dumps({"before": values[0], "after": values[-1]}))
    found: dict[str, float] = json.loads(record.read_text())
    return found


def table(place: Path, seeds: Sequence[int]) -> str:
    """What there is, as Markdown: mean and standard deviation over seeds."""
    lines = ["| option | before | after | seeds |", "|---|---|---|---|"]
    for option in OPTIONS:
        files = [recipe_of(seed, option, place).output / "accuracy.json" for seed in seeds]
        found = [json.loads(file.read_text()) for file in files if file.is_file()]
        if found:
            cells = [_spread([one[when] for one in found]) for when in ("before", "after")]
            lines.append(f"| {option} | {cells[0]} | {cells[1]} | {len(found)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def main() -> None:
    """Train what is missing, seed after seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--options", default=";".join(OPTIONS), help="separated by ;")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    console = Console(quiet=True)
    for seed in seeds:
        for option in options.options.split(";"):
            found = run(seed, option, options.place, console)
            print(
                f"seed {seed}  {option}: {found['before']:.3f} -> {found['after']:.3f}", flush=True
            )
    print(table(options.place, seeds))


if __name__ == "__main__":
    main()
