"""What a loss or regulariser may look at, and what it gives back."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class Terms:
    """Per-token columns of a micro-batch, [B, T], in nats where they are log-probabilities.

    ``logprobs_BT`` and ``entropy_BT`` carry gradients; the rest are constants. Entries where
    ``mask_BT`` is 0 hold zeros and count for nothing.
    """

    logprobs_BT: torch.Tensor
    old_logprobs_BT: torch.Tensor
    advantages_BT: torch.Tensor
    mask_BT: torch.Tensor
    entropy_BT: torch.Tensor | None = None
    reference_logprobs_BT: torch.Tensor | None = None
    rollout_logprobs_BT: torch.Tensor | None = None

    @property
    def learner_logprobs_BT(self) -> torch.Tensor:
        """The learner's own log-probabilities at the start of the rollout's updates, constant.

        Where the engine's serve as old ones (the very same tensor) nobody has computed them; the
        current ones then stand for them, as they do in the first update.
        """
        served = self.old_logprobs_BT is self.rollout_logprobs_BT
        return (self.logprobs_BT if served else self.old_logprobs_BT).detach()


@dataclass(frozen=True, slots=True)
class PerToken:
    """A loss for every token, [B, T], with per-token quantities to log.

    ``metrics`` are reduced to their mean over completion tokens, or to their maximum where the
    name ends in ``_max``.
    """

    loss_BT: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
