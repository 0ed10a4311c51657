"""Made-up batches of rollouts for the learner's tests, and every loss in the house."""

import random

import torch

from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.parts import PolicyLoss, Regulariser
from rlvr.objective.proxy import Proxy
from rlvr.objective.reducers import Reducer
from rlvr.types import Batch


def make_batch(rewards, group=4, seed=0, dtype=torch.float64, longest=9):
    """Groups of completions of random tokens and lengths with the given rewards."""
    generator = random.Random(seed)
    prompts = [[generator.randrange(3, 60) for _ in range(4 + g)] for g in range(len(rewards))]
    prompts = [tuple(prompts[index // group]) for index in range(len(rewards))]
    completions = [
        tuple(generator.randrange(3, 60) for _ in range(generator.randrange(1, longest)))
        for _ in rewards
    ]
    mask = torch.zeros(len(rewards), max(map(len, completions)), dtype=dtype)
    for row, completion in enumerate(completions):
        mask[row, : len(completion)] = 1
    index = torch.arange(len(rewards)) // group
    values = torch.tensor(rewards, dtype=dtype)
    advantages = GroupAdvantage()(values, index)
    return Batch(
        prompt_ids=tuple(prompts),
        completion_ids=tuple(completions),
        group_index_B=index,
        rewards_B=values,
        advantages_BT=advantages[:, None] * mask,
        mask_BT=mask,
        rollout_logprobs_BT=torch.zeros_like(mask),
    )


def rollouts(count, dtype=torch.float32):
    """Batches of a made-up run: some groups without variance, one rollout with none at all."""
    generator = random.Random(1)
    for step in range(count):
        flat = step == 3
        rewards = [0.0 if flat else float(generator.random() < 0.5) for _ in range(16)]
        yield make_batch(rewards, seed=step, dtype=dtype)


def policy_losses():
    return [kind(**kind.example) for kind in PolicyLoss.registry().values()]


def regularisers():
    """Each strong enough to act on an untrained model, whose distributions are nearly uniform."""
    strong = {
        "lp_reg": {"rho": 0.7, "proxy": Proxy(kappa=0.45)},
        "adaptive_entropy": {"initial": 0.1, "target": 100.0},
    }
    kinds = Regulariser.registry()
    return [kind(**strong.get(name, {"coefficient": 0.1})) for name, kind in kinds.items()]


def reducers():
    return [kind(**kind.example) for kind in Reducer.registry().values()]
