"""A policy loss, its correction for the engine, its regularisers and the reducer, together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from rlvr.objective.corrections import Correction, NoCorrection, mismatch_metrics
from rlvr.objective.policy_losses import PolicyLoss
from rlvr.objective.reducers import Counts, Reducer, TokenMean
from rlvr.objective.regularisers import Regulariser
from rlvr.objective.terms import PerToken, Terms


@dataclass(frozen=True)
class Objective:
    """loss = sum over tokens of weight x (correction x policy loss + regularisers)."""

    policy_loss: PolicyLoss
    regularisers: Sequence[Regulariser]
    reducer: Reducer
    correction: Correction = field(default_factory=NoCorrection)

    @property
    def terms(self) -> list[Callable[[Terms], PerToken]]:
        """The corrected policy loss and every regulariser that does something."""
        return [self._corrected, *(term for term in self.regularisers if term.active)]

    def _corrected(self, terms: Terms) -> PerToken:
        result = self.policy_loss(terms)
        if terms.rollout_logprobs_BT is None:
            return result
        log_rho_BT = terms.learner_logprobs_BT - terms.rollout_logprobs_BT
        weights_BT = self.correction.weights(log_rho_BT, terms.mask_BT)
        metrics = result.metrics | mismatch_metrics(log_rho_BT, terms.mask_BT)
        if not isinstance(self.correction, NoCorrection):
            metrics["mismatch/weight"] = weights_BT
        return PerToken(weights_BT * result.loss_BT, metrics)

    @property
    def needs_reference(self) -> bool:
        """Whether some term looks at the reference."""
        return any(term.needs_reference for term in self.regularisers)

    @property
    def regularised(self) -> bool:
        """Whether tokens of advantage zero have a gradient all the same."""
        return any(term.active for term in self.regularisers)

    def __call__(
        self, terms: Terms, counts: Counts, measured: Counts | None = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """This micro-batch's share of the step's loss, and of its metrics.

        Args:
            terms: The micro-batch.
            counts: Of the whole optimizer step.
            measured: Of the part of the step that is run at all; metrics are means over it.

        Returns:
            The loss share (a scalar with gradient) and the metric shares; both add up over
            micro-batches and ranks, save names ending in ``_max``, of which the maximum is taken.
        """
        results = [term(terms) for term in self.terms]
        loss_BT = torch.stack([result.loss_BT for result in results]).sum(0)
        weights_BT = self.reducer.weights(terms.mask_BT, counts).to(loss_BT.dtype)
        loss = (weights_BT * loss_BT).sum()
        per_token = {name: value for result in results for name, value in result.metrics.items()}
        if terms.entropy_BT is not None:
            per_token["policy/entropy"] = terms.entropy_BT.detach()
        mean_BT = TokenMean().weights(terms.mask_BT, measured or counts)
        metrics = {name: _reduce(name, value, mean_BT) for name, value in per_token.items()}
        return loss, {"policy/loss": float(loss.detach()), **metrics}


def merge_metrics(total: dict[str, float], share: dict[str, float]) -> dict[str, float]:
    """Add one micro-batch's shares to the step's."""
    merged = dict(total)
    for name, value in share.items():
        if name not in merged:
            merged[name] = value
        else:
            merged[name] = max(merged[name], value) if _is_max(name) else merged[name] + value
    return merged


def _is_max(name: str) -> bool:
    return name.endswith("_max")


def _reduce(name: str, value_BT: torch.Tensor, mean_BT: torch.Tensor) -> float:
    if _is_max(name):
        return float(value_BT[mean_BT > 0].max()) if bool((mean_BT > 0).any()) else 0.0
    return float((mean_BT * value_BT).sum())
