"""What an implicit process reward model is trained with: labels of whole responses.

With r = beta (summed log-ratio) and label l in [0, 1]:

    ce     -[ l log s(r) + (1 - l) log s(-r) ]                           single responses
    dpo    -log s(r_w - r_z)                                             pairs
    nca    -log s(r_w) - 1/2 log s(-r_w) - 1/2 log s(-r_z)               pairs
    kto    1 - s(r - beta z0) if right, 1 - s(beta z0 - r) if wrong      single responses
    steps  (s(r^k) - l_k)^2, the mean over judged steps                  labels of steps
    bag    (1 - rho) CE(l, mean_k r^k) + rho mean_k CE(l, r^k)           single responses in steps

Yuan et al., arXiv:2412.01981, section 3 and equation 5 (printed there without the minus sign). The
three in the middle are those of ``rlvr/preference/losses``. Pairs are all right x wrong responses
of a prompt. The labels of ce may be balanced: ``dataset`` drops responses of the larger class at
random, ``instruction`` keeps equally many right and wrong ones of every prompt.

A second stage may learn from labels of steps, where somebody has them. ``form: released`` of steps
is the loss of the released code. The paper prints -log s(l_k |r^k|) with l_k = +1 or -1
(``form: paper``), which draws the reward of a wrong step to zero and pushes that of a right one
away from zero, to whichever side it is on.
"""

import random
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from rlvr.preference.losses import LOSSES, PairLoss, PreferenceLoss, UnpairedLoss
from rlvr.preference.losses.terms import Labelled
from rlvr.prm.bag import BagLoss, bag_loss
from rlvr.rm import cross_entropy, members
from rlvr.settings import Settings

Balance = Literal["none", "dataset", "instruction"]


class CrossEntropy(UnpairedLoss):
    """Binary cross-entropy of sigmoid(r) against the label, which may lie between 0 and 1."""

    name: Literal["ce"] = "ce"
    beta: float = Field(0.05, gt=0)
    """Scale of the reward: r = beta x summed log-ratio."""
    equation: ClassVar[str] = "-l log s(beta r) - (1 - l) log s(-beta r)"
    paper: ClassVar[str] = "2412.01981"

    def __call__(self, labelled: Labelled) -> torch.Tensor:
        """Loss [B]."""
        rewards_B = self.beta * labelled.log_ratio_B
        return cross_entropy(rewards_B, labelled.desirable_B.to(rewards_B))


class CeSettings(Settings):
    """Cross-entropy on labelled responses."""

    name: Literal["ce"] = "ce"
    paper: ClassVar[str] = "2412.01981"
    beta: float = Field(0.05, gt=0)
    """Scale of the reward."""
    balance: Balance = "none"
    """none trains on all responses; dataset drops some of the larger class at random; instruction
    keeps equally many right and wrong ones of every prompt."""

    @property
    def loss(self) -> PreferenceLoss:
        """The loss of a labelled response."""
        return CrossEntropy(beta=self.beta)


class _Borrowed(Settings):
    """A loss of ``rlvr/preference/losses`` on rewards of this scale."""

    borrowed: ClassVar[str]
    paper: ClassVar[str] = "2412.01981"
    beta: float = Field(0.05, gt=0)
    """Scale of the reward."""

    @property
    def loss(self) -> PreferenceLoss:
        """The loss of a pair, or of a labelled response."""
        return LOSSES[self.borrowed](beta=self.beta)  # type: ignore[call-arg]


class DpoSettings(_Borrowed):
    """DPO over all right x wrong pairs of a prompt."""

    borrowed: ClassVar[str] = "sigmoid"
    name: Literal["dpo"] = "dpo"


class NcaSettings(_Borrowed):
    """NCA over all right x wrong pairs of a prompt."""

    borrowed: ClassVar[str] = "nca_pair"
    name: Literal["nca"] = "nca"


class KtoSettings(_Borrowed):
    """KTO on labelled responses; its baseline comes from mismatched prompts and responses."""

    borrowed: ClassVar[str] = "kto"
    name: Literal["kto"] = "kto"


