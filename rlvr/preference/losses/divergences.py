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

from __future__ import annotations

import math
from typing import Literal

from rlvr.lazy import torch
from rlvr.preference.numerics import bounded_expm1, logsigmoid

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def score(log_ratio_B: torch.Tensor, divergence: Divergence, alpha: float) -> torch.Tensor:
    """f'(π / ref) of each completion, [B]."""
    if divergence == "forward_kl":
        return -bounded_expm1(-log_ratio_B)
    if divergence == "js":
        return math.log(2) + logsigmoid(log_ratio_B)
    if divergence == "alpha" and abs(alpha - 1) >= 1e-6:
        return bounded_expm1((alpha - 1) * log_ratio_B) / (alpha - 1)
    return log_ratio_B
