"""Exponentials of log-ratios that stay finite, forward and backward, in float32.

A token that an update has crushed can be a hundred nats below its reference, and e^89 is no float32
number: the loss is infinite, and its gradient, or 0 times it behind a clip, is not a number.
"""

from __future__ import annotations

import math

from rlvr.lazy import torch

STEEPEST = 20.0
"""Above e^20 an exponential goes on along its tangent."""
LEAST_LOGPROB = -1e4
"""Log-probabilities are at least this: the difference of infinite ones is no number."""


def bounded_exp(values: torch.Tensor) -> torch.Tensor:
    """e^x up to x = 20, and e^20 (1 + x - 20) above; continuously differentiable."""
    beyond = math.exp(STEEPEST) * torch.relu(values - STEEPEST)
    return values.clamp_max(STEEPEST).exp() + beyond


def k3(d: torch.Tensor) -> torch.Tensor:
    """e^d - d - 1, never negative (Schulman, 2020); e^d as :func:`bounded_exp`."""
    return bounded_exp(d) - d - 1


def kept(values_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The values where the mask is 1, and 0 elsewhere, whatever stands there."""
    return torch.where(mask_BT > 0, values_BT, 0.0)
