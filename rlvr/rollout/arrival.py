"""Did every tensor reach the engine's loader, bit for bit? Both sides name their checksums.

The log-probabilities of a fixed sequence cannot show a fault that moves them by less than rounding
does, such as one tensor of a large model that misses a small update. So the learner notes a
checksum of each tensor that it sends (:func:`rlvr.policy.fingerprint.checksum`), and the engine's
worker one of each tensor that vLLM's ``load_weights`` is given, where all routes end: a folder,
CUDA IPC, and NCCL. The names are those of published checkpoints. Both are taken of whole tensors,
because vLLM then fuses some, splits them over its GPUs, pads the vocabulary, and on a CPU keeps
packed copies alone. What it makes of them is left to the log-probabilities, except for parameters
that ``load_weights`` did not fill at all.

A process that starts from the folder holds no older weights, and vLLM itself refuses a folder that
leaves a parameter without numbers; so only what arrives later is noted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rlvr.policy.fingerprint import checksum

_MOST_NAMES = 3

Tensors = Iterable[tuple[str, torch.Tensor]]


def noted(tensor: torch.Tensor) -> str:
    """Dtype, shape and checksum of a tensor, as both sides of a sync note them."""
    shape = "x".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape} {checksum(tensor):016x}"


@dataclass(slots=True)
class Arrivals:
    """What the loader of an engine's model is given after :meth:`begin`.

    Args:
        parameters: Names of the model's parameters that a loader has to fill, at this moment.

    Attributes:
        tensors: What was noted of each tensor, by the name that it was sent under.
    """

    parameters: Callable[[], set[str]]
    tensors: dict[str, str] = field(default_factory=dict)
    _wanted: set[str] | None = None
    _filled: set[str] | None = field(default_factory=set)

    def begin(self) -> None:
        """Forget what was noted."""
        self.tensors, self._wanted, self._filled = {}, None, set()

    def watch(self, load_weights: Callable[[Tensors], Any]) -> Callable[[Tensors], Any]:
        """The model's ``load_weights``, noting what it is given."""

        def watched(weights: Tensors) -> Any:  # noqa: ANN401
            if self._wanted is None:
                self._wanted = self.parameters()
            filled = load_weights(self._noting(weights))
            known = filled is not None and self._filled is not None
            self._filled = {*self._filled, *filled} if known else None  # type: ignore[misc]
            return filled

        return watched

    def _noting(self, weights: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self.tensors[name] = noted(tensor)
            yield name, tensor

    def missed(self, parameters: set[str]) -> list[str]:
        """Those of ``parameters`` that had to be filled and were not, as far as the model tells."""
        if self._wanted is None or self._filled is None:
            return []
        return sorted((self._wanted & parameters) - self._filled)


def arrival_fault(
    sent: Mapping[str, str], arrived: Mapping[str, str], before: Mapping[str, str] | None = None
) -> str | None:
    """What is wrong with the tensors that a loader was given; None is nothing.

    Args:
        sent: What the learner noted of each tensor (:func:`noted`), by name.
        arrived: What the engine's worker did.
        before: What the learner had noted of the version before.
    """
    wrong = [name for name in sent if arrived.get(name) != sent[name]]
    if not wrong:
        extra = sorted(set(arrived) - set(sent))
        return f"{listed(extra)} arrived, which nobody sent" if extra else None
    lost = [name for name in wrong if name not in arrived]
    if lost:
        return f"{listed(lost)} did not arrive"
    for part, what in ((0, "dtype"), (1, "shape")):
        other = [name for name in wrong if _part(arrived[name], part) != _part(sent[name], part)]
        if other:
            found = _part(arrived[other[0]], part)
            return f"{listed(other)} arrived with {what} {found}"
    stale = [name for name in wrong if before is not None and arrived[name] == before.get(name)]
    if stale:
        return f"{listed(stale)} arrived as in the version before"
    for name in wrong:
        source = next((other for other in sent if sent[other] == arrived[name]), None)
        if source is not None:
            return f"{name} holds the values of {source}"
    return f"{listed(wrong)} arrived with other values"


def _part(text: str, place: int) -> str:
    return text.split(" ")[place]


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many there are besides."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
