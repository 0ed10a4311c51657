"""Clip-Cov: take a few tokens of high covariance out of the policy loss, at random.

    c_t = (log pi_t - mean log pi) (A_t - mean A)
    out: max(1, floor(fraction N)) tokens drawn uniformly from those with low < c_t < high

over the N tokens of the optimizer step; the tokens left out still count in the reducer's
denominator. Cui et al., "The Entropy Mechanism of Reinforcement Learning" (arXiv:2505.22617, Eqs.
11 and 12), which pairs it with ratio bounds of [0, 2]: ``policy_loss: {name: clip, low: 1, high:
1}``.

The released code draws in each micro-batch, from tokens that PPO has not clipped already. Here the
draw is over the step, log pi being that of the policy that the rollout's updates start from, and
clipped tokens can be drawn (they have no gradient to lose). The draw is a function of ``seed`` and
the number of the update.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from rlvr.lazy import torch
from rlvr.objective.loss_inputs import LossInputs, Step
from rlvr.objective.loss_term import Memory
from rlvr.objective.parts import TokenFilter
from rlvr.objective.selection import count_of, covariance


class ClipCov(TokenFilter):
    """Leave out tokens whose log-probability and advantage vary together (Clip-Cov)."""

    name: Literal["clip_cov"] = "clip_cov"
    paper: ClassVar[str] = "Cui et al., The Entropy Mechanism, 2505.22617"
    draws: ClassVar[bool] = True
    fraction: float = Field(2e-4, ge=0, le=1)
    """Share of all tokens that is left out, at least one token."""
    low: float = 1.0
    """Tokens of a covariance above this ..."""
    high: float = 5.0
    """... and below this can be left out."""
    seed: int = Field(0, ge=0)
    """Of the draw."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        return self

    @property
    def needs_step_logprobs(self) -> bool:
        """Always."""
        return True

    def prepare(self, step: Step, memory: Memory) -> torch.Tensor | None:
        """Ones [B, T] with zeros at the tokens drawn."""
        c_BT = covariance(step.logprobs_BT, step.advantages_BT, step.mask_BT)
        eligible_BT = (c_BT > self.low) & (c_BT < self.high) & (step.mask_BT > 0)
        wanted = max(1, count_of(self.fraction, int(step.mask_BT.sum())))
        places = eligible_BT.nonzero().cpu()
        generator = torch.Generator().manual_seed(self.seed * 2_654_435_761 + step.number)
        drawn = places[torch.randperm(len(places), generator=generator)[:wanted]]
        weights_BT = torch.ones_like(step.mask_BT)
        weights_BT[drawn[:, 0], drawn[:, 1]] = 0
        return weights_BT

    def weights(self, terms: LossInputs) -> torch.Tensor:
        """[B, T], constant."""
        return terms.prepared[self.name]
