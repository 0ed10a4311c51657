"""Reinforcement learning from a judge that errs, with and without notice of how sure it is.

    python -m tests.benchmarks.noisy_judge runs/quickstart/tiny-llama OUT --seeds 0,1,2

recipes/reward_model/tiny_noisy_judge.yaml, for every seed without weighting and with each of the
two. Held-out accuracy is the verifier's; everything is written to OUT/summary.json.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train
from rlvr.settings import load_settings

RECIPE = Path("recipes/reward_model/tiny_noisy_judge.yaml")
NAME = "noisy_judge"
ARMS = {
    "none": ["reward.uncertainty=null"],
    "rewards": [],
    "advantages": ["reward.uncertainty.apply=advantages"],
    "verifier": ["reward={functions: [{function: accuracy}]}"],
}


def run(model, folder, overrides, seed, steps):
    recipe = load_settings(
        RLRecipe,
        RECIPE,
        [f"output={folder}", f"model.path={model}", f"seed={seed}", f"steps={steps}", *overrides],
    )
    train(recipe, resume=True, console=Console(quiet=True))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    key = f"reward/{NAME}/uncertainty_error"
    return {
        "accuracy": {
            row["step"]: row["eval/held_out/accuracy"]
            for row in rows
            if "eval/held_out/accuracy" in row
        },
        "uncertainty_error": [row[key] for row in rows if key in row],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--arms", default=",".join(ARMS))
    given = parser.parse_args()
    path = given.out / "summary.json"
    summary = json.loads(path.read_text()) if path.is_file() else {}
    for seed in given.seeds.split(","):
        for arm in given.arms.split(","):
            folder = given.out / f"{arm}_{seed}"
            found = run(given.model, folder, ARMS[arm], seed, given.steps)
            summary.setdefault(seed, {})[arm] = found
            shown = {step: round(value, 3) for step, value in found["accuracy"].items()}
            print(f"seed {seed} {arm}", shown, flush=True)
            path.write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
