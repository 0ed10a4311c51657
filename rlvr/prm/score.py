"""Log-ratios of many responses: the reward model and its reference over them, without gradient.

Micro-batches hold as many responses as a token budget allows, and each model's logits are formed a
chunk of tokens at a time (``rlvr/policy/token_stats.py``), so a long response costs the memory of
its hidden states and no more.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from rlvr.policy import Policy, evaluating, padded_inputs, plan_padded
from rlvr.prm.reward import token_rewards

Ids = Sequence[Sequence[int]]


def response_logprobs(
    policy: Policy,
    prompts: Ids,
    responses: Ids,
    *,
    tokens_per_micro_batch: int = 4096,
    chunk_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[torch.Tensor]:
    """Log-probabilities [T_i] of each response's tokens at temperature 1, float32 on the CPU.

    Args:
        policy: A language model.
        prompts: Token ids, one prompt for each response.
        responses: Token ids.
        tokens_per_micro_batch: Most input positions run at once, padding included.
        chunk_tokens: Tokens whose logits are formed at once; None chooses by vocabulary size.
        progress: Told how many responses are done, out of how many.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    found: list[torch.Tensor] = [torch.zeros(0)] * len(responses)
    done = 0
    with torch.no_grad(), evaluating(policy):
        for rows in plan_padded(lengths, tokens_per_micro_batch):
            inputs = padded_inputs(prompts, responses, rows).to(policy.device)
            stats = policy(inputs, chunk_tokens=chunk_tokens)
            sizes = [len(responses[row]) for row in rows]
            for row, values in zip(rows, stats.logprobs_N.cpu().split(sizes), strict=True):
                found[row] = values
            done += len(rows)
            progress(done, len(responses))
    return found


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
