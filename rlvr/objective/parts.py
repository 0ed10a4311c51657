"""The kinds of parts that an objective is made of, and what a part says of itself.

A part is one class in one file: the equation and the paper in the module's docstring, settings as
fields, the mathematics as a method. It extends one of the classes here (or
:class:`~rlvr.objective.reducers.Reducer`, :class:`~rlvr.objective.corrections.Correction`) and says
by class attributes what it needs; recipe, learner and documents ask it, and know no part by name.
docs/how_to/examples holds parts from outside of the package.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.loss_term import LossTerm
from rlvr.objective.numerics import bounded_exp, kept
from rlvr.settings import Registered

ROOM = "rlvr.objective"


class PolicyLoss(LossTerm):
    """The term of the loss that rewards enter; its tokens of advantage zero have no gradient."""

    room: ClassVar[str] = ROOM
    written: ClassVar[str] = "policy_loss: {part}"
    uses_ratio: ClassVar[bool] = True
    """Whether it takes the ratio to the old policy, which must then be that of the distribution
    that was sampled from."""
    plain_on_policy: ClassVar[bool] = True
    """Whether its gradient where the policy is the old one is the plain policy gradient."""
    reducer_of_paper: ClassVar[str | None] = None
    """The reducer that its paper takes, where that is not the recipe's default."""
    needs_reducer: ClassVar[bool] = False
    """Whether it is nothing with another reducer than the paper's."""

    @abstractmethod
    def __call__(self, terms: LossInputs) -> PerToken:
        """Loss [B, T] of every token, to be minimised; padding counts for nothing."""


class Regulariser(LossTerm):
    """A term added to the policy loss."""

    room: ClassVar[str] = ROOM
    written: ClassVar[str] = "regularisers: [{part}]"

    @abstractmethod
    def __call__(self, terms: LossInputs) -> PerToken:
        """Loss [B, T] of every token, with its coefficient."""


class TokenFilter(LossTerm):
    """Which tokens take part in the policy loss; regularisers are not filtered."""

    room: ClassVar[str] = ROOM
    written: ClassVar[str] = "filters: [{part}]"
    draws: ClassVar[bool] = False
    """Whether it draws tokens at random, so that the order of completions matters."""

    @abstractmethod
    def weights(self, terms: LossInputs) -> torch.Tensor:
        """Constant factors [B, T] on the policy loss."""


class Advantage(Registered):
    """From rewards to advantages; rewards alone give them, unless a critic is needed."""

    room: ClassVar[str] = ROOM
    written: ClassVar[str] = "advantage: {part}"
    prime_baseline: ClassVar[Literal["leave_one_out", "group", "none"]] = "none"
    """The baseline that PRIME takes off token rewards beside it."""
    shift_invariant: ClassVar[bool] = True
    """Whether a constant added to all rewards changes nothing."""
    compares: ClassVar[bool] = True
    """Whether rewards count by comparison, so that equal ones are worth exactly nothing."""
    needs_critic: ClassVar[bool] = False
    """Whether a second model, trained with the policy, must give the values of states."""

    @property
    def needs_siblings(self) -> bool:
        """Whether a completion is compared with others of its prompt."""
        return False

    @abstractmethod
    def __call__(self, rewards_B: torch.Tensor, group_index_B: torch.Tensor) -> torch.Tensor:
        """Advantages [B], the same for all tokens of a completion, from rewards [B] and group
        numbers [B]."""


class CriticAdvantage(Advantage):
    """Advantages of tokens, from the values that a critic gives their states."""

    needs_critic: ClassVar[bool] = True
    kl_in_reward: float = Field(0.0, ge=0)
    """Price of a nat of log-ratio to the reference, taken off each token's reward."""

    def __call__(self, rewards_B: torch.Tensor, group_index_B: torch.Tensor) -> torch.Tensor:
        """Zeros [B], until the critic has spoken."""
        return torch.zeros_like(rewards_B)

    @abstractmethod
    def estimate(
        self, rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns, [B, T] each, from token rewards and old values."""


def log_ratio(terms: LossInputs) -> torch.Tensor:
    """log r_t, [B, T], zero on padding."""
    return kept(terms.logprobs_BT - terms.old_logprobs_BT, terms.mask_BT)


def ratio_metrics(log_ratio_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """How far the policy has moved from the old one."""
    log_ratio_BT = log_ratio_BT.detach()
    ratio_BT = bounded_exp(log_ratio_BT)
    return {
        "policy/ratio_max": ratio_BT,
        # k3 of Schulman's note on approximating KL: unbiased for KL(old || new), never negative
        "policy/kl_old": ratio_BT - 1 - log_ratio_BT,
    }
