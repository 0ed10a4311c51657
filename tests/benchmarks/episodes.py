"""A game that needs several turns, learnt from rewards alone: guess a number that is hidden.

    python -m tests.benchmarks.episodes --out build/episodes --seeds 0,1,2

A tiny model is taught by examples to write numbers at random, in every turn of the game. Then it
plays ``guess_number`` with numbers from 1 to 8 and four turns, rewarded for finding the number.
The best policy of a single turn finds one in 8; without a word from the environment four guesses
find one in 2; halving finds every one. OUT/results.jsonl has a line for each evaluation; a run that
is there is not run again.
"""

import argparse
import random
from pathlib import Path
from typing import Any

from rlvr.files import append_line, read_lines, write_lines
from rlvr.policy.tiny import TinySettings, write_tiny_model
from tests.training import run

HIGH, TURNS = 8, 4
STEPS, EVERY = 600, 60


def write_model(folder: Path) -> Path:
    """A tiny model that writes numbers at random; its folder."""
    warm = folder / "warm"
    if (warm / "model" / "model.safetensors").exists():
        return warm / "model"
    write_tiny_model(folder / "model", 0, TinySettings(context=128))
    draw = random.Random(0)
    rows = []
    for _ in range(2000):
        said = "".join(
            f"{draw.randint(1, HIGH)}<eos>{draw.choice(('higher', 'lower'))}"
            for _ in range(draw.randrange(TURNS))
        )
        rows.append({"prompt": f"1-{HIGH}?{said}", "response": str(draw.randint(1, HIGH))})
    write_lines(folder / "numbers.jsonl", rows)
    recipe = {
        "task": "sft",
        "output": str(warm),
        "steps": 150,
        "model": {"path": str(folder / "model")},
        "data": {"sources": [str(folder / "numbers.jsonl")], "per_step": 64, "template": "plain"},
        "learner": {"lr": 2e-3},
    }
    run(recipe)
    return warm / "model"


def recipe_of(model: Path, output: Path, seed: int, turns: int) -> dict[str, Any]:
    """The game."""
    tasks = {"name": "episodes", "size": 2000}
    return {
        "output": str(output),
        "seed": seed,
        "steps": STEPS,
        "model": {"path": str(model)},
        "data": {"source": tasks, "template": "plain", "max_prompt_tokens": 16},
        "environment": {
            "name": "guess_number",
            "parameters": {"high": HIGH},
            "max_turns": turns,
            "max_tokens": 64,
        },
        "rollout": {
            "prompts_per_step": 16,
            "samples_per_prompt": 8,
            "sampling": {"max_tokens": 3},
        },
        "learner": {"lr": 1e-3},
        "evaluation": {
            "every": EVERY,
            "sets": {"held_out": {**tasks, "size": 200, "split": "held_out"}},
            "sampling": {"max_tokens": 3, "temperature": 1.0},
        },
        "checkpoint": {"every": STEPS, "keep": 1},
    }


def main() -> None:
    """Run what was not run yet, and print the curve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/episodes"))
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    model, results = write_model(out), out / "results.jsonl"
    done = list(read_lines(results, ended=True).objects) if results.exists() else []
    seeds = [int(seed) for seed in given.seeds.split(",")]
    for turns, own in ((TURNS, seeds), (1, seeds[:1])):
        for seed in own:
            if any((row["seed"], row["turns"]) == (seed, turns) for row in done):
                continue
            folder = out / f"turns_{turns}_seed_{seed}"
            _, metrics = run(recipe_of(model, folder, seed, turns), resume=folder.exists())
            for row in metrics:
                if "eval/held_out/reward" in row:
                    found = {"seed": seed, "turns": turns, "step": row["step"]}
                    found["found"] = row["eval/held_out/reward"]
                    append_line(results, found)
                    done.append(found)
            print(done[-1], flush=True)
    print("| step | " + " | ".join(f"{t} turns, seed {s}" for t, s in _runs(done)) + " |")
    for step in sorted({row["step"] for row in done}):
        cells = [
            next(
                f"{r['found']:.3f}"
                for r in done
                if (r["turns"], r["seed"], r["step"]) == (*one, step)
            )
            for one in _runs(done)
        ]
        print(f"| {step} | " + " | ".join(cells) + " |")


def _runs(done: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return sorted({(row["turns"], row["seed"]) for row in done}, reverse=True)


if __name__ == "__main__":
    main()
