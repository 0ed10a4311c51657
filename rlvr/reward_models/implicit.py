"""The implicit process reward: a log-ratio of two language models, read at every token.

    D_i    = log pi(y_i | .) - log ref(y_i | .)
    r(y)   = beta log [pi(y) / pi_ref(y)] = beta sum_i D_i
    q_t    = beta sum_{i <= t} D_i          value of the prefix; q_0 = 0, q_T = r(y)
    r_t    = q_t - q_{t-1} = beta D_t       reward of a token
    r^k    = q_{b_k} - q_{b_{k-1}}          reward of step k, which ends with token b_k

For any two language models q_t = beta log E_{pi_ref(. | y_<=t)} exp(r / beta): the reward of a
whole response, trained on outcomes alone, is a value at every prefix. Yuan et al., "Free Process
Rewards without Process Labels" (arXiv:2412.01981), equation 2 and proposition 3.1. (Its equation 3
prints a sum from t-1 to t, which cannot be q_t - q_{t-1}; the definition above is the text's.)

Sums, never means over the length; the end token counts, the prompt does not. Without a reference
r(y) = beta log pi(y): the same as a uniform reference save for beta log |V| per token, a penalty on
length (section 5.5 there).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rlvr.lazy import torch


def token_rewards(
    logprobs_BT: torch.Tensor,
    reference_BT: torch.Tensor | None,
    mask_BT: torch.Tensor,
    beta: float = 1.0,
) -> torch.Tensor:
    """Rewards [B, T] of tokens in at least float32, 0 where ``mask_BT`` is; differentiable.

    Args:
        logprobs_BT: Log-probabilities (nats) of the response tokens under the reward model.
        reference_BT: The same under the reference; None leaves it out.
        mask_BT: 1 on response tokens, the end token included.
        beta: Scale of the reward.
    """
    dtype = torch.promote_types(logprobs_BT.dtype, torch.float32)
    difference_BT = logprobs_BT.to(dtype)
    if reference_BT is not None:
        difference_BT = difference_BT - reference_BT.to(difference_BT)
    return beta * difference_BT * mask_BT.to(difference_BT)


def response_rewards(rewards_BT: torch.Tensor) -> torch.Tensor:
    """r(y) of each response, [B]: the sum of its token rewards."""
    return rewards_BT.sum(-1)


def prefix_values(rewards_T: torch.Tensor) -> torch.Tensor:
    """q_1 ... q_T of one response, [T]."""
    return rewards_T.cumsum(-1)


def step_rewards(rewards_T: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """Rewards [K] of a response's steps.

    Args:
        rewards_T: Its token rewards.
        ends: Where each step ends, in tokens, exclusive; rising, the last one T.

    Raises:
        ValueError: The steps do not part the response.
    """
    bounds = [0, *ends]
    rising = all(a < b for a, b in itertools.pairwise(bounds))
    if not rising or bounds[-1] != len(rewards_T):
        raise ValueError(
            f"step ends {list(ends)} do not part a response of {len(rewards_T)} tokens"
        )
    return torch.stack([rewards_T[a:b].sum() for a, b in itertools.pairwise(bounds)])
