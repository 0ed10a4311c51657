"""Log-probabilities of given responses, without gradient: a model over many of them.

Micro-batches hold as many responses as a token budget allows. A response longer than the budget is
run in chunks behind a cache of keys and values (``rlvr/policy/long.py``), and logits are formed a
chunk of tokens at a time (``rlvr/policy/token_stats.py``), so memory is bounded by the budget, save
for that cache.
"""

from collections.abc import Callable, Sequence

import torch

from rlvr.policy.batching import padded_inputs, plan_padded
from rlvr.policy.long import chunked_logprobs
from rlvr.policy.model import Policy, evaluating

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
