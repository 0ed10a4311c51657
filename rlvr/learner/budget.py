"""The token budget of micro-batches, halved once where memory runs out.

A step that runs out of memory is begun again with half the budget, by all ranks together; the step
is the same however it is split. The second time is an error: a run that limps along with ever
smaller micro-batches would only hide what its settings cost.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

from rlvr.learner.parameter_store import ParameterStore
from rlvr.ranks import Ranks

_Result = TypeVar("_Result")


class Budget:
    """Tokens of a micro-batch.

    Args:
        tokens: What the settings allow.
        store: Forgets the gradient of a step that is begun again, if it can.
        ranks: The processes; all begin again where one has to.
    """

    def __init__(self, tokens: int, store: ParameterStore, ranks: Ranks) -> None:
        self.tokens, self.store, self.ranks = tokens, store, ranks
        self.retries = 0
        """1 once memory has run out."""

    def retry_on_oom(self, work: Callable[[], _Result]) -> _Result:
        """Do the work, once more with half the tokens where memory runs out; collective.

        Args:
            work: Runs this rank's micro-batches of a step, split by ``tokens`` as it then is. It
                leaves nothing behind but gradients, and waits for no other rank where the store
                can begin again.

        Raises:
            ValueError: Memory runs out all the same.
        """
        while True:
            results, fault = self._try(work)
            if not float(self.ranks.maximum(torch.tensor(float(fault is not None)))):
                return results[0]
            self.store.clear()
            if self.retries or self.tokens == 1:
                raise ValueError(
                    f"out of memory with micro-batches of {self.tokens} tokens; lower "
                    "learner.tokens_per_micro_batch, or set model.gradient_checkpointing"
                ) from fault
            self.retries, self.tokens = 1, self.tokens // 2

    def _try(self, work: Callable[[], _Result]) -> tuple[list[_Result], BaseException | None]:
        """What the work gives, in a list, or how memory ran out."""
        try:
            return [work()], None
        except RuntimeError as error:
            if not (is_out_of_memory(error) and self.store.retries):
                raise
            # Its traceback holds the frames of the failed pass, and with them the activations.
            return [], error.with_traceback(None)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
