"""Which tokens of a step: percentiles, largest values, covariance. Ties are said, never broken.

All take columns [B, T] with a mask and look at masked-in tokens only.
"""

from __future__ import annotations

import math

from rlvr.lazy import torch

# Fractions like 0.3 of 10 tokens must count as 3 whatever 0.3 * 10 rounds to.
_SLACK = 1e-9


def count_of(fraction: float, tokens: int) -> int:
    """floor(fraction x tokens)."""
    return math.floor(fraction * tokens + _SLACK)


def low_threshold(values_BT: torch.Tensor, mask_BT: torch.Tensor, fraction: float) -> torch.Tensor:
    """The value (a scalar) that floor(fraction N) tokens are strictly below, on distinct values.

    -inf where that count is 0, +inf where it is N.
    """
    values_N = values_BT[mask_BT > 0]
    count = count_of(fraction, values_N.numel())
    if count == 0:
        return values_BT.new_tensor(-math.inf)
    if count >= values_N.numel():
        return values_BT.new_tensor(math.inf)
    return values_N.kthvalue(count + 1).values


def largest(values_BT: torch.Tensor, mask_BT: torch.Tensor, count: int) -> torch.Tensor:
    """Boolean [B, T]: the ``count`` tokens of the largest values, and all that tie with the last.

    Where fewer tokens are there, all of them; where ``count`` is 0, none.
    """
    inside_BT = mask_BT > 0
    values_N = values_BT[inside_BT]
    if count == 0 or values_N.numel() == 0:
        return torch.zeros_like(inside_BT)
    least = values_N.topk(min(count, values_N.numel()), sorted=True).values[-1]
    return inside_BT & (values_BT >= least)


def covariance(
    logprobs_BT: torch.Tensor, advantages_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """c_t = (log pi_t - mean log pi) (A_t - mean A), [B, T]; its mean is Cov(log pi, A).

    Cui et al., "The Entropy Mechanism of Reinforcement Learning" (arXiv:2505.22617, Eq. 10): tokens
    of large c are those through which a policy-gradient step lowers the entropy.
    """
    count = mask_BT.sum().clamp_min(1)

    def centred(values_BT: torch.Tensor) -> torch.Tensor:
        return values_BT - (values_BT * mask_BT).sum() / count

    return centred(logprobs_BT) * centred(advantages_BT) * mask_BT
