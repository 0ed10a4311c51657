"""Log-ratios of many responses: the reward model and its reference over them, without gradient.

Micro-batches hold as many responses as a token budget allows. A response longer than the budget is
run in chunks behind a cache of keys and values (``rlvr/policy/long.py``), and logits are formed a
chunk of tokens at a time (``rlvr/policy/token_stats.py``), so memory is bounded by the budget, save
for that cache.

A vLLM engine may take the log-probabilities instead (as those of a prompt). With both in float32
they are the learner's up to rounding; what that is on real models is in
docs/methods/implicit_prm.md.
"""

from collections.abc import Callable, Sequence

import torch

from rlvr.policy import Policy, chunked_logprobs, evaluating, padded_inputs, plan_padded
from rlvr.prm.reward import token_rewards
from rlvr.rollout import VllmEngine

Ids = Sequence[Sequence[int]]
Progress = Callable[[int, int], None]


def response_logprobs(
    policy: Policy,
    prompts: Ids,
    responses: Ids,
    *,
    tokens_per_micro_batch: int = 4096,
    chunk_tokens: int | None = None,
    progress: Progress = lambda done, total: None,
) -> list[torch.Tensor]:
    """Log-probabilities [T_i] of each response's tokens at temperature 1, float32 on the CPU.

    Args:
        policy: A language model.
        prompts: Token ids, one prompt for each response.
        responses: Token ids.
        tokens_per_micro_batch: Most input positions run at once, padding included; a longer
            response is run in chunks of so many.
        chunk_tokens: Tokens whose logits are formed at once; None chooses by vocabulary size.
        progress: Told how many responses are done, out of how many.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    found: list[torch.Tensor] = [torch.zeros(0)] * len(responses)
    done = 0
    with torch.no_grad(), evaluating(policy):
        for rows in plan_padded(lengths, tokens_per_micro_batch):
            sizes = [len(responses[row]) for row in rows]
            if lengths[rows[0]] > tokens_per_micro_batch:  # such a row is alone
                pair = prompts[rows[0]], responses[rows[0]]
                values_N = chunked_logprobs(
                    policy, *pair, tokens_per_micro_batch, chunk_tokens=chunk_tokens
                )
            else:
                inputs = padded_inputs(prompts, responses, rows).to(policy.device)
                values_N = policy(inputs, chunk_tokens=chunk_tokens).logprobs_N
            for row, values in zip(rows, values_N.cpu().split(sizes), strict=True):
                found[row] = values
            done += len(rows)
            progress(done, len(responses))
    return found


def engine_logprobs(
    engine: VllmEngine,
    prompts: Ids,
    responses: Ids,
    *,
    progress: Progress = lambda done, total: None,
) -> list[torch.Tensor]:
    """What :func:`response_logprobs` gives, from an engine that has weights.

    Raises:
        ValueError: A prompt with its response does not fit, or the engine died too often.
    """
    sequences = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    found = engine.logprobs(sequences, progress)
    return [
        torch.tensor(values[len(values) - len(response) :])
        for values, response in zip(found, responses, strict=True)
    ]


def ratios(
    own: Sequence[torch.Tensor], reference: Sequence[torch.Tensor] | None
) -> list[torch.Tensor]:
    """Token rewards [T_i] at beta = 1 from log-probabilities; None leaves the reference out."""
    theirs = reference if reference is not None else [None] * len(own)
    return [
        token_rewards(mine, other, torch.ones_like(mine))
        for mine, other in zip(own, theirs, strict=True)
    ]
