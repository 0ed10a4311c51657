"""PRIME: process rewards of an implicit reward model beside the outcome's, as advantages.

    A_t^i = c_p sum_{s >= t} gamma^{s-t} [ p_s^i - b_i ]  +  c_o A_outcome^i
    p_s   = beta D_s                                     the token's implicit reward
    m_j   = (1 / |y_j|) sum_s p_s^j                      mean token reward of a completion
    b_i   = 1/(K-1) sum_{j != i} m_j                     leave_one_out (paper)
    p - b = K/(K-1) (p - mean_j m_j)                     leave_one_out, form: released
    p - b = (p - mean_j m_j) / std_j m_j                 group (the paper's GRPO variant)
    b_i   = 0                                            none (its REINFORCE variant)

over the K completions of a prompt. Cui et al., "Process Reinforcement through Implicit Rewards"
(arXiv:2502.01456), equation 5. As printed its baseline subtracts the reward of a sequence from that
of a token; the text, the algorithm and the released code mean the mean per token, as here.

The released code besides divides p by max |sum_{s >= t} p_s| of the batch (``batch_norm``), after
which beta means nothing to the policy, and whitens the advantages over all tokens (``whiten``). The
paper mentions neither; both are settings. Released and paper form have equal means over a
completion's tokens and differ by (p_t - m_i) / (K - 1).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.advantages.gae import discounted, whiten
from rlvr.settings import Settings

Baseline = Literal["leave_one_out", "group", "none"]
_EPSILON = 1e-6


class ProcessReturns(Settings):
    """How token rewards and outcome advantages become the policy's advantages."""

    baseline: Literal["auto", "leave_one_out", "group", "none"] = "auto"
    """What is taken off token rewards. auto follows ``advantage``: leave_one_out for rloo, group
    for group, none for the others (with gae, token rewards join the rewards before the critic)."""
    form: Literal["paper", "released"] = "paper"
    """Of leave_one_out: the paper's, or the released code's, which stretches a token's deviation
    from its completion's mean by K/(K-1)."""
    process_coefficient: float = Field(1.0, ge=0)
    """Weight of the process returns."""
    outcome_coefficient: float = Field(1.0, ge=0)
    """Weight of the outcome's advantages."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of process rewards per token; the outcome is not discounted."""
    batch_norm: bool = False
    """Divide token rewards by the largest process return of the rollout (released code)."""
    whiten: bool = False
    """Whiten the advantages over all tokens of the rollout (released code)."""

    def advantages(
        self,
        rewards_BT: torch.Tensor,
        outcome_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        group_index_B: torch.Tensor,
        baseline: Baseline,
    ) -> torch.Tensor:
        """Advantages [B, T], zero off the mask.

        Args:
            rewards_BT: Token rewards p, zero off the mask.
            outcome_BT: The outcome's advantages.
            mask_BT: 1 on completion tokens.
            group_index_B: Which prompt each completion is of.
            baseline: What ``auto`` comes to, or ``baseline`` itself.
        """
        scaled_BT = batch_normalised(rewards_BT, mask_BT) if self.batch_norm else rewards_BT
        centred_BT = centred(scaled_BT, mask_BT, group_index_B, baseline, self.form)
        process_BT = discounted(centred_BT, self.gamma)
        total_BT = self.process_coefficient * process_BT + self.outcome_coefficient * outcome_BT
        return (whiten(total_BT, mask_BT) if self.whiten else total_BT) * mask_BT


