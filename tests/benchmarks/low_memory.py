r"""What do weights, moments and gradients in fewer bits cost in accuracy? On a CPU.

    python -m tests.benchmarks.low_memory runs/low_memory --seeds 0,1,2

Sums of two digits, ``3+4=``, of which a fifth is held out. One tiny Llama is warmed up on boxes
that are right half of the time; from it every option learns by GRPO, 150 steps of 16 sums x 8
samples in one micro-batch. A seed is one of sums, samples, adapters and rounding. What is there
already is not done again, so that a stopped command goes on when it is given again; it prints the
table of what is there.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from rlvr.data import ArithmeticSource, Prompt, encode_prompts, load_problems, load_template
from rlvr.files import write_atomically
from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.reinforce import Reinforce
from rlvr.objective.reducers import TokenMean
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.saving import export_policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import BOX, TinySettings, write_tiny_model
from rlvr.rollout.groups import sample_groups
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.settings import load_settings
from rlvr.types import Batch, Group

STEPS, SUMS, SAMPLES, TOKENS = 150, 16, 8, 5
ADAPTERS = {"lora": {"rank": 8, "alpha": 16}}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all float32": ({}, {}),
    "weights bfloat16": ({"weights": "bfloat16"}, {}),
    "moments bfloat16": ({}, {"optimizer_states": "bfloat16"}),
    "moments int8": ({}, {"optimizer_states": "int8"}),
    "in_backward two_passes": ({}, {"in_backward": "two_passes"}),
    "in_backward per_tensor": ({}, {"in_backward": "per_tensor"}),
    "weights bfloat16, moments int8, per_tensor": (
        {"weights": "bfloat16"},
        {"optimizer_states": "int8", "in_backward": "per_tensor"},
    ),
    "adapters, base float32": (ADAPTERS, {"lr": 3e-3}),
    "adapters, base bfloat16": ({**ADAPTERS, "frozen_weights": "bfloat16"}, {"lr": 3e-3}),
    "adapters, base int8": ({**ADAPTERS, "frozen_weights": "int8"}, {"lr": 3e-3}),
    "adapters, base nf4": ({**ADAPTERS, "frozen_weights": "nf4"}, {"lr": 3e-3}),
}


def prompts_of(split: str, tokenizer: Any) -> list[Prompt]:
    """All sums of a split."""
    size = 80 if split == "train" else 20
    source = load_settings(ArithmeticSource, {"digits": 1, "size": size, "split": split})
    return encode_prompts(load_problems(source), load_template("plain"), tokenizer, 16).prompts


def warm_up(folder: Path) -> None:
    """A model that is right about half of the time."""
    if (folder / "warm").is_file():
        return
    shape = TinySettings(hidden_size=48, layers=2, heads=4, key_value_heads=4)
    write_tiny_model(folder, 0, shape)
    model = ModelSettings(path=str(folder))
    policy, tokenizer = load_policy(model), load_tokenizer(model)
    settings = LearnerSettings(lr=3e-3, layout="padded")
    learner = Learner(policy, Objective(Reinforce(), (), TokenMean()), settings)
    prompts, generator = prompts_of("train", tokenizer), random.Random(0)
    for _ in range(600):
        chosen = generator.choices(prompts, k=64)
        values = [
            p.problem.answer if generator.random() < 0.5 else str(generator.randrange(19))
            for p in chosen
        ]
        ids = tokenizer([f"{BOX}{value}}}" for value in values])["input_ids"]
        completions = [(*own, tokenizer.eos_token_id) for own in ids]
        learner.update(batch_of([p.ids for p in chosen], completions, [1.0] * 64, list(range(64))))
    export_policy(policy, folder)
    write_atomically(folder / "warm", "")


def batch_of(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    advantages: Sequence[float],
    groups: Sequence[int],
) -> Batch:
    """Columns; a completion's tokens share its advantage."""
    mask_BT = torch.zeros(len(completions), max(map(len, completions)))
    for row, ids in enumerate(completions):
        mask_BT[row, : len(ids)] = 1
    values_B = torch.tensor(advantages)
    return Batch(
        prompt_ids=tuple(map(tuple, prompts)),
        completion_ids=tuple(map(tuple, completions)),
        group_index_B=torch.tensor(groups),
        rewards_B=values_B,
        advantages_BT=values_B[:, None] * mask_BT,
        mask_BT=mask_BT,
        rollout_logprobs_BT=torch.zeros_like(mask_BT),
    )


