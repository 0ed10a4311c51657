"""What a term of the loss may look at, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlvr.lazy import torch
from rlvr.objective.numerics import LEAST_LOGPROB


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Per-token columns of a micro-batch, [B, T], in nats where they are log-probabilities.

    ``logprobs_BT`` and ``entropy_BT`` carry gradients; the rest are constants. Entries where
    ``mask_BT`` is 0 hold zeros and count for nothing. ``columns`` are those of the statistics that
    parts of the loss asked for, by name; they carry gradients where their statistic says so.
    ``prepared`` holds what each part of the loss prepared for these rows, by name.
    Log-probabilities below -1e4, such as those of impossible tokens, are -1e4 and have no gradient.
    """

    logprobs_BT: torch.Tensor
    old_logprobs_BT: torch.Tensor
    advantages_BT: torch.Tensor
    mask_BT: torch.Tensor
    entropy_BT: torch.Tensor | None = None
    reference_logprobs_BT: torch.Tensor | None = None
    rollout_logprobs_BT: torch.Tensor | None = None
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    prepared: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [name for name in self.__slots__ if name.endswith("logprobs_BT")]
        bounded: dict[int, torch.Tensor] = {}  # what is one tensor stays one
        for name in names:
            column_BT = getattr(self, name)
            if column_BT is not None:
                found_BT = bounded.setdefault(id(column_BT), column_BT.clamp_min(LEAST_LOGPROB))
                object.__setattr__(self, name, found_BT)

    @property
    def learner_logprobs_BT(self) -> torch.Tensor:
        """The learner's own log-probabilities at the start of the rollout's updates, constant.

        Where the engine's serve as old ones (the very same tensor) nobody has computed them; the
        current ones then stand for them, as they do in the first update.
        """
        served = self.old_logprobs_BT is self.rollout_logprobs_BT
        return (self.logprobs_BT if served else self.old_logprobs_BT).detach()


@dataclass(frozen=True, slots=True)
class Step:
    """Columns [B, T] of a whole optimizer step, known before its first micro-batch; constants.

    ``logprobs_BT`` are the old policy's. With one update per rollout that is the current policy,
    and the engine's log-probabilities of what it sampled stand for it: they differ by rounding and
    spare a forward pass. ``entropy_BT`` is there where a part asks for it. ``number`` counts the
    updates before this one.
    """

    logprobs_BT: torch.Tensor
    advantages_BT: torch.Tensor
    mask_BT: torch.Tensor
    entropy_BT: torch.Tensor | None = None
    number: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "logprobs_BT", self.logprobs_BT.clamp_min(LEAST_LOGPROB))

    @staticmethod
    def of(terms: LossInputs) -> Step:
        """A micro-batch under the current policy as if it were the whole step."""
        entropy_BT = None if terms.entropy_BT is None else terms.entropy_BT.detach()
        return Step(terms.logprobs_BT.detach(), terms.advantages_BT, terms.mask_BT, entropy_BT)


@dataclass(frozen=True, slots=True)
class PerToken:
    """A loss for every token, [B, T], with per-token quantities to log.

    ``metrics`` are reduced to their mean over completion tokens, or to their maximum where the
    name ends in ``_max``.
    """

    loss_BT: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
