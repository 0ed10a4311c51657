"""Logarithms of probabilities near 0 and 1."""

import torch

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
