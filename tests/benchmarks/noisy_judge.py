"""Does weighing rewards by their uncertainty help where a judge is noisy?

The quickstart's warmed-up model learns three-digit addition from a judge instead of the verifier.
Of a share of responses, fixed by their text, the judge does not understand the answer and each of
its two looks is a coin's throw; of the others it is right. Arms: the mean of two looks, the same
with weights (``reward.uncertain``), and the verifier itself. A second judge throws its coins for
any response in any look alike (--constant), so that its looks disagree as often where they are
right as where they are wrong.

    python -m tests.benchmarks.noisy_judge MODEL OUT --seeds 0,1,2
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from reward.functions import RewardInput
from rlvr.settings import load_settings
from rlvr.train.log import read_metrics
from rlvr.train.quickstart import quickstart_recipe
from rlvr.train.recipe import RLRecipe
from rlvr.train.rl import train

CONFUSED = 0.5


def judge(item: RewardInput, *, look: int, constant: bool = False) -> float:
    """Right or wrong, or a coin's throw where the judge is confused."""
    right = float(item.grade.correct and not item.truncated)
    if not constant and _share(item, "confusing") >= CONFUSED:
        return right
    if constant and _share(item, f"look {look}") >= CONFUSED:
        return right
    return float(_share(item, f"coin {look}") < 0.5)


def _share(item: RewardInput, what: str) -> float:
    digest = hashlib.blake2b(f"{what}|{item.gold}|{item.response}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64


def reward_of(arm: str, constant: bool) -> dict[str, Any]:
    """The reward of an arm."""
    if arm == "verifier":
        return {}
    looks = [
        {
            "function": "tests.benchmarks.noisy_judge:judge",
            "parameters": {"look": look, "constant": constant},
        }
        for look in range(2)
    ]
    if arm == "weighted":
        return {"functions": [], "uncertain": {"scores": looks, "temperature": 0.25}}
    # At an endless temperature every weight is one.
    return {"functions": [], "uncertain": {"scores": looks, "temperature": 1e9}}


def run(model: Path, out: Path, arm: str, seed: int, steps: int, constant: bool) -> Path:
    """One training run."""
    values = quickstart_recipe(seed, out).model_dump(mode="json")
    values |= {
        "output": str(out / f"{arm}-{seed}"),
        "steps": steps,
        "model": {"path": str(model)},
        "reward": reward_of(arm, constant),
    }
    recipe = load_settings(RLRecipe, values)
    return train(recipe, console=Console(quiet=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="the quickstart's tiny-llama after its warm-up")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--arms", default="plain,weighted,verifier")
    parser.add_argument("--constant", action="store_true")
    given = parser.parse_args()
    for arm in given.arms.split(","):
        for seed in map(int, given.seeds.split(",")):
            began = time.process_time()
            folder = run(given.model, given.out, arm, seed, given.steps, given.constant)
            rows = read_metrics(folder / "metrics.jsonl")
            accuracy = {
                row["step"]: round(row["eval/held_out/accuracy"], 3)
                for row in rows
                if "eval/held_out/accuracy" in row
            }
            found: dict[str, Any] = {"arm": arm, "seed": seed, "accuracy": accuracy}
            for name in ("reward/uncertainty", "reward/score_error", "reward/uncertainty_error"):
                values = [row[name] for row in rows if name in row]
                if values:
                    found[name] = round(fmean(values), 3)
            found["cpu_seconds"] = round(time.process_time() - began)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
