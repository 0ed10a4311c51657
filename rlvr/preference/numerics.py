"""Logarithms of probabilities near 0 and 1."""

from __future__ import annotations

import math

from rlvr.lazy import torch

# Above this log p, 1 - p has no bits left in float32 worth a gradient.
LARGEST_LOG_PROBABILITY = -1e-6


def log1mexp(log_p: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(log_p)) for log_p < 0, without cancellation and with finite gradients.

    Mächler, "Accurately computing log(1 - exp(-|a|))" (2012): log(-expm1(x)) near 0,
    log1p(-exp(x)) below -log 2. ``log_p`` is cut at -1e-6, where 1 - p is 1e-6.
    """
    x = log_p.clamp_max(LARGEST_LOG_PROBABILITY)
    near = x > -0.6931471805599453
    # Each branch sees only numbers it is good at, or its gradient would be inf x 0 in the other.
    inner = torch.where(near, x, torch.full_like(x, -1.0))
    outer = torch.where(near, torch.full_like(x, -1.0), x)
    return torch.where(near, torch.log(-torch.expm1(inner)), torch.log1p(-torch.exp(outer)))


STEEPEST = 20.0
"""Above e^20 an exponential goes on along its tangent instead of leaving float32."""
LEAST_LOGPROB = -1e7
"""Log-probabilities of completions are at least this: infinite ones have no difference."""


def bounded_expm1(values: torch.Tensor) -> torch.Tensor:
    """e^x - 1 up to x = 20, its tangent above; finite in float32 with finite gradients."""
    beyond = math.exp(STEEPEST) * torch.relu(values - STEEPEST)
    return torch.expm1(values.clamp_max(STEEPEST)) + beyond


def logsigmoid(values: torch.Tensor) -> torch.Tensor:
    """log sigmoid(x), elementwise; torch's own, which importing this module does not load."""
    return torch.nn.functional.logsigmoid(values)
