"""Log-probabilities of one long sequence, a chunk of it at a time behind a cache of the rest.

A forward pass holds activations of all its positions, and those of the widest layer are several
times the hidden states. Run C positions at a time, with the keys and values of what came before in
a cache, they are C's alone; what grows with the sequence is the cache and nothing else. The numbers
are those of one pass, up to the rounding of other shapes. Without gradient.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from rlvr.policy.batching import padded_inputs
from rlvr.policy.model import MODEL_ERRORS, Policy, in_float32
from rlvr.policy.model_check import probe_ids

_CONTINUES: WeakKeyDictionary[Policy, bool] = WeakKeyDictionary()


def chunked_logprobs(
    policy: Policy,
    prompt: Sequence[int],
    completion: Sequence[int],
    positions: int,
    *,
    chunk_tokens: int | None = None,
) -> torch.Tensor:
    """Log-probabilities [T] of the completion's tokens at temperature 1, in at least float32.

    Args:
        policy: A language model in evaluation mode.
        prompt: Token ids, at least one.
        completion: Token ids.
        positions: C, input positions run at once; all of them where a cache gives other numbers,
            as it does with a state that a model advances by single tokens.
        chunk_tokens: Tokens whose logits are formed at once; None chooses by vocabulary size.
    """
    if len(prompt) + len(completion) - 1 > positions and not _continues(policy):
        inputs = padded_inputs([prompt], [completion], (0,)).to(policy.device)
        with torch.no_grad():
            return policy(inputs, chunk_tokens=chunk_tokens).logprobs_N
    return _chunked(policy, prompt, completion, positions, chunk_tokens)


def _continues(policy: Policy) -> bool:
    """Whether a few tokens behind a cache have the log-probabilities of one pass; tried once."""
    if policy not in _CONTINUES:
        _CONTINUES[policy] = _try_a_cache(policy)
    return _CONTINUES[policy]


def _try_a_cache(policy: Policy) -> bool:
    ids = probe_ids(policy, 12).tolist()
    with torch.no_grad(), in_float32(policy) as tolerance:
        whole = policy(padded_inputs([ids[:2]], [ids[2:]], (0,)).to(policy.device)).logprobs_N
        try:
            found = _chunked(policy, ids[:2], ids[2:], 5, None)
        except MODEL_ERRORS:
            return False
    return bool((whole - found).abs().max() < tolerance)


def _chunked(
    policy: Policy,
    prompt: Sequence[int],
    completion: Sequence[int],
    positions: int,
    chunk_tokens: int | None,
) -> torch.Tensor:
    from transformers import DynamicCache

    assert policy.head is not None
    ids = torch.tensor([[*prompt, *completion]], device=policy.device)
    cache = DynamicCache(config=policy.causal_lm.config)
    found: list[torch.Tensor] = []
    first = len(prompt) - 1  # the position that predicts the first token
    with torch.no_grad(), policy.compute():
        for start in range(0, ids.shape[1] - 1, positions):
            end = min(start + positions, ids.shape[1] - 1)
            hidden_CD = policy.backbone(
                input_ids=ids[:, start:end],
                position_ids=torch.arange(start, end, device=ids.device)[None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[0]
            skipped = max(0, first - start)
            if start + skipped < end:
                targets_C = ids[0, start + skipped + 1 : end + 1]
                stats = policy.head(
                    hidden_CD[skipped:],
                    targets_C,
                    temperature=1 / policy.logit_scale,
                    chunk_tokens=chunk_tokens,
                )
                found.append(stats.logprobs_N)
    return torch.cat(found)
