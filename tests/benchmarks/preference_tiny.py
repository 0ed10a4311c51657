"""Does a policy get better at its task from pairs of its own right and wrong answers?

For every seed: the quickstart's warm-up, one graded rollout of the model it leaves, pairs of right
and wrong answers within a prompt, and one training run per loss; the recipes are
recipes/preference_tiny*.yaml. Prints a line per loss and draws the curves.

    python -m tests.benchmarks.preference_tiny --work runs/preference-tiny \
        --out docs/images/preference_tiny.png
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from rlvr.data.graded import write_preferences
from rlvr.quickstart import warm_up_once
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train as train_policy
from rlvr.runs.log import read_metrics
from rlvr.settings import load_settings
from rlvr.tasks.preference import PreferenceRecipe
from rlvr.tasks.registry import find_task

RECIPES = Path(__file__).parents[2] / "recipes"
BY_HAND = {"P": "(l -> w) & (rw -> w)", "P_C": "w | l | rw"}
ARMS: dict[str, dict[str, Any]] = {
    "DPO": {"name": "sigmoid", "beta": 0.1},
    "cCPO": {"name": "logic", "structure": "cCPO"},
    "by hand": {"name": "logic", "structure": BY_HAND},
    "KTO": {"name": "kto", "beta": 0.1},
}
ACCURACY = "eval/held_out/accuracy"
CHOSEN, REJECTED = "preference/chosen_logps", "preference/rejected_logps"
Curve = dict[str, list[tuple[int, float]]]


def prepare(work: Path, seed: int, console: Console) -> dict[str, int]:
    """Model, samples and preferences of a seed; how many preferences there are."""
    model = work / "tiny-llama"
    warm_up_once(seed, model, console)
    overrides = [f"output={work / 'samples'}", f"seed={seed}", f"model.path={model}"]
    recipe = load_settings(RLRecipe, RECIPES / "preference_tiny_samples.yaml", overrides)
    samples = train_policy(recipe, console=console)
    return {
        name: write_preferences([samples], work / f"{name}.jsonl", per_prompt=4, labelled=labelled)
        for name, labelled in (("pairs", False), ("labelled", True))
    }


def train(work: Path, seed: int, arm: str, console: Console) -> Curve:
    """One training run; its curves by metric."""
    unpaired = arm == "KTO"
    overrides = [
        f"output={work / arm.replace(' ', '-')}",
        f"seed={seed}",
        f"model.path={work / 'tiny-llama'}",
        f"data.source.path={work / ('labelled' if unpaired else 'pairs')}.jsonl",
        f"data.per_step={64 if unpaired else 32}",
        f"losses={json.dumps([ARMS[arm]])}",
    ]
    recipe = load_settings(PreferenceRecipe, RECIPES / "preference_tiny.yaml", overrides)
    folder = find_task("preference").train(recipe, console=console)
    rows = read_metrics(folder / "metrics.jsonl")
    return {
        name: [(row["step"], row[name]) for row in rows if name in row]
        for name in (ACCURACY, CHOSEN, REJECTED, "time/step", "learner/skipped_updates")
    }


def summary(arm: str, runs: list[Curve]) -> dict[str, Any]:
    """What the page shows of a loss: means over seeds."""
    accuracy = {
        step: [round(dict(run[ACCURACY])[step], 3) for run in runs] for step, _ in runs[0][ACCURACY]
    }
    found: dict[str, Any] = {"loss": arm, "accuracy": accuracy}
    for name in (CHOSEN, REJECTED):
        if runs[0][name]:
            ends = [[run[name][at][1] for run in runs] for at in (0, -1)]
            found[name] = [round(statistics.fmean(values), 2) for values in ends]
    seconds = [value for run in runs for _, value in run["time/step"]]
    found["median_seconds_per_step"] = round(statistics.median(seconds), 2)
    found["skipped_updates"] = sum(run["learner/skipped_updates"][-1][1] for run in runs)
    return found


def draw(curves: dict[str, list[Curve]], path: Path) -> None:
    """Means over seeds: accuracy, and log-probabilities of chosen and rejected completions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8))
    for arm, runs in curves.items():
        steps, values = _mean(runs, ACCURACY)
        (line,) = left.plot(steps, values, marker="o", markersize=3, label=arm)
        for name, style in ((CHOSEN, "-"), (REJECTED, "--")):
            if runs[0][name]:
                right.plot(*_mean(runs, name), style, color=line.get_color(), linewidth=1.3)
    left.set_title("held-out accuracy, greedy")
    right.set_title("log-probability: chosen, and rejected (dashed)")
    for axis in (left, right):
        axis.set_xlabel("step")
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _mean(runs: list[Curve], name: str) -> tuple[list[int], list[float]]:
    steps = [step for step, _ in runs[0][name]]
    return steps, [statistics.fmean(run[name][i][1] for run in runs) for i in range(len(steps))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything")
    parser.add_argument("--out", type=Path, help="picture to write")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    curves: dict[str, list[Curve]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        work = options.work / f"seed{seed}"
        print(json.dumps({"seed": seed, **prepare(work, seed, console)}), flush=True)
        for arm, runs in curves.items():
            runs.append(train(work, seed, arm, console))
    for arm, runs in curves.items():
        print(json.dumps(summary(arm, runs)))
    if options.out is not None:
        draw(curves, options.out)


if __name__ == "__main__":
    main()
