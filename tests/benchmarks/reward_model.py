"""Explicit reward models of the tiny model's own samples: ties, pairs across prompts, calibration.

    python -m tests.benchmarks.reward_model runs/quickstart/tiny-llama OUT --seeds 0,1,2

For every seed: sample 8 answers to each of 400 problems and 16 to each of 200 held-out ones, then

    pairs        train by Bradley-Terry without ties, with ties, as released, across prompts, by the
                 listwise loss and by cross-entropy, and rank the held-out samples
    calibration  train by cross-entropy with early stopping, go on from there with the labels and
                 with CaPE, and measure all on the held-out problems
    rates        the same with the prompts alone: how often will a problem be passed

Everything is written to OUT/summary.json, with OUT/reliability.svg of the first seed.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console

from rlvr.data.labelled_responses import load_responses
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.reward_models.calibration import brier, calibration
from rlvr.reward_models.measures import best_and_spread
from rlvr.reward_models.reliability import reliability_svg
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task
from rlvr.tasks.reward_model import RewardModelRecipe
from rlvr.tasks.tools.rank import rank
from rlvr.tasks.tools.score import Scoring, score
from tests.benchmarks.implicit_prm import sample

RECIPES = Path("recipes/reward_model")
PAIRS = {
    "bt": ["pairs={}"],
    "win_tie": ["pairs={ties: 0.25}"],
    "win_tie_x4": ["pairs={ties: 0.25}", "loss={name: bradley_terry, tie_weight: 4.0}"],
    "released": [
        "pairs={ties: 0.25}",
        "loss={name: bradley_terry, form: released, margin: 3.0, tie_margin: 3.0}",
    ],
    "across": ["pairs={ties: 0.25, within: 0.5}"],
    "ldr": ["pairs={}", "loss={name: ldr}", "data.per_step=16"],
    "ce": ["pairs={}", "loss={name: ce}"],
}
CALIBRATION = ("brier", "nll", "ece", "ece_quantile", "ece_quantile_weighted", "mce", "ks")


def run(recipe, folder, name, overrides):
    """Train as a recipe says, from where it was left; the run folder."""
    loaded = load_settings(
        RewardModelRecipe,
        RECIPES / f"{recipe}.yaml",
        [f"output={folder / name}", f"data.sources=[{folder / 'train.jsonl'}]", *overrides],
    )
    return find_task("reward_model").train(loaded, resume=True, console=Console(quiet=True))


def scores(folder, out):
    """Rewards, labels and problems of the held-out samples."""
    scored = score(load_responses([folder / "held_out.jsonl"]), Scoring(str(out / "model")))
    return scored, [item.steps[0] for item in scored]


def largest_advantage(rewards, groups):
    """Mean over problems of the largest |A|, A normalised within the group."""
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([names[group] for group in groups])
    found = GroupAdvantage(scale="std")(torch.tensor(rewards), index).abs()
    return fmean(float(found[index == place].max()) for place in names.values())


def pairs_of(model, folder, seed, arms):
    found = {}
    for name, overrides in PAIRS.items():
        if arms and name not in arms:
            continue
        common = [f"seed={seed}", f"model.path={model}", "data.hold_out=0", "evaluation={}"]
        scored, rewards = scores(folder, run("tiny_win_tie", folder, name, common + overrides))
        labels = [bool(item.response.correct) for item in scored]
        groups = [item.response.problem for item in scored]
        ranked = rank(scored)
        curves = ranked["curves"]
        found[name] = {
            "auc_within": ranked["quality"]["auc_within"],
            "auc": ranked["quality"]["auc"],
            "pair_accuracy": ranked["quality"]["pairs"],
            **{f"best_of_{n}": curves["best_of_n"][n]["value"] for n in ("1", "4", "16")},
            "weighted_vote": curves["weighted_vote"]["16"]["value"],
            "majority": curves["majority"]["16"]["value"],
            "pass": curves["pass"]["16"]["value"],
            **best_and_spread(rewards, labels, groups),
            "largest_advantage": largest_advantage(rewards, groups),
        }
        print(f"seed {seed} {name}", {k: round(v, 3) for k, v in found[name].items()}, flush=True)
    return found


def measured(folder, out, part, best):
    """Calibration on the held-out samples, and the squared error to the rate of each problem.

    Of the run's best model by its own validation, or of its last.
    """
    if part == "prompt":
        lines = map(json.loads, (out / "metrics.jsonl").open())
        rows = [row for row in lines if "eval/test/nll" in row]
        own = min(rows, key=lambda row: row["eval/held_out/nll"]) if best else rows[-1]
        return {name: own[f"eval/test/{name}"] for name in (*CALIBRATION, "rate_mse")}, ()
    scored, rewards = scores(folder, out)
    found = calibration(rewards, [float(bool(item.response.correct)) for item in scored])
    return {name: getattr(found, name) for name in CALIBRATION}, found.bins


def calibrated(model, folder, seed, part, plot, chosen):
    """Early stopped, on from there with the labels, and on from there with CaPE."""
    common = [f"seed={seed}", f"data.part={part}"]
    if part == "prompt":  # the measures need the rewards that the run itself takes
        common.append(f"evaluation.responses={{test: [{folder / 'held_out.jsonl'}]}}")
    first = run("tiny_ce", folder, f"{part}_early", [*common, f"model.path={model}"])
    start = [*common, f"model.path={first / 'model'}"]
    arms = {
        "labels": ["calibration=null", "evaluation.keep_best=null"],
        "labels_best": ["calibration=null"],
        "cape": [],
        "cape_last": ["evaluation.keep_best=null"],
        "kernel": ["calibration.targets={name: kernel}"],
    }
    found, bins = {}, {}
    for name, own in {"early": None, **arms}.items():
        if chosen and name not in chosen:
            continue
        out = first
        if own is not None:
            out = run("tiny_cape", folder, f"{part}_{name}", [*start, *own])
        best = name not in ("labels", "cape_last")
        found[name], bins[name] = measured(folder, out, part, best)
        print(f"seed {seed} {part} {name}", {k: round(v, 4) for k, v in found[name].items()},
              flush=True)  # fmt: skip
    if plot and part == "response":
        shown = {name: bins[name] for name in ("early", "labels", "cape")}
        plot.write_text(reliability_svg(shown, "Held-out problems, seed 0"))
    return found


def base_rates(folder):
    """What the best constant would have: the Brier score and the error to the rates."""
    rows = [json.loads(line) for line in (folder / "held_out.jsonl").open()]
    problems = {}
    for row in rows:
        problems.setdefault(row["problem_id"], []).append(float(row["correct"]))
    labels = torch.tensor([label for own in problems.values() for label in own])
    rates = torch.tensor([fmean(own) for own in problems.values()])
    mean = labels.mean()
    return {
        "right": float(mean),
        "brier": brier(mean.expand_as(labels), labels),
        "rate_mse": brier(mean.expand_as(rates), rates),
        "rate_noise": fmean(fmean(own) * (1 - fmean(own)) / (len(own) - 1)
                            for own in problems.values()),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--only", default="pairs,calibration,rates")
    parser.add_argument("--arms", default="", help="names of arms, with commas; all without")
    given = parser.parse_args()
    arms = [name for name in given.arms.split(",") if name]
    path = given.out / "summary.json"
    summary = json.loads(path.read_text()) if path.is_file() else {}
    for seed in given.seeds.split(","):
        folder, own = given.out / f"seed{seed}", summary.setdefault(seed, {})
        if not (folder / "held_out.jsonl").is_file():
            sample(given.model, "train", given.problems, 8, int(seed), folder / "train.jsonl")
            sample(
                given.model, "held_out", given.held_out, 16, int(seed), folder / "held_out.jsonl"
            )
        own["base"] = base_rates(folder)
        plot = given.out / "reliability.svg" if seed == "0" else None
        if "pairs" in given.only:
            own["pairs"] = own.get("pairs", {}) | pairs_of(given.model, folder, seed, arms)
        if "calibration" in given.only:
            own["calibration"] = own.get("calibration", {}) | calibrated(
                given.model, folder, seed, "response", plot, arms
            )
        if "rates" in given.only:
            own["rates"] = own.get("rates", {}) | calibrated(
                given.model, folder, seed, "prompt", None, arms
            )
        path.write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
