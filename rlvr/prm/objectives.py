"""What an implicit process reward model is trained with: labels of whole responses, nothing else.

With r = beta (summed log-ratio) and label l in [0, 1]:

    ce     -[ l log s(r) + (1 - l) log s(-r) ]                           single responses
    dpo    -log s(r_w - r_z)                                             pairs
    nca    -log s(r_w) - 1/2 log s(-r_w) - 1/2 log s(-r_z)               pairs
    kto    1 - s(r - beta z0) if right, 1 - s(beta z0 - r) if wrong      single responses

Yuan et al., arXiv:2412.01981, section 3 and equation 5 (printed there without the minus sign). The
last three are those of ``rlvr/preference/losses``. Pairs are all right x wrong responses of a
prompt. The labels of ce may be balanced: ``dataset`` drops responses of the larger class at random,
``instruction`` keeps equally many right and wrong ones of every prompt.
"""

import random
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn.functional import binary_cross_entropy_with_logits

from rlvr.preference.losses import LOSSES, PairLoss, PreferenceLoss, UnpairedLoss
from rlvr.preference.losses.terms import Labelled
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


def cross_entropy(rewards_B: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Loss [B] of rewards r against labels in [0, 1]."""
    return binary_cross_entropy_with_logits(rewards_B, labels_B, reduction="none")


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


PrmObjective = Annotated[
    CeSettings | DpoSettings | NcaSettings | KtoSettings, Field(discriminator="name")
]
"""One objective of a recipe."""


def takes_pairs(objective: PrmObjective) -> bool:
    """Whether it learns from pairs rather than from single responses."""
    return isinstance(objective.loss, PairLoss)


def all_pairs(labels: Sequence[bool], groups: Sequence[str]) -> list[tuple[int, int]]:
    """(right, wrong) for all right x wrong responses of each prompt, by place in the data.

    Prompts whose responses are all right or all wrong give none.

    Args:
        labels: Whether each response is right.
        groups: The prompt that each response belongs to.
    """
    pairs = []
    for members in _members(groups).values():
        right = [row for row in members if labels[row]]
        wrong = [row for row in members if not labels[row]]
        pairs += [(good, bad) for good in right for bad in wrong]
    return pairs


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
    parts = [whole] if balance == "dataset" else list(_members(groups).values())
    kept: list[int] = []
    for members in parts:
        right = [row for row in members if labels[row]]
        wrong = [row for row in members if not labels[row]]
        size = min(len(right), len(wrong))
        kept += generator.sample(right, size) + generator.sample(wrong, size)
    return sorted(kept)


def _members(groups: Sequence[str]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return members
