"""f-DPO: the score of a completion under another divergence from the reference.

With t = π / ref the score is f'(t) up to a constant (Wang et al., "Beyond Reverse KL",
arXiv:2309.16240), r = log t:

    reverse_kl  r
    forward_kl  1 - exp(-r)
    js          log 2 + log sigmoid(r)
    alpha       (exp((A - 1) r) - 1) / (A - 1);  A = 1 is reverse_kl

The constants cancel in a plain difference of scores, and do not where scores are divided by
lengths.
"""

import math
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

# exp of more would leave float32; TRL clamps at the same exponent.
_LARGEST_EXPONENT = 80.0


def score(log_ratio_B: torch.Tensor, divergence: Divergence, alpha: float) -> torch.Tensor:
    """f'(π / ref) of each completion, [B]."""
    if divergence == "forward_kl":
        return -torch.expm1(-log_ratio_B)
    if divergence == "js":
        return math.log(2) + logsigmoid(log_ratio_B)
    if divergence == "alpha" and abs(alpha - 1) >= 1e-6:
        exponent = ((alpha - 1) * log_ratio_B).clamp_max(_LARGEST_EXPONENT)
        return torch.expm1(exponent) / (alpha - 1)
    return log_ratio_B
