"""The learner's weights on their way to an engine in another process, and the proof of arrival.

The weights travel as a Hugging Face folder in shared memory (a temporary folder where that has no
room): the policy is written there, adapters merged, and the engine reads it back. The folder
always holds the newest weights, so an engine that has to be started anew starts with them.

Writing and reading are not proof. vLLM on a CPU, for one, keeps a packed copy of a tied output head
that a reload does not refresh: it then samples from a mixture of two policies and nothing
complains. So after every sync the engine's log-probabilities of a fixed sequence are held against
the learner's own, and a difference that rounding cannot explain stops the run.

A folder belongs to the process that made it, which holds a lock on it for as long as it lives. A
process that dies leaves an unlocked folder behind, unless its engine removes it first; the next one
that is made sweeps such folders away.

Weights are gathered, merged and written a bucket at a time, so that sharded weights are never whole
all at once.
"""

import copy
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from rlvr.policy import Policy, Precision, padded_inputs

PREFIX = "rlvr-weights-"
SHARED_MEMORY = Path("/dev/shm")
_LOCK = "lock"
# A folder younger than this may be about to be locked by its maker.
_SETTLED_S = 60.0

# Largest mean |difference| in nats that rounding explains (docs/rollout.md has the measurements).
TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.25}

_PROOF_TOKENS = 64

# Of weights that are whole at once on their way.
BUCKET_BYTES = 2**30


class StaleWeightsError(ValueError):
    """The engine does not compute with the weights that it was given."""


