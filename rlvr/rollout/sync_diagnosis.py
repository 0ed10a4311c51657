"""What most likely went wrong in a sync whose proof failed.

None of it is computed unless a proof has failed. Four kinds of evidence, the surest first:

- what puts it right: packing the weights again, or reading them again (:func:`repaired`);
- the folder of weights, compared with the learner's tensors by name (:func:`folder_fault`);
- policies that the engine may have taken instead: its log-probabilities are nearest to those of
  the version before, of the weights that it began with, or of the base (:func:`answers_as`);
- the size of the difference, which may be that of a coarser dtype (:func:`rounding_fault`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from rlvr.policy.model import Policy
from rlvr.rollout.adapter_proof import distance
from rlvr.rollout.arrival import listed
from rlvr.rollout.weight_sync import sent_tensors

if TYPE_CHECKING:
    from rlvr.rollout.weight_store import WeightStore

# Of the distance to the learner: so much nearer is who answers.
_NEARER = 0.2
# Of the effect of a dtype: a difference within these bounds may be one.
_ALIKE = (0.25, 4.0)


def repaired(call: Callable[..., dict[str, Any]], weights: "WeightStore") -> str | None:
    """What an engine's process does that makes it compute with the weights; None is neither.

    The run ends all the same: what went wrong once would go wrong again, and unseen where it is
    smaller than the tolerance.

    Args:
        call: Sends one request to the process: (method, keyword arguments).
        weights: What it was sent.
    """
    for step, meaning in _REPAIRS:
        if step == "reload" and not weights.through_folder:
            continue
        if step is not None:
            call(step)
        call("settle", repair=True)
        if weights.agrees(call("score", tokens=weights.sequence)["logprobs"]):
            return meaning
    return None


_REPAIRS = (
    (
        None,
        "it computed with a stale copy of its output head or experts, which were not packed "
        "again: now that they are, it agrees",
    ),
    ("reload", "it had read only some of the weights: now that it has read them again, it agrees"),
)


def folder_fault(policy: Policy, model: Path, dtype: torch.dtype) -> str | None:
    """What is wrong with the tensors of a written folder, by name; None is nothing that is sure.

    Where most tensors differ, the learner has moved on since they were written, which says nothing.
    Sharded weights are not compared, as all processes would have to take part.

    Args:
        policy: The learner's policy.
        model: The folder.
        dtype: What the weights were to be rounded to.
    """
    if policy.gathered is not nullcontext or not (model / "config.json").is_file():
        return None
    written, count, wrong = _Written(model), 0, {}
    lost, other_types = [], []
    for name, tensor in _sent(policy, dtype):
        count += 1
        found = written.get(name)
        if found is None or found.shape != tensor.shape:
            lost.append(name)
        elif found.dtype != tensor.dtype:
            other_types.append(name)
        elif not torch.equal(found, tensor):
            wrong[name] = found
    if other_types:
        found_type = str(written.type_of(other_types[0])).removeprefix("torch.")
        return f"{listed(other_types)} was written as {found_type}"
    if lost:
        return f"{listed(lost)} was not written"
    return _values_fault(policy, dtype, wrong) if 0 < len(wrong) <= count / 2 else None


def _sent(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in sent_tensors(policy, dtype):
        yield name, tensor.cpu()


class _Written:
    """The tensors of a folder by name."""

    def __init__(self, model: Path) -> None:
        index = model / "model.safetensors.index.json"
        files = ["model.safetensors"]
        if index.is_file():
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        opened = [safe_open(model / file, "pt") for file in files if (model / file).is_file()]
        self._where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor, or None."""
        return self._where[name].get_tensor(name) if name in self._where else None

    def type_of(self, name: str) -> torch.dtype:
        """Its dtype."""
        tensor: torch.Tensor = self._where[name].get_tensor(name)
        return tensor.dtype


def _values_fault(policy: Policy, dtype: torch.dtype, wrong: Mapping[str, torch.Tensor]) -> str:
    """What the values of tensors that differ from the learner's are."""
    parts = {}
    for name, tensor in _sent(policy, dtype):
        for place, found in wrong.items():
            if place != name and found.shape == tensor.shape and torch.equal(found, tensor):
                return f"{place} holds the values of {name}"
        if name in wrong:
            parts[name] = _rows(tensor, wrong[name])
    part = next((f"{rows} of {name}" for name, rows in parts.items() if rows), None)
    return f"{part} did not arrive" if part else f"{listed([*wrong])} holds other values"


def _rows(sent: torch.Tensor, found: torch.Tensor) -> str | None:
    """The rows in which two matrices differ, if those are only some."""
    if sent.dim() < 2:
        return None
    differ = (sent != found).flatten(1).any(1).nonzero().flatten().tolist()
    if len(differ) == len(sent):
        return None
    return f"rows {differ[0]} to {differ[-1]}"


def answers_as(
    engine: Sequence[float], learner: Sequence[float], others: Mapping[str, Sequence[float]]
) -> str | None:
    """Whose log-probabilities an engine's are, if not the learner's; None is nobody's.

    Args:
        engine: The engine's log-probabilities of a sequence.
        learner: The learner's.
        others: Those of other policies, by what a message calls them.
    """
    own = distance(engine, learner)
    near = {name: distance(engine, logprobs) for name, logprobs in others.items()}
    name = min(near, key=lambda key: near[key], default=None)
    if name is None or not near[name] < _NEARER * own:
        return None
    return f"it answers as {name} ({near[name]:.3g} nats away)"


def rounding_fault(
    engine: Sequence[float],
    learner: Sequence[float],
    model: Path,
    sequence: Sequence[int],
    dtype: torch.dtype,
) -> str | None:
    """Whether another dtype would differ from the learner as much as the engine does."""
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    if not (model / "config.json").is_file():
        return None
    effect = distance(_logprobs(model, sequence, other), learner)
    own = distance(engine, learner)
    if not _ALIKE[0] * effect <= own <= _ALIKE[1] * effect:
        return None
    name = str(other).removeprefix("torch.")
    return f"it may compute in {name}, which differs from the learner by {effect:.3g} nats"


def _logprobs(model: Path, sequence: Sequence[int], dtype: torch.dtype) -> list[float]:
    causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    with torch.no_grad():
        logits = causal_lm(torch.tensor([list(sequence)])).logits[0, :-1].float()
    picked = logits.log_softmax(-1).gather(-1, torch.tensor(list(sequence))[1:, None])
    values: list[float] = picked[:, 0].double().tolist()
    return values
