"""What an explicit reward model is trained with; s is the sigmoid, r the reward, d = r_1 - r_2.

    bradley_terry   pass-fail   -log s(d - m)
                    tie         -1/2 log s(d - t) - 1/2 log s(-d - t)      form: paper
                                -log s(d - t) - log s(-d - t)              form: released
    ce              -l log s(r) - (1 - l) log s(-r), or with tau           single responses
    ldr             lambda log [1/K sum_k exp((r_k - r_y + c 1[k != y]) / lambda)]    a prompt's own

Bradley-Terry with win-tie: SoliReward (arXiv:2512.22170); the paper takes the mean of
a tie's two terms and no margin, its released code their sum and one margin of 3 for both. A margin
in the tie term leaves its minimum at d = 0 and flattens it: the curvature falls from 1/2 to
2 s(t) s(-t), 0.09 at t = 3, which lets ties drift apart by about t. Hence two margins here.

Listwise: Zhu et al., label-distributionally robust losses (arXiv:2112.14869). lambda to 0 is the
largest margin (Crammer and Singer, without the hinge), lambda to infinity the mean margin,
lambda = 1 with c = 0 cross-entropy less log K. Where several of a prompt's responses are right,
each stands against the wrong ones alone and the loss is their mean: right ones are not pushed
apart. That is a choice of this project; the paper has one label.

A loss over pairs or lists does not see a constant added to all rewards, so its head has no bias.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.preference.losses.comp_sum import comp_sum
from rlvr.settings import Settings

Unit = Literal["pairs", "responses", "lists"]


class RewardLoss(Settings):
    """A loss of items of K responses each."""

    unit: ClassVar[Unit]
    """What an item is: a pair, a single response, or all responses of a prompt."""
    paper: ClassVar[str]
    """arXiv id."""

    @property
    def absolute(self) -> bool:
        """Whether it fixes the level of rewards, so that sigmoid(r) is a probability."""
        return False

    def __call__(
        self, rewards_IK: torch.Tensor, labels_IK: torch.Tensor, mask_IK: torch.Tensor
    ) -> torch.Tensor:
        """Loss [I] of items.

        Args:
            rewards_IK: Rewards of the items' responses.
            labels_IK: 1 where the response passed, 0 where it failed; of single responses anything
                between.
            mask_IK: False where an item has fewer than K responses.
        """
        raise NotImplementedError


class BradleyTerry(RewardLoss):
    """Right above wrong, and, where the pairs hold ties, right ones alike."""

    name: Literal["bradley_terry"] = "bradley_terry"
    """Pairs."""
    form: Literal["paper", "released"] = "paper"
    """A tie's two terms: paper takes their mean, released their sum."""
    margin: float = Field(0.0, ge=0)
    """m: by how much a right response is to score above a wrong one. Released: 3."""
    tie_margin: float = Field(0.0, ge=0)
    """t: how far apart two right responses may be for little. Released: 3."""
    smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Weight of the pair turned round: (1 - e) of d - m, e of -d - m."""
    win_weight: float = Field(1.0, ge=0)
    """Factor on pass-fail pairs."""
    tie_weight: float = Field(1.0, ge=0)
    """Factor on ties."""
    pointwise_weight: float = Field(0.0, ge=0)
    """Factor on cross-entropy of both responses, their mean; above 0 it fixes the level."""
    unit: ClassVar[Unit] = "pairs"
    paper: ClassVar[str] = "2512.22170"

    @property
    def absolute(self) -> bool:
        """Whether cross-entropy is part of it."""
        return self.pointwise_weight > 0

    def __call__(
        self, rewards_IK: torch.Tensor, labels_IK: torch.Tensor, mask_IK: torch.Tensor
    ) -> torch.Tensor:
        """Loss [I] of pairs, the first of each right.

        Raises:
            ValueError: A pair begins with a wrong response: it is a fail-fail pair, or turned
                round.
        """
        if not bool((labels_IK[:, 0] == 1).all()):
            raise ValueError(
                "a pair begins with a wrong response; make pairs by "
                "rlvr.reward_models.build_pairs, which gives no pair of two failures"
            )
        d_I = rewards_IK[:, 0] - rewards_IK[:, 1]
        win_I = win_loss(d_I, self.margin, self.smoothing)
        tie_I = tie_loss(d_I, self.tie_margin, self.form)
        loss_I = torch.where(labels_IK[:, 1] == 1, self.tie_weight * tie_I, self.win_weight * win_I)
        if self.pointwise_weight:
            loss_I = loss_I + self.pointwise_weight * cross_entropy(rewards_IK, labels_IK).mean(-1)
        return loss_I


class PointwiseCrossEntropy(RewardLoss):
    """Cross-entropy of sigmoid(r) against the label, which may lie between 0 and 1."""

    name: Literal["ce"] = "ce"
    """Single responses."""
    tau: float = Field(1.0, ge=0, le=4)
    """Another comp-sum loss in its place (docs/methods/comp_sum.md): above 1 responses that are
    judged against their label, as mislabelled ones are, have less weight. Only at 1 is sigmoid(r)
    a probability."""
    unit: ClassVar[Unit] = "responses"
    paper: ClassVar[str] = "2111.10734"

    @property
    def absolute(self) -> bool:
        """It does; a probability that agrees with the share of passes it is at tau = 1 alone."""
        return True

    def __call__(
        self, rewards_IK: torch.Tensor, labels_IK: torch.Tensor, mask_IK: torch.Tensor
    ) -> torch.Tensor:
        """Loss [I]."""
        rewards_I, labels_I = rewards_IK[:, 0], labels_IK[:, 0].to(rewards_IK)
        if self.tau == 1:
            return cross_entropy(rewards_I, labels_I)
        right_I, wrong_I = (
            comp_sum(torch.nn.functional.logsigmoid(x), self.tau) for x in (rewards_I, -rewards_I)
        )
        return labels_I * right_I + (1 - labels_I) * wrong_I


class ListwiseLdr(RewardLoss):
    """A right response above the wrong ones of its prompt, which count by how close they come."""

    name: Literal["ldr"] = "ldr"
    """Lists."""
    temperature: float = Field(1.0, gt=0)
    """lambda: small looks at the best wrong response alone, large at all alike."""
    margin: float = Field(0.1, ge=0)
    """c: by how much it is to stand above. Released: 0.1."""
    normalise: bool = False
    """Divide rewards by the mean of their absolute values in the list, as the released code does;
    the loss then sees a constant added to all."""
    unit: ClassVar[Unit] = "lists"
    paper: ClassVar[str] = "2112.14869"

    def __call__(
        self, rewards_IK: torch.Tensor, labels_IK: torch.Tensor, mask_IK: torch.Tensor
    ) -> torch.Tensor:
        """Loss [I]; 0 where a list lacks right or wrong responses."""
        right_IK = mask_IK & (labels_IK == 1)
        wrong_IK = mask_IK & (labels_IK != 1)
        if self.normalise:
            size_I1 = (rewards_IK.abs() * mask_IK).sum(-1, keepdim=True)
            size_I1 = size_I1 / mask_IK.sum(-1, keepdim=True)
            rewards_IK = rewards_IK / size_I1.clamp_min(1e-6)
        scaled_IK = rewards_IK / self.temperature
        # A finite stand-in for log 0: the gradient of a logsumexp over nothing is not a number.
        lowest = torch.finfo(scaled_IK.dtype).min / 4
        against_I1 = (
            (scaled_IK + self.margin / self.temperature)
            .masked_fill(~wrong_IK, lowest)
            .logsumexp(-1, keepdim=True)
        )
        k_I1 = 1 + wrong_IK.sum(-1, keepdim=True)
        # log [exp(0) + sum over wrong of exp(...)], of which y itself is exp(0).
        over_IK = against_I1 - scaled_IK
        total_IK = torch.logaddexp(torch.zeros_like(over_IK), over_IK)
        each_IK = self.temperature * (total_IK - k_I1.to(scaled_IK).log())
        there_IK = right_IK & wrong_IK.any(-1, keepdim=True)
        sum_I = each_IK.masked_fill(~there_IK, 0.0).sum(-1)
        return sum_I / there_IK.sum(-1).clamp_min(1)


AnyRewardLoss = Annotated[
    BradleyTerry | PointwiseCrossEntropy | ListwiseLdr, Field(discriminator="name")
]
"""One loss of a recipe."""


def win_loss(d_I: torch.Tensor, margin: float = 0.0, smoothing: float = 0.0) -> torch.Tensor:
    """Bradley-Terry's loss [I] of differences right less wrong."""
    kept_I = -(1 - smoothing) * torch.nn.functional.logsigmoid(d_I - margin)
    return (
        kept_I - smoothing * torch.nn.functional.logsigmoid(-d_I - margin) if smoothing else kept_I
    )


def tie_loss(
    d_I: torch.Tensor, margin: float = 0.0, form: Literal["paper", "released"] = "paper"
) -> torch.Tensor:
    """Loss [I] of differences of two right responses; even in d, lowest at 0."""
    both_I = -torch.nn.functional.logsigmoid(d_I - margin) - torch.nn.functional.logsigmoid(
        -d_I - margin
    )
    return both_I / 2 if form == "paper" else both_I


def cross_entropy(rewards_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Loss [B] of rewards r against labels in [0, 1]: -l log s(r) - (1 - l) log s(-r)."""
    return torch.nn.functional.binary_cross_entropy_with_logits(
        rewards_B, labels_B, reduction="none"
    )