def batch_normalised(rewards_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Token rewards [B, T] whose returns-to-go lie in [-1, 1]."""
    returns_BT = discounted(rewards_BT * mask_BT, 1.0) * mask_BT
    return rewards_BT / (returns_BT.abs().max() + _EPSILON)


def centred(
    rewards_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    group_index_B: torch.Tensor,
    baseline: Baseline,
    form: Literal["paper", "released"] = "paper",
) -> torch.Tensor:
    """Token rewards [B, T] less their baseline, zero off the mask.

    A completion alone in its group has no others to compare with and keeps its rewards.
    """
    if baseline == "none":
        return rewards_BT * mask_BT
    lengths_B = mask_BT.sum(-1)
    means_B = (rewards_BT * mask_BT).sum(-1) / lengths_B.clamp_min(1)
    out_BT = (rewards_BT * mask_BT).clone()
    for group in group_index_B.unique().tolist():
        rows = ((group_index_B == group) & (lengths_B > 0)).nonzero()[:, 0]
        if len(rows) > 1:
            out_BT[rows] = _group_centred(rewards_BT[rows], means_B[rows], baseline, form)
    return out_BT * mask_BT


def _group_centred(
    rewards_KT: torch.Tensor,
    means_K: torch.Tensor,
    baseline: Baseline,
    form: Literal["paper", "released"],
) -> torch.Tensor:
    count, mean = len(means_K), means_K.mean()
    if baseline == "group":
        return (rewards_KT - mean) / (means_K.std(correction=1) + _EPSILON)
    if form == "released":
        return (rewards_KT - mean) * count / (count - 1)
    others_K = (means_K.sum() - means_K) / (count - 1)
    return rewards_KT - others_K[:, None]


def rivals(
    scores_B: torch.Tensor,
    labels_B: torch.Tensor,
    group_index_B: torch.Tensor,
    there_B: torch.Tensor,
    *,
    weigh: bool = False,
) -> torch.Tensor:
    """What each completion is compared with by :func:`detached_preference`, and its weight, [B, 2].

    The first is the mean score of the completions of its group that came out otherwise, the second
    0 where there are none; else 1, or with ``weigh`` K P(score <= its own)^(K-1) over the K of its
    group: the density of the best of K among them.

    Args:
        scores_B: Sequence rewards.
        labels_B: Outcomes in [0, 1]; above 0.5 is right.
        group_index_B: Which prompt each completion is of.
        there_B: Whether it counts.
        weigh: Whether to prefer high scores.
    """
    found_B2 = torch.zeros(len(scores_B), 2, dtype=scores_B.dtype, device=scores_B.device)
    right_B = labels_B > 0.5
    for group in group_index_B.unique().tolist():
        inside_B = (group_index_B == group) & there_B
        count = int(inside_B.sum())
        for row in inside_B.nonzero()[:, 0].tolist():
            others_B = inside_B & (right_B != right_B[row])
            if not bool(others_B.any()):
                continue
            share = (scores_B[inside_B] <= scores_B[row]).to(scores_B).mean()
            found_B2[row, 0] = scores_B[others_B].mean()
            found_B2[row, 1] = count * share ** (count - 1) if weigh else 1.0
    return found_B2


def detached_preference(
    rewards_B: torch.Tensor,
    labels_B: torch.Tensor,
    rivals_B: torch.Tensor,
    weights_B: torch.Tensor,
) -> torch.Tensor:
    """Loss [B] of the ``reverse`` update: -w log sigma((+-)(Q - mean of the rivals' Q)).

    Args:
        rewards_B: Sequence rewards Q, with gradients.
        labels_B: Outcomes; above 0.5 is right.
        rivals_B, weights_B: Of :func:`rivals`, constants.
    """
    signs_B = torch.where(labels_B > 0.5, 1.0, -1.0).to(rewards_B)
    margin_B = signs_B * (rewards_B - rivals_B.to(rewards_B))
    return -weights_B.to(rewards_B) * torch.nn.functional.logsigmoid(margin_B)


def group_passes(correct: list[bool], bounds: tuple[float, float]) -> bool:
    """Whether a group's accuracy lies within the bounds, which are included."""
    accuracy = sum(correct) / len(correct)
    # A share such as 1/5 need not equal the 0.2 of a recipe in its last bit.
    return bounds[0] - 1e-9 <= accuracy <= bounds[1] + 1e-9