def rewards_of(group: Group, tokenizer: Any) -> list[float]:
    """1 for the right box and nothing else."""
    texts = tokenizer.batch_decode(
        [list(one.token_ids) for one in group.completions], skip_special_tokens=True
    )
    return [float(text == f"{BOX}{group.problem.answer}}}") for text in texts]


def learn(seed: int, option: str, folder: Path) -> dict[str, float]:
    """Accuracy of samples on the sums that are learnt from and on others, before and after."""
    model, learner = OPTIONS[option]
    torch.manual_seed(seed)
    settings = load_settings(ModelSettings, {"path": str(folder), **model})
    policy, tokenizer = load_policy(settings), load_tokenizer(settings)
    rates = {"lr": 1e-3, "layout": "padded", "tokens_per_micro_batch": 65536, **learner}
    trained = Learner(
        policy,
        Objective(Clip(), (), TokenMean()),
        load_settings(LearnerSettings, rates),
        seed=seed,
    )
    engine = TransformersEngine(policy, [tokenizer.eos_token_id])
    train, held_out = (prompts_of(split, tokenizer) for split in ("train", "held_out"))
    generator = random.Random(seed)

    def sample(prompts: Sequence[Prompt], count: int, step: int) -> list[Group]:
        how = Sampling(max_tokens=TOKENS)
        return sample_groups(engine, prompts, count, how, run_seed=seed, step=step)

    def accuracy(prompts: Sequence[Prompt], step: int) -> float:
        groups = sample(prompts, 32, step)
        return fmean(value for group in groups for value in rewards_of(group, tokenizer))

    before = {"before": accuracy(train, 10_000), "held-out before": accuracy(held_out, 10_000)}
    for step in range(STEPS):
        groups = sample(generator.sample(train, SUMS), SAMPLES, step)
        rewards = [value for group in groups for value in rewards_of(group, tokenizer)]
        index = [place for place, group in enumerate(groups) for _ in group.completions]
        advantages_B = GroupAdvantage()(torch.tensor(rewards), torch.tensor(index))
        rows = [one for group in groups for one in group.completions]
        prompts, completions = [r.prompt_ids for r in rows], [r.token_ids for r in rows]
        trained.update(batch_of(prompts, completions, advantages_B.tolist(), index))
    return before | {"after": accuracy(train, 10_001), "held-out after": accuracy(held_out, 10_001)}


def table(place: Path, seeds: Sequence[int]) -> str:
    """What there is, as Markdown: mean and standard deviation over seeds."""
    columns = ("before", "after", "held-out before", "held-out after")
    lines = [f"| option | {' | '.join(columns)} | seeds |", "|---|" + "---|" * (len(columns) + 1)]
    for option in OPTIONS:
        files = [record_of(place, seed, option) for seed in seeds]
        found = [json.loads(file.read_text()) for file in files if file.is_file()]
        if found:
            cells = [_spread([one[column] for one in found]) for column in columns]
            lines.append(f"| {option} | {' | '.join(cells)} | {len(found)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def record_of(place: Path, seed: int, option: str) -> Path:
    """Where a run's accuracy is kept."""
    return place / f"{option.replace(' ', '_').replace(',', '')}_{seed}.json"


def main() -> None:
    """Train what is missing, seed after seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    warm_up(options.place / "model")
    for seed in seeds:
        for option in OPTIONS:
            record = record_of(options.place, seed, option)
            if not record.is_file():
                found = learn(seed, option, options.place / "model")
                write_atomically(record, json.dumps(found))
                print(seed, option, found, flush=True)
    print(table(options.place, seeds))


if __name__ == "__main__":
    main()
