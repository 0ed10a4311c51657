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

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.preference.losses.base import PairLoss, PreferenceLoss, UnpairedLoss
from rlvr.preference.losses.difference import Sigmoid
from rlvr.preference.losses.separate import NcaPair
from rlvr.preference.losses.terms import Labelled
from rlvr.preference.losses.unpaired import Kto
from rlvr.reward_models.bag import BagLoss, bag_loss
from rlvr.reward_models.outcome_losses import cross_entropy
from rlvr.reward_models.pairs import members

Balance = Literal["none", "dataset", "instruction"]


class LabelCrossEntropy(UnpairedLoss):
    """Binary cross-entropy of sigmoid(r) against the label, which may lie between 0 and 1."""

    name: Literal["ce"] = "ce"
    beta: float = Field(0.05, gt=0)
    """Scale of the reward: r = beta x summed log-ratio."""
    balance: Balance = "none"
    """none trains on all responses; dataset drops some of the larger class at random; instruction
    keeps equally many right and wrong ones of every prompt."""
    equation: ClassVar[str] = "-l log s(beta r) - (1 - l) log s(-beta r)"
    paper: ClassVar[str] = "2412.01981"

    def __call__(self, labelled: Labelled) -> torch.Tensor:
        """Loss [B]."""
        rewards_B = self.beta * labelled.log_ratio_B
        return cross_entropy(rewards_B, labelled.desirable_B.to(rewards_B))


class ProcessDpo(Sigmoid):
    """DPO over all right x wrong pairs of a prompt."""

    name: Literal["dpo"] = "dpo"  # type: ignore[assignment]
    beta: float = Field(0.05, gt=0)
    """Scale of the reward."""
    paper: ClassVar[str] = "2412.01981"


class ProcessNca(NcaPair):
    """NCA over all right x wrong pairs of a prompt."""

    name: Literal["nca"] = "nca"  # type: ignore[assignment]
    beta: float = Field(0.05, gt=0)
    """Scale of the reward."""
    paper: ClassVar[str] = "2412.01981"


class ProcessKto(Kto):
    """KTO on labelled responses; its baseline comes from mismatched prompts and responses."""

    beta: float = Field(0.05, gt=0)
    """Scale of the reward."""
    paper: ClassVar[str] = "2412.01981"


class StepsLoss(PreferenceLoss):
    """A loss over the steps of single responses, each labelled or not."""

    beta: float = Field(0.05, gt=0)
    """Scale of the reward."""
    paper: ClassVar[str] = "2412.01981"

    def __call__(self, log_ratio_BK: torch.Tensor, labels_BK: torch.Tensor) -> torch.Tensor:
        """Loss [B], 0 where no step of a response is judged.

        Args:
            log_ratio_BK: Summed log-ratios of the steps.
            labels_BK: Between 0 and 1; not a number where a step was not judged, or is not there.
        """
        raise NotImplementedError


class StepLabels(StepsLoss):
    """Labels of steps, as a second stage after one of the others; the mean over judged steps."""

    name: Literal["steps"] = "steps"
    form: Literal["released", "paper"] = "released"
    """The released code's squared error of sigmoid(r^k), or the loss that the paper prints,
    -log sigmoid(l_k |r^k|)."""
    equation: ClassVar[str] = "(s(beta r^k) - l_k)^2"

    def __call__(self, log_ratio_BK: torch.Tensor, labels_BK: torch.Tensor) -> torch.Tensor:
        """Loss [B]."""
        judged_BK = ~labels_BK.isnan()
        labels_BK = labels_BK.nan_to_num().to(log_ratio_BK)
        rewards_BK = self.beta * log_ratio_BK
        if self.form == "paper":
            signs_BK = torch.where(labels_BK > 0.5, 1.0, -1.0).to(rewards_BK)
            loss_BK = -torch.nn.functional.logsigmoid(signs_BK * rewards_BK.abs())
        else:
            loss_BK = (rewards_BK.sigmoid() - labels_BK).square()
        return (loss_BK * judged_BK).sum(-1) / judged_BK.sum(-1).clamp_min(1)


class BagOfSteps(StepsLoss):
    """Labels of whole responses, for the mean of their steps or for each (aggregate responses)."""

    name: Literal["bag"] = "bag"
    rho: float = Field(0.3, ge=0, le=1)
    """0: only the mean of a response's step rewards has to agree with its label; 1: every step
    bears the label; between, steps that differ cost something."""
    form: BagLoss = "cross_entropy"
    """Cross-entropy with rewards as logits, or the squared error of their sigmoid."""
    equation: ClassVar[str] = "(1 - rho) CE(l, mean_k beta r^k) + rho mean_k CE(l, beta r^k)"
    paper: ClassVar[str] = "2401.11081"

    def __call__(self, log_ratio_BK: torch.Tensor, labels_BK: torch.Tensor) -> torch.Tensor:
        """Loss [B]; the label stands on every step that is there, nothing on others."""
        there_BK = ~labels_BK.isnan()
        outcome_B = labels_BK.nan_to_num().amax(-1)
        return bag_loss(self.beta * log_ratio_BK, there_BK, outcome_B, self.rho, self.form)


PrmObjective = Annotated[
    LabelCrossEntropy | ProcessDpo | ProcessNca | ProcessKto | StepLabels | BagOfSteps,
    Field(discriminator="name"),
]
"""One objective of a recipe."""


def takes_pairs(objective: PreferenceLoss) -> bool:
    """Whether it learns from pairs rather than from single responses."""
    return isinstance(objective, PairLoss)


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
