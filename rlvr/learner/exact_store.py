"""A parameter store whose gradient is the same bits however a step is split and shared out."""

from collections.abc import Mapping

import torch

from rlvr.learner.exact import GradientSum, exact_norm
from rlvr.learner.models import Models
from rlvr.learner.parameter_store import DataParallelStore
from rlvr.learner.settings import OptimizerSettings
from rlvr.ranks import Ranks


class ExactStore(DataParallelStore):
    """One process or several that hold everything; units of gradient are added up exactly.

    Args:
        models: As :class:`DataParallelStore`.
        settings: Rates and clipping by model.
        ranks: The processes.
        seed: Of the run.
    """

    retries = False  # what runs is one completion, which smaller micro-batches do not help
    rows_in_place = False  # gradients are not taken where such rows would be added

    def __init__(
        self,
        models: Models,
        settings: Mapping[str, OptimizerSettings],
        ranks: Ranks,
        seed: int = 0,
    ) -> None:
        super().__init__(models, settings, ranks, seed)
        self.sums = GradientSum(self.named, ranks)
        self.optimizer.evenly = True

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        """Add the gradient of ``loss`` to the unit's."""
        self.sums.add(loss)

    def end_unit(self) -> None:
        """Add the unit's gradient to the step's."""
        self.sums.end_unit()

    def clear(self) -> None:
        """Forget what the step has gathered."""
        self.sums.clear()
        super().clear()

    def _sum_gradients(self) -> None:
        for name, gradient in self.sums.take().items():
            parameter = self.named[name]
            parameter.grad = gradient.to(parameter.dtype)

    def _norms(self) -> dict[str, float]:
        return {model: exact_norm(iter(own)) for model, own in self._gradients().items()}
