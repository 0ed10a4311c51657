"""Log-ratios of many responses: the reward model and its reference over them, without gradient."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from rlvr.policy import Policy, response_logprobs
from rlvr.prm.reward import token_rewards

Ids = Sequence[Sequence[int]]


def log_ratios(
    policy: Policy,
    reference: Policy | None,
    prompts: Ids,
    responses: Ids,
    *,
    tokens_per_micro_batch: int = 4096,
    chunk_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[torch.Tensor]:
    """Token rewards [T_i] of each response at beta = 1, in nats.

    Args:
        policy: The reward model. One with adapters is its own reference.
        reference: The frozen reference; None leaves it out, unless the policy holds it.
        prompts, responses, tokens_per_micro_batch, chunk_tokens: As :func:`response_logprobs`.
        progress: Told how many passes over a response are done, out of how many.
    """
    models: list[tuple[Policy, AbstractContextManager[object]]] = [(policy, nullcontext())]
    if reference is not None:
        models.append((reference, nullcontext()))
    elif policy.has_adapters:
        models.append((policy, policy.reference()))
    total, passes = len(responses) * len(models), []
    for number, (model, context) in enumerate(models):
        behind = number * len(responses)
        with context:
            passes.append(
                response_logprobs(
                    model,
                    prompts,
                    responses,
                    tokens_per_micro_batch=tokens_per_micro_batch,
                    chunk_tokens=chunk_tokens,
                    progress=lambda done, _, behind=behind: progress(behind + done, total),  # type: ignore[misc]
                )
            )
    theirs = passes[1] if len(passes) > 1 else [None] * len(responses)
    return [
        token_rewards(own, other, torch.ones_like(own))
        for own, other in zip(passes[0], theirs, strict=True)
    ]