class StepLoss(PreferenceLoss):
    """A loss over the steps of single responses, each labelled or not."""

    name: Literal["steps"] = "steps"
    beta: float = Field(0.05, gt=0)
    """Scale of the reward."""
    form: Literal["released", "paper"] = "released"
    """Squared error of sigmoid(r^k), or -log sigmoid(l_k |r^k|)."""
    equation: ClassVar[str] = "(s(beta r^k) - l_k)^2"
    paper: ClassVar[str] = "2412.01981"

    def __call__(self, log_ratio_BK: torch.Tensor, labels_BK: torch.Tensor) -> torch.Tensor:
        """Loss [B]: the mean over a response's judged steps, 0 where there are none.

        Args:
            log_ratio_BK: Summed log-ratios of the steps.
            labels_BK: Between 0 and 1; not a number where a step was not judged, or is not there.
        """
        judged_BK = ~labels_BK.isnan()
        labels_BK = labels_BK.nan_to_num().to(log_ratio_BK)
        rewards_BK = self.beta * log_ratio_BK
        if self.form == "paper":
            signs_BK = torch.where(labels_BK > 0.5, 1.0, -1.0).to(rewards_BK)
            loss_BK = -logsigmoid(signs_BK * rewards_BK.abs())
        else:
            loss_BK = (rewards_BK.sigmoid() - labels_BK).square()
        return (loss_BK * judged_BK).sum(-1) / judged_BK.sum(-1).clamp_min(1)


class StepSettings(Settings):
    """Labels of steps, as a second stage after one of the others."""

    name: Literal["steps"] = "steps"
    beta: float = Field(0.05, gt=0)
    """Scale of the reward."""
    form: Literal["released", "paper"] = "released"
    """The released code's squared error, or the loss that the paper prints."""

    @property
    def loss(self) -> PreferenceLoss:
        """The loss of a response in steps."""
        return StepLoss(beta=self.beta, form=self.form)


class BagOfSteps(StepLoss):
    """The outcome on the mean of a response's steps, on each of them, or in between."""

    rho: float = Field(0.3, ge=0, le=1)
    """0 labels the mean of the steps, 1 every step."""
    loss: BagLoss = "cross_entropy"
    """Of rewards as logits, or squared, of their sigmoid."""

    def __call__(self, log_ratio_BK: torch.Tensor, labels_BK: torch.Tensor) -> torch.Tensor:
        """Loss [B]; the label stands on every step that is there, nothing on others."""
        there_BK = ~labels_BK.isnan()
        outcome_B = labels_BK.nan_to_num().amax(-1)
        return bag_loss(self.beta * log_ratio_BK, there_BK, outcome_B, self.rho, self.loss)


class BagSettings(Settings):
    """Labels of whole responses, for the mean of their steps or for each (aggregate responses)."""

    name: Literal["bag"] = "bag"
    beta: float = Field(0.05, gt=0)
    """Scale of the reward."""
    rho: float = Field(0.3, ge=0, le=1)
    """0: only the mean of a response's step rewards has to agree with its label; 1: every step
    bears the label; between, steps that differ cost something."""
    form: BagLoss = "cross_entropy"
    """Cross-entropy with rewards as logits, or the squared error of their sigmoid."""

    @property
    def loss(self) -> PreferenceLoss:
        """The loss of a response in steps."""
        return BagOfSteps(beta=self.beta, rho=self.rho, loss=self.form)


PrmObjective = Annotated[
    CeSettings | DpoSettings | NcaSettings | KtoSettings | StepSettings | BagSettings,
    Field(discriminator="name"),
]
"""One objective of a recipe."""


def takes_pairs(objective: PrmObjective) -> bool:
    """Whether it learns from pairs rather than from single responses."""
    return isinstance(objective.loss, PairLoss)


def balanced(
    labels: Sequence[bool], groups: Sequence[str], balance: Balance, seed: int
) -> list[int]:
    """The responses to train on, by place in the data and in its order.

    Args:
        labels: Whether each response is right.
        groups: The prompt that each response belongs to.
        balance: How; see the module docstring.
        seed: Which of the larger class are dropped.
    """
    generator = random.Random(f"balance {seed}")
    whole = list(range(len(labels)))
    if balance == "none":
        return whole
    parts = [whole] if balance == "dataset" else list(members(groups).values())
    kept: list[int] = []
    for rows in parts:
        right = [row for row in rows if labels[row]]
        wrong = [row for row in rows if not labels[row]]
        size = min(len(right), len(wrong))
        kept += generator.sample(right, size) + generator.sample(wrong, size)
    return sorted(kept)
