"""A policy loss, its correction for the engine, its regularisers and the reducer, together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlvr.lazy import torch
from rlvr.objective.corrections import Correction, NoCorrection, mismatch_metrics
from rlvr.objective.loss_inputs import LossInputs, PerToken, Step
from rlvr.objective.loss_term import LossTerm, Memory
from rlvr.objective.parts import PolicyLoss, Regulariser, TokenFilter
from rlvr.objective.reducers import Counts, Reducer, TokenMean


@dataclass(frozen=True)
class Objective:
    """loss = sum over tokens of weight x (correction x filters x policy loss + regularisers).

    ``memory`` is what parts remember from one optimizer step to the next.
    """

    policy_loss: PolicyLoss
    regularisers: Sequence[Regulariser]
    reducer: Reducer
    correction: Correction = field(default_factory=NoCorrection)
    filters: Sequence[TokenFilter] = ()
    memory: dict[str, Memory] = field(default_factory=dict)

    @property
    def parts(self) -> list[LossTerm]:
        """The policy loss, filters, and the regularisers that do something."""
        regularisers = (term for term in self.regularisers if term.active)
        return [self.policy_loss, *self.filters, *regularisers]

    @property
    def terms(self) -> list[Callable[[LossInputs], PerToken]]:
        """The weighted policy loss and every regulariser that does something."""
        return [self._weighted, *(term for term in self.regularisers if term.active)]

    def _weighted(self, terms: LossInputs) -> PerToken:
        result = self.policy_loss(terms)
        loss_BT, metrics = result.loss_BT, dict(result.metrics)
        if terms.rollout_logprobs_BT is not None:
            log_rho_BT = terms.learner_logprobs_BT - terms.rollout_logprobs_BT
            weights_BT = self.correction.weights(log_rho_BT, terms.mask_BT)
            loss_BT = weights_BT * loss_BT
            metrics |= mismatch_metrics(log_rho_BT, terms.mask_BT)
            if self.correction.active:
                metrics["mismatch/weight"] = weights_BT
        for token_filter in self.filters:
            weights_BT = token_filter.weights(terms)
            loss_BT = weights_BT * loss_BT
            metrics[f"filter/{token_filter.name}"] = (weights_BT > 0).to(loss_BT)
        return PerToken(loss_BT, metrics)

    @property
    def needs_reference(self) -> bool:
        """Whether some term looks at the reference."""
        return any(part.needs_reference for part in self.parts)

    @property
    def regularised(self) -> bool:
        """Whether tokens of advantage zero have a gradient all the same."""
        return any(part.at_zero_advantage for part in self.parts)

    @property
    def needs_step_logprobs(self) -> bool:
        """Whether log-probabilities of the whole step must be there before it is run."""
        return any(part.needs_step_logprobs for part in self.parts)

    @property
    def needs_step_entropy(self) -> bool:
        """Whether entropies of the whole step must be there before it is run."""
        return any(part.needs_step_entropy for part in self.parts)

    def prepare(self, step: Step) -> dict[str, torch.Tensor]:
        """What depends on the whole step, by part: columns [B, T] to cut micro-batches from."""
        columns = {
            part.name: part.prepare(step, self.memory.get(part.name, {})) for part in self.parts
        }
        return {name: column for name, column in columns.items() if column is not None}

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        """After an optimizer step: its metrics, completed; the parts' memories move on.

        Args:
            metrics: Of the whole step, over all micro-batches and ranks.
        """
        metrics = dict(metrics)
        for part in self.parts:
            added, remembered = part.finish(metrics, self.memory.get(part.name, {}))
            metrics |= added
            if remembered:
                self.memory[part.name] = remembered
        return metrics

    def state(self) -> dict[str, Memory]:
        """What a checkpoint must hold to go on."""
        return {name: dict(memory) for name, memory in self.memory.items()}

    def load_state(self, state: dict[str, Memory]) -> None:
        """Take back what :meth:`state` gave."""
        self.memory.clear()
        self.memory.update({name: dict(memory) for name, memory in state.items()})

    def __call__(
        self, terms: LossInputs, counts: Counts, measured: Counts | None = None
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
