"""Do a mixture's pathways tell memorising from generalising, on two-digit addition?

A tiny mixture of experts learns worked sums by imitation: of 32 problems, which it can only
memorise, or of 6,000. Every 50 updates the pathways of 64 training problems and of 64 held-out ones
are measured, each problem followed by its worked answer, beside greedy accuracy on both. Prints a
line per measurement and draws the means over seeds.

    python -m tests.benchmarks.mixture --seeds 0,1,2 --out docs/images/mixture.png
"""

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from rlvr.data import ArithmeticSource, Prompt, encode_prompts, load_problems, load_template
from rlvr.learner.learner import Learner
from rlvr.learner.methods.router import RouterHook, RouterSettings
from rlvr.learner.settings import LearnerSettings, Schedule
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.reinforce import Reinforce
from rlvr.objective.reducers import TokenMean
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import BOX, TinySettings, write_tiny_model
from rlvr.quickstart import worked_answer
from rlvr.rl.recipe import PathwaySettings
from rlvr.rl.routing_probe import Probe
from rlvr.rollout.groups import sample_groups
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.settings import load_settings
from rlvr.types import Batch

DIGITS, BATCH, PROBED = 2, 64, 64
ARMS = {"32 problems": 32, "6000 problems": 6000}
SHAPE = TinySettings(hidden_size=64, layers=3, experts=8, expert_size=64)


def worked(prompt: Prompt) -> Prompt:
    """The problem with its worked answer in the place of the bare one."""
    data = prompt.problem.metadata
    answer = worked_answer(data["a"], data["b"], DIGITS)
    return replace(prompt, problem=replace(prompt.problem, answer=answer))


def problems(tokenizer: Any, size: int, split: str) -> list[Prompt]:
    given = {"name": "arithmetic", "digits": DIGITS, "least_operand": 10, "size": size}
    source = load_settings(ArithmeticSource, {**given, "split": split})
    encoded = encode_prompts(load_problems(source), load_template("plain"), tokenizer, 64)
    return [worked(prompt) for prompt in encoded.prompts]


def demonstrations(prompts: list[Prompt], tokenizer: Any) -> Batch:
    texts = [prompt.problem.answer for prompt in prompts]
    completions = [(*ids, tokenizer.eos_token_id) for ids in tokenizer(texts)["input_ids"]]
    mask_BT = torch.zeros(len(prompts), max(map(len, completions)))
    for row, ids in enumerate(completions):
        mask_BT[row, : len(ids)] = 1
    return Batch(
        prompt_ids=tuple(tuple(prompt.ids) for prompt in prompts),
        completion_ids=tuple(completions),
        group_index_B=torch.arange(len(prompts)),
        rewards_B=torch.ones(len(prompts)),
        advantages_BT=mask_BT,
        mask_BT=mask_BT,
    )


def accuracy(engine: TransformersEngine, prompts: list[Prompt], tokenizer: Any) -> float:
    groups = sample_groups(
        engine, prompts, 1, Sampling(max_tokens=16, temperature=0.0), run_seed=0, step=0
    )
    texts = [
        tokenizer.decode(list(group.completions[0].token_ids), skip_special_tokens=True)
        for group in groups
    ]
    boxes = [prompt.problem.answer[prompt.problem.answer.index(BOX) :] for prompt in prompts]
    return fmean(text.endswith(box) for text, box in zip(texts, boxes, strict=True))


def train(seed: int, size: int, updates: int, every: int) -> list[dict[str, float]]:
    """One run's measurements."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_model(Path(folder), seed, SHAPE)
        model = ModelSettings(path=folder)
        policy, tokenizer = load_policy(model), load_tokenizer(model)
    learner = Learner(
        policy,
        Objective(Reinforce(), (), TokenMean()),
        LearnerSettings(
            lr=2e-3,
            schedule=Schedule(warmup_updates=20),
            layout="padded",
            tokens_per_micro_batch=65536,
        ),
        hooks=[RouterHook(policy, RouterSettings())],
    )
    training = problems(tokenizer, size, "train")
    held_out = problems(tokenizer, PROBED, "held_out")
    sets = {"training": training[:PROBED], "held_out": held_out}
    probe = Probe(PathwaySettings(problems=PROBED, response="{answer}"), sets, tokenizer)
    engine = TransformersEngine(policy, [tokenizer.eos_token_id])
    draw, rows = random.Random(seed), []
    for update in range(updates + 1):
        if update % every == 0:
            row = {"update": float(update), **probe.measure(learner)}
            for name, prompts in sets.items():
                row[f"eval/{name}/accuracy"] = accuracy(engine, prompts, tokenizer)
            rows.append(row)
        learner.update(demonstrations(draw.choices(training, k=BATCH), tokenizer))
    return rows


FIGURES = {
    "accuracy": "greedy accuracy",
    "answer_loss": "loss of the answer (nats a token)",
    "pathway_distance": "pathway distance",
    "pathway_consistency": "pathway consistency",
}


def draw_curves(runs: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
    """Means over seeds; training problems solid, held-out ones dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(FIGURES), figsize=(15, 3.6))
    for axis, (name, title) in zip(axes, FIGURES.items(), strict=True):
        for index, (arm, seeds) in enumerate(runs.items()):
            for which, style in (("training", "-"), ("held_out", "--")):
                steps = [row["update"] for row in seeds[0]]
                means = [
                    fmean(run[i][f"eval/{which}/{name}"] for run in seeds)
                    for i in range(len(steps))
                ]
                axis.plot(steps, means, style, color=f"C{index}", label=f"{arm}, {which}")
        axis.set_xlabel("update")
        axis.set_title(title, fontsize=10)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--out", type=Path, help="picture to write")
    given = parser.parse_args()
    runs: dict[str, list[list[dict[str, float]]]] = {}
    for arm, size in ARMS.items():
        for seed in map(int, given.seeds.split(",")):
            began = time.process_time()
            rows = train(seed, size, given.updates, given.every)
            runs.setdefault(arm, []).append(rows)
            for row in rows:
                rounded = {name.removeprefix("eval/"): round(v, 4) for name, v in row.items()}
                print(json.dumps({"arm": arm, "seed": seed, **rounded}), flush=True)
            print(f"# {arm}, seed {seed}: {time.process_time() - began:.0f} s of CPU", flush=True)
    if given.out is not None:
        draw_curves(runs, given.out)


if __name__ == "__main__":
    main()
