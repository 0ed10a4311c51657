"""What a part of the loss may look at, what it gives back, and when it is asked.

An optimizer step asks in this order: ``prepare`` once, with columns of the whole step, for what
depends on all of its tokens (a percentile, a ranking); the call once per micro-batch; ``finish``
once, with the step's metrics. Whatever depends on all tokens is decided in ``prepare``, so the
gradient does not depend on how the step is split into micro-batches or over ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from rlvr.objective.proxy import Proxy
from rlvr.settings import Settings


@dataclass(frozen=True, slots=True)
class Terms:
    """Per-token columns of a micro-batch, [B, T], in nats where they are log-probabilities.

    ``logprobs_BT``, ``entropy_BT`` and ``proxy_kl_BT`` carry gradients; the rest are constants.
    Entries where ``mask_BT`` is 0 hold zeros and count for nothing. ``log_kept_mass_BT`` and
    ``kept_BT`` describe the old policy's proxy distribution (:class:`~rlvr.objective.proxy.Proxy`);
    ``proxy_logprobs_BT`` are its log-probabilities of the tokens it kept, and ``proxy_kl_BT`` is
    the policy's divergence from it. ``prepared`` holds what each part of the loss prepared for
    these rows, by name.
    """

    logprobs_BT: torch.Tensor
    old_logprobs_BT: torch.Tensor
    advantages_BT: torch.Tensor
    mask_BT: torch.Tensor
    entropy_BT: torch.Tensor | None = None
    reference_logprobs_BT: torch.Tensor | None = None
    rollout_logprobs_BT: torch.Tensor | None = None
    log_kept_mass_BT: torch.Tensor | None = None
    kept_BT: torch.Tensor | None = None
    proxy_logprobs_BT: torch.Tensor | None = None
    proxy_kl_BT: torch.Tensor | None = None
    prepared: Mapping[str, torch.Tensor] = field(default_factory=dict)

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

    @staticmethod
    def of(terms: Terms) -> "Step":
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


Memory = dict[str, float]
"""What a part of the loss remembers from one optimizer step to the next; checkpointed."""


class Part(Settings):
    """A part of the loss; what it says of itself unless it says otherwise."""

    @property
    def active(self) -> bool:
        """Whether it changes the gradient at all."""
        return True

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities must be there."""
        return False

    @property
    def at_zero_advantage(self) -> bool:
        """Whether tokens of advantage zero can have a gradient through it."""
        return False

    @property
    def needs_step_logprobs(self) -> bool:
        """Whether ``prepare`` looks at log-probabilities."""
        return False

    @property
    def needs_step_entropy(self) -> bool:
        """Whether ``prepare`` looks at entropies, which no engine reports."""
        return False

    @property
    def noise_filter(self) -> Proxy | None:
        """The proxy distribution whose statistics it looks at."""
        return None

    def noise_below(self, prepared_BT: torch.Tensor | None) -> float:
        """Log-probability from which on it ignores a token's proxy statistics.

        Args:
            prepared_BT: What :meth:`prepare` gave.
        """
        return float("inf")

    @property
    def needs_proxy_kl(self) -> bool:
        """Whether it looks at the divergence from the proxy over the whole vocabulary."""
        return False

    def prepare(self, step: Step, memory: Memory) -> torch.Tensor | None:
        """What depends on the whole step, as a column [B, T] that micro-batches are cut from."""
        return None

    def finish(self, metrics: dict[str, float], memory: Memory) -> tuple[dict[str, float], Memory]:
        """The metrics that it adds or corrects, from those of the whole step, and its memory."""
        return {}, memory
