"""What may be done to log-probabilities and weights before any loss sees them.

LD-DPO (Liu et al., arXiv:2409.06411): tokens beyond the shorter completion's length count with
``alpha``, so that length itself is not rewarded. WPO (Zhou et al., arXiv:2406.11827): pairs that
the policy would hardly sample weigh less, W = exp(mean_t [log p_t - log sum_v p_v^2]) a side.
"""

from __future__ import annotations

from rlvr.lazy import torch


def desensitised_logps(
    logprobs_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    shared_lengths_B: torch.Tensor,
    alpha: float | None,
) -> torch.Tensor:
    """Sums of token log-probabilities, tokens beyond ``shared_lengths_B`` times ``alpha``; [B].

    ``alpha`` None (or 1) is the plain sum.
    """
    if alpha is None:
        return (logprobs_BT * mask_BT).sum(-1)
    position_T = torch.arange(logprobs_BT.shape[1], device=logprobs_BT.device)
    tail_BT = position_T[None] >= shared_lengths_B[:, None]
    weights_BT = torch.where(tail_BT, alpha * mask_BT, mask_BT)
    return (logprobs_BT * weights_BT).sum(-1)


def sampling_weights(
    logprobs_BT: torch.Tensor, log_square_mass_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """WPO's weight of each completion, [B], a constant.

    Args:
        logprobs_BT: log p of the tokens.
        log_square_mass_BT: log of the sum over the vocabulary of p squared, at the same positions.
        mask_BT: 1 on completion tokens.
    """
    aligned_BT = (logprobs_BT - log_square_mass_BT).detach() * mask_BT
    return (aligned_BT.sum(-1) / mask_BT.sum(-1).clamp_min(1)).exp()
