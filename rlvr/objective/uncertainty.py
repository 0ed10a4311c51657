"""Rewards that are not exact, weighed by how sure their scorer is.

Of each completion there are K >= 2 scores by a stochastic scorer (a judge at several prompts, the
members of an ensemble, dropout, two graders). With r_i their mean and U_i their spread,

    w_i = exp(-U_i / temperature), divided by its mean over the group         a constant

    advantage   A_i = w_i (r_i - b),  b = sum w r / sum w (weighted) or the plain mean, and divided
                by the group's spread where the estimator does
    shrink      r_i <- b + w_i (r_i - b) with the plain mean b, and then the estimator as it is

so a completion whose scores disagree moves the policy less, and the step keeps its size. With the
weighted baseline advantages of a group sum to 0 as they do without weights. A group of equal U, as
every group of exact rewards is, is left as it was to the last bit.

Ctrl-U (Zhang et al., arXiv:2410.11236) weighs the gradient of a differentiable reward so, with
U a divergence of two denoising passes, and lets gradients flow through U; in policy gradients the
reward is a number, and so is U. That K scores agree does not make them right: watch the correlation
of U with the error (docs/metrics.md), and leave the weights out where it is not positive.
"""

from typing import Literal

import torch
from pydantic import Field

from rlvr.objective.advantages import GroupAdvantage, OutcomeAdvantage
from rlvr.objective.advantages.group import EPSILON
from rlvr.settings import Settings


class UncertaintyWeights(Settings):
    """What uncertainty does to a completion's advantage."""

    spread: Literal["std", "range"] = "std"
    """U: the population standard deviation of the scores, or largest less smallest."""
    temperature: float = Field(0.25, gt=0)
    """U at which the weight has fallen to 1/e; in units of the reward."""
    apply: Literal["advantage", "shrink"] = "advantage"
    """Weigh the advantage, or pull the reward to the group's mean before the advantage is taken."""
    baseline: Literal["weighted", "plain"] = "weighted"
    """The mean that an advantage is relative to; weighted is for ``advantage: group``."""

    def of(self, scores_BK: torch.Tensor) -> torch.Tensor:
        """U [B] of K scores each."""
        if self.spread == "range":
            return scores_BK.amax(-1) - scores_BK.amin(-1)
        return scores_BK.double().std(-1, correction=0).to(scores_BK)

    def weights(self, uncertainty_B: torch.Tensor, group_index_B: torch.Tensor) -> torch.Tensor:
        """w [B] of mean 1 in each group; exactly 1 where a group's U are equal."""
        weights_B = torch.ones_like(uncertainty_B, dtype=torch.float64)
        for group in group_index_B.unique().tolist():
            members = group_index_B == group
            own = uncertainty_B[members].double()
            if own.max() == own.min():
                continue
            # Relative to the surest one: a group of large U has weights all the same.
            raw = torch.exp(-(own - own.min()) / self.temperature)
            weights_B[members] = raw / raw.mean()
        return weights_B.detach()

    def advantages(
        self,
        advantage: OutcomeAdvantage,
        rewards_B: torch.Tensor,
        group_index_B: torch.Tensor,
        uncertainty_B: torch.Tensor,
    ) -> torch.Tensor:
        """Advantages [B] from rewards, groups and U.

        Raises:
            ValueError: The weighted baseline with an estimator that has one of its own.
        """
        weights_B = self.weights(uncertainty_B, group_index_B)
        if bool((weights_B == 1).all()):
            return advantage(rewards_B, group_index_B)
        if self.apply == "shrink":
            means_B = _group_means(rewards_B.double(), group_index_B)
            shrunk_B = means_B + weights_B * (rewards_B.double() - means_B)
            same_B = weights_B == 1  # not to the last bit by the arithmetic above
            return advantage(torch.where(same_B, rewards_B, shrunk_B.to(rewards_B)), group_index_B)
        plain_B = advantage(rewards_B, group_index_B)
        if self.baseline == "plain":
            return (weights_B * plain_B.double()).to(rewards_B)
        check_baseline(self, advantage)
        moved_B = plain_B.double()
        for group in group_index_B.unique().tolist():
            members = group_index_B == group
            own = weights_B[members]
            if bool((own == 1).all()):
                continue
            values = rewards_B[members].double()
            centred = values - (own * values).sum() / own.sum()
            if isinstance(advantage, GroupAdvantage) and advantage.scale == "std":
                centred = centred / (values.std(correction=1) + EPSILON)
            flat = values.max() == values.min()
            moved_B[members] = torch.zeros_like(centred) if flat else own * centred
        return moved_B.to(rewards_B)


def check_baseline(weights: UncertaintyWeights, advantage: object) -> None:
    """See that the estimator can take the weighted baseline.

    Raises:
        ValueError: It has a baseline of its own.
    """
    centres = weights.apply == "advantage" and weights.baseline == "weighted"
    if centres and not isinstance(advantage, GroupAdvantage):
        name = getattr(advantage, "name", type(advantage).__name__)
        raise ValueError(
            "the weighted baseline of uncertain rewards stands for the group's mean, which "
            f"advantage {name!r} does not subtract; use advantage group, or baseline plain"
        )


def error_correlation(uncertainty_B: torch.Tensor, error_B: torch.Tensor) -> float | None:
    """Pearson's correlation of U with |score - truth|; None where either does not vary."""
    pair = torch.stack([uncertainty_B.double(), error_B.double()])
    if pair.shape[1] < 2 or bool((pair.amax(-1) == pair.amin(-1)).any()):
        return None
    return float(torch.corrcoef(pair)[0, 1])


def _group_means(values_B: torch.Tensor, group_index_B: torch.Tensor) -> torch.Tensor:
    _, member_B, sizes = group_index_B.unique(return_inverse=True, return_counts=True)
    totals = torch.zeros(len(sizes), dtype=values_B.dtype).index_add_(0, member_B, values_B)
    return (totals / sizes)[member_B]