def whole_elements(tensor: torch.Tensor) -> int:
    """Elements of the whole weight; a sharded one is empty and says how many it stands for."""
    return int(getattr(tensor, "ds_numel", tensor.numel()))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A weight of the model as it stands there, and the adapter that is to be added to it."""

    name: str
    tensor: torch.Tensor
    adapter: Any = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that has to be whole before the merged weight can be computed."""
        found = [self.tensor] if isinstance(self.tensor, nn.Parameter) else []
        if self.adapter is not None:
            found += [p for name, p in self.adapter.named_parameters() if "lora_" in name]
        return found

    def merged(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight that is computed with; the adapter is added in the weight's own precision."""
        value = self.tensor.detach()
        if self.adapter is not None:
            value = value + self.adapter.get_delta_weight(self.adapter.active_adapters[0])
        return (value.to(dtype) if value.is_floating_point() else value).contiguous()


def merged_buckets(
    policy: Policy, dtype: torch.dtype, most: int = BUCKET_BYTES
) -> Iterator[dict[str, torch.Tensor]]:
    """The policy's weights by the names of its architecture, in ``dtype``, a bucket at a time.

    Adapters are merged in the precision of the base weights and rounded once; the policy itself is
    not touched. Tensors that are tied appear once. Sharded weights are whole only while their
    bucket is the current one, and every process has to go through the buckets in step; copy what
    has to last longer, for a tensor may be the policy's own.

    Args:
        policy: The learner's policy.
        dtype: Of the floating-point tensors.
        most: Bytes of a bucket in ``dtype``; a single larger weight is a bucket of its own.
    """
    bucket: list[_Entry] = []
    size = 0
    for entry in _entries(policy):
        more = whole_elements(entry.tensor) * dtype.itemsize
        if bucket and size + more > most:
            yield from _realised(policy, bucket, dtype)
            bucket, size = [], 0
        bucket.append(entry)
        size += more
    yield from _realised(policy, bucket, dtype)


def merged_weights(
    policy: Policy, dtype: torch.dtype, most: int = BUCKET_BYTES
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of :func:`merged_buckets` one by one; the same holds for how long they last."""
    for bucket in merged_buckets(policy, dtype, most):
        yield from bucket.items()


def weight_shapes(
    policy: Policy, dtype: torch.dtype
) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, dtype and whole shape of what :func:`merged_weights` gives, without gathering."""
    return [
        (
            entry.name,
            dtype if entry.tensor.is_floating_point() else entry.tensor.dtype,
            tuple(getattr(entry.tensor, "ds_shape", entry.tensor.shape)),
        )
        for entry in _entries(policy)
    ]


def _realised(
    policy: Policy, bucket: list[_Entry], dtype: torch.dtype
) -> Iterator[dict[str, torch.Tensor]]:
    parameters = [parameter for entry in bucket for parameter in entry.parameters]
    with policy.gathered(parameters):
        with torch.no_grad():
            merged = {entry.name: entry.merged(dtype) for entry in bucket}
        yield merged


def _entries(policy: Policy) -> Iterator[_Entry]:
    """Every weight once, without the adapters' own, each beside the adapter that changes it."""
    causal_lm = policy.causal_lm
    adapters = {
        f"{name}.base_layer.weight": module
        for name, module in causal_lm.named_modules()
        if hasattr(module, "get_delta_weight") and module.active_adapters
    }
    seen: set[int] = set()
    for name, tensor in causal_lm.state_dict(keep_vars=True).items():
        # By identity, not by address: sharded parameters all have the same, empty, memory.
        if ".lora_" in name or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        yield _Entry(name.replace(".base_layer.", "."), tensor, adapters.pop(name, None))
    assert not adapters, f"adapters without a base weight: {sorted(adapters)}"


class WeightFolder:
    """A folder that holds the newest weights for as long as this process lives.

    Args:
        place: Where to make it; None takes shared memory where ``size`` bytes fit in with room to
            spare, else the folder for temporary files.
        size: Bytes of the weights.
    """

    def __init__(self, size: int, place: Path | None = None) -> None:
        parent = place or _roomy(size)
        sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self.version: int | None = None
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    @property
    def model(self) -> Path:
        """The Hugging Face folder, once it is written."""
        return self.path / "model"

    def write(self, policy: Policy, version: int, dtype: torch.dtype) -> None:
        """Replace the weights; the engine must not be reading."""
        self.version = None
        shutil.rmtree(self.model, ignore_errors=True)
        write_model(policy, self.model, dtype)
        self.version = version

    def remove(self) -> None:
        """Delete the folder and give up the lock; a second call does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def write_model(policy: Policy, folder: Path, dtype: torch.dtype, most: int = BUCKET_BYTES) -> None:
    """Write the merged policy as a Hugging Face folder, one file for each bucket of ``most`` bytes.

    No more than a bucket is held beside the policy. The names are those of the published
    checkpoints, which transformers may have changed on loading.
    """
    causal_lm = policy.causal_lm
    folder.mkdir(parents=True, exist_ok=True)
    files: list[str] = []
    where: dict[str, str] = {}
    for bucket in merged_buckets(policy, dtype, most):
        files.append(f"model-{len(files) + 1:05d}.safetensors")
        tensors = revert_weight_conversion(causal_lm, bucket)
        save_file(tensors, folder / files[-1], metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, files[-1])
    if len(files) == 1:
        (folder / files[0]).rename(folder / "model.safetensors")
    else:
        index = {"metadata": {}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = copy.deepcopy(causal_lm.config)
    config.dtype = str(dtype).removeprefix("torch.")
    config.architectures = [type(causal_lm).__name__]
    config.save_pretrained(folder)
    causal_lm.generation_config.save_pretrained(folder)


def _roomy(size: int) -> Path:
    """Shared memory if a file of ``size`` bytes leaves it half of its free room, else disk."""
    usable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    if usable and shutil.disk_usage(SHARED_MEMORY).free > 2 * size:
        return SHARED_MEMORY
    return Path(tempfile.gettempdir())


def sweep(parent: Path) -> list[Path]:
    """Remove this user's weight folders whose owners are gone; returns them."""
    removed = []
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            status = folder.stat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _SETTLED_S:
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(lock)
    return removed


@dataclass(frozen=True, slots=True)
class Difference:
    """Engine against learner on the proof sequence, in nats: mean and largest |difference|."""

    mean: float
    largest: float
    engine: float
    learner: float


def proof_sequence(vocabulary: int, limit: int | None) -> list[int]:
    """A fixed sequence of token ids that touches rows all over the embedding.

    Args:
        vocabulary: Number of token ids.
        limit: Longest sequence that engine and model take, if there is a limit.
    """
    length = min(_PROOF_TOKENS, limit or _PROOF_TOKENS)
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(vocabulary, (length,), generator=generator).tolist()
    return ids


def learner_logprobs(policy: Policy, sequence: list[int]) -> list[float]:
    """The policy's log-probabilities of ``sequence[1:]`` at temperature 1, adapters on."""
    inputs = padded_inputs([sequence[:1]], [sequence[1:]], (0,)).to(policy.device)
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            values: list[float] = policy(inputs).logprobs_N.double().tolist()
    finally:
        policy.train(training)
    return values


def compare(engine: list[float], learner: list[float]) -> Difference:
    """How far two lists of log-probabilities of the same tokens are apart."""
    pair = torch.tensor([engine, learner], dtype=torch.float64)
    apart = (pair[0] - pair[1]).abs()
    means: Any = pair.mean(-1).tolist()
    return Difference(float(apart.mean()), float(apart.max()), *means)


def prove(difference: Difference, version: int, precision: Precision, tolerance: float) -> None:
    """See that the engine computes with the learner's weights.

    Raises:
        StaleWeightsError: The mean difference is above ``tolerance``, or not a number.
    """
    if difference.mean <= tolerance:
        return
    raise StaleWeightsError(
        f"after the sync of version {version} the engine does not compute with the learner's "
        f"weights: the mean log-probability of a fixed sequence is {difference.engine:.5f} in the "
        f"engine and {difference.learner:.5f} in the learner, |difference| {difference.mean:.3g} "
        f"on average and {difference.largest:.3g} at most, above the {tolerance:g} that "
        f"{precision} explains; a server needs the recipe's model and --dtype {precision}; else "
        "use rollout.engine.name=transformers, or raise rollout.engine.sync_tolerance if the "
        "kernels are known to differ so much"
    )
