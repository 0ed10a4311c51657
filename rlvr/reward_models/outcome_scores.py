"""Rewards of given responses under a trained reward model, in batches by a token budget."""

from collections.abc import Callable, Sequence

import torch

from rlvr.policy.batching import padded_inputs, plan_padded
from rlvr.policy.model import evaluating
from rlvr.reward_models.heads import OutcomeRewardModel

Ids = Sequence[Sequence[int]]


def outcome_rewards(
    model: OutcomeRewardModel,
    prompts: Ids,
    responses: Ids,
    *,
    tokens_per_micro_batch: int = 4096,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> torch.Tensor:
    """Rewards [B] in float64, without gradient and without dropout.

    Args:
        model: Language model and head.
        prompts: Token ids.
        responses: Token ids, the end token included; an empty one is the prompt alone.
        tokens_per_micro_batch: Most input positions run at once, padding included.
        progress: Told how many responses are done, out of how many.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    rewards_B = torch.zeros(len(lengths), dtype=torch.float64)
    done = 0
    with torch.no_grad(), evaluating(model), evaluating(model.policy):
        for rows in plan_padded(lengths, tokens_per_micro_batch):
            inputs = padded_inputs(prompts, responses, rows).to(model.policy.device)
            rewards_B[list(rows)] = model(inputs).cpu().double()
            done += len(rows)
            progress(done, len(lengths))
    return rewards_B
