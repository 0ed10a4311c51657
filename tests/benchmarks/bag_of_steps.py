"""Where does a reward model put the blame, with the outcome on the bag of steps or on each?

    python -m tests.benchmarks.bag_of_steps runs/quickstart/tiny-llama OUT --seeds 0,1,2

The data and the planted errors are those of tests/benchmarks/implicit_prm.py: 8 labelled answers to
each of 400 problems, and right worked answers of held-out problems in which one column sum is
replaced. One reward model for every rho of the objective bag (recipes/prm/tiny_ce.yaml otherwise).
A line for each: share in which the lowest step reward falls on the replaced step, beside what a
rule with the same habits and no knowledge would reach, and how responses are ranked.
"""

import argparse
import json
import time
from pathlib import Path

from rich.console import Console

from rlvr.runs.log import read_metrics
from rlvr.settings import load_settings
from rlvr.tasks.prm import PrmRecipe
from rlvr.tasks.registry import find_task
from tests.benchmarks.implicit_prm import STEPS, blame, planted, sample, write


def train_bag(model: str, folder: Path, rho: float, seed: int) -> Path:
    """One reward model; its run folder."""
    out = folder / f"rho{rho:g}"
    recipe = load_settings(
        PrmRecipe,
        Path("recipes/prm/tiny_ce.yaml"),
        [
            f"output={out}",
            f"seed={seed}",
            f"model.path={model}",
            f"objective={json.dumps({'name': 'bag', 'beta': 0.05, 'rho': rho})}",
            f"data.steps={json.dumps(STEPS)}",
            f"data.sources=[{folder / 'train.jsonl'}]",
            f"evaluation.responses={{held_out: [{folder / 'held_out.jsonl'}]}}",
        ],
    )
    return find_task("prm").train(recipe, resume=True, console=Console(quiet=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rhos", default="0,0.3,1")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=200)
    given = parser.parse_args()
    for seed in map(int, given.seeds.split(",")):
        folder, began = given.out / f"seed{seed}", time.process_time()
        if not (folder / "held_out.jsonl").is_file():
            sample(given.model, "train", given.problems, 8, seed, folder / "train.jsonl")
            sample(given.model, "held_out", given.held_out, 16, seed, folder / "held_out.jsonl")
        rows = [json.loads(line) for line in (folder / "held_out.jsonl").open()]
        kinds = {kind: planted(rows, seed, kind) for kind in ("alone", "carried")}
        for kind, cases in kinds.items():
            write(folder / f"{kind}.jsonl", [row for row, _ in cases])
        for rho in map(float, given.rhos.split(",")):
            run = train_bag(given.model, folder, rho, seed)
            metrics = read_metrics(run / "metrics.jsonl")
            last = [row for row in metrics if "eval/held_out/auc" in row][-1]
            found: dict[str, object] = {"seed": seed, "rho": rho}
            for kind, cases in kinds.items():
                hit = blame(run / "model", given.model, cases, folder / f"{kind}.jsonl")
                names = ("hits", "habit_chance", "lowest_by_step", "cases")
                found[kind] = {
                    name: [round(v, 3) for v in hit[name]]
                    if isinstance(hit[name], list)
                    else round(hit[name], 3)
                    for name in names
                }
            for name in ("auc", "auc_within", "brier"):
                found[name] = round(last[f"eval/held_out/{name}"], 3)
            found["cpu_seconds"] = round(time.process_time() - began)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
