"""Step scores from outcome labels: between one label for the bag of steps and the label on each.

A response is a bag of K steps with scores f_k, of which only the outcome l in [0, 1] is known:

    L_bag = loss(l, mean_k f_k)               the mean score must agree with the outcome
    L_ins = mean_k loss(l, f_k)               every step bears the response's label
    L_rho = (1 - rho) L_bag + rho L_ins

For a loss that is convex in f, L_ins >= L_bag (Jensen). For the squared error the difference is
exactly the variance of the scores within the response, so that L_rho = L_bag + rho Var_k f: rho is
the price of steps that are scored differently. rho = 0 leaves credit assignment free, rho = 1
forbids it; Javanmard et al., "Learning from Aggregate Responses" (arXiv:2401.11081), find values in
between better than both. (Which end of their rho is which, the text at hand does not say.)

Here f_k = r^k, the implicit reward of a step (``rlvr/reward_models/implicit.py``), and the loss is
the cross-entropy of sigmoid(f), or the squared error with f_k = sigmoid(r^k). The mean over steps
is taken, not the sum that makes r(y): with the sum the identity does not hold, and longer responses
would have larger scores.
"""

from __future__ import annotations

from typing import Literal

from rlvr.lazy import torch

BagLoss = Literal["cross_entropy", "squared"]


def bag_loss(
    rewards_BK: torch.Tensor,
    there_BK: torch.Tensor,
    labels_B: torch.Tensor,
    rho: float,
    loss: BagLoss = "cross_entropy",
) -> torch.Tensor:
    """L_rho of each response, [B]; 0 where a response has no steps.

    Args:
        rewards_BK: Step rewards r^k, padded.
        there_BK: True on the steps that are there.
        labels_B: Outcomes in [0, 1].
        rho: 0 is the bag's label alone, 1 the label on every step.
        loss: Cross-entropy on rewards as logits, or squared error on their sigmoid.
    """
    there_BK = there_BK.to(rewards_BK)
    count_B = there_BK.sum(-1).clamp_min(1)
    scores_BK = rewards_BK.sigmoid() if loss == "squared" else rewards_BK
    mean_B = (scores_BK * there_BK).sum(-1) / count_B
    labels_B = labels_B.to(rewards_BK)

    def of(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if loss == "squared":
            return (scores - labels).square()
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
        return cross_entropy(scores, labels, reduction="none")

    whole_B = of(mean_B, labels_B)
    single_BK = of(scores_BK, labels_B[:, None].expand_as(scores_BK))
    single_B = (single_BK * there_BK).sum(-1) / count_B
    return ((1 - rho) * whole_B + rho * single_B) * (there_BK.sum(-1) > 0)
