"""DeepSpeed's ZeRO 1 and 2 with gradients that are the same bits however a step is split.

Gradients are taken beside DeepSpeed, whose reduction adds them in an order that depends on the
ranks, and added up exactly (``exact.py``). In the step every rank cuts its shards out of the whole
gradient and puts them where DeepSpeed's optimizer looks for what it has reduced itself. Until then
each rank holds the sums of all weights: sharding saves moments, as ever.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from rlvr.learner.exact import GradientSum, exact_norm
from rlvr.learner.models import Models, Outputs
from rlvr.learner.parameter_store import Fraction, StepResult
from rlvr.learner.settings import OptimizerSettings
from rlvr.learner.zero import ZeroStore
from rlvr.policy.batching import ModelInputs
from rlvr.ranks import Ranks


class ExactZeroStore(ZeroStore):
    """As :class:`ZeroStore`, its gradient added up exactly.

    Args:
        models: With equal weights on every rank; DeepSpeed takes them apart.
        settings: Rates and clipping by model.
        ranks: The processes.
        zero: DeepSpeed's ``zero_optimization`` section.

    Raises:
        ValueError: It offloads the optimizer, whose gradients go another way.
    """

    def __init__(
        self,
        models: Models,
        settings: Mapping[str, OptimizerSettings],
        ranks: Ranks,
        zero: Mapping[str, Any],
    ) -> None:
        # Through sharded weights, a pass gives other last bits than through whole ones.
        assert int(zero["stage"]) < 3, "the launch has whole weights (Launch.whole)"
        if zero.get("offload_optimizer"):
            raise ValueError(
                "learner.exact = true with an optimizer that the launch configuration offloads "
                "(offload_optimizer): set it to none, or set learner.exact=false"
            )
        self.model_of = {name: model for model, name, _ in models.trained()}
        super().__init__(models, settings, ranks, zero)
        self.equal_micro_batches = False  # no pass waits for those of other ranks
        self.sums = GradientSum(self.named, ranks)
        self.optimizer.evenly = True
        self._whole: dict[str, torch.Tensor] = {}

    def forward(self, inputs: ModelInputs, **options: Any) -> Outputs:  # noqa: ANN401
        """Run the models on a micro-batch."""
        outputs: Outputs = self.models(inputs, **options)
        return outputs

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        """Add the gradient of ``loss`` to the unit's."""
        self.sums.add(loss)

    def end_unit(self) -> None:
        """Add the unit's gradient to the step's."""
        self.sums.end_unit()

    def clear(self) -> None:
        """Forget what the step has gathered."""
        self.sums.clear()
        self._whole = {}
        super().clear()

    def _norms(self) -> dict[str, float]:
        """Norm of each model's whole gradient, which goes to DeepSpeed from here."""
        self._whole = self.sums.take()
        norms = {
            model: exact_norm(g for n, g in self._whole.items() if self.model_of[n] == model)
            for model in self.settings
        }
        self._hand_over()
        return norms

    def step(self, fraction: Fraction, moving: Collection[str] | None = None) -> StepResult:
        """Clip, update at ``fraction`` of every model's peak rate, and clear the gradients."""
        result = super().step(fraction, moving)
        self.clear()
        return result

    def _hand_over(self) -> None:
        """Give DeepSpeed this rank's shards as what it has reduced."""
        flats = self._flats()
        gradients = {id(flat): torch.zeros_like(flat) for flat in flats}
        for name, part in self._slices():
            if name in self._whole:
                whole = self._whole[name].flatten()[part.start : part.start + part.count]
                gradients[id(part.flat)].narrow(0, part.offset, part.count).copy_(whole)
        self.zero.averaged_gradients = {i: [gradients[id(f)]] for i, f in enumerate(flats)}
        self.engine.set_gradient_accumulation_boundary(True)

    def _gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._whole.items()
