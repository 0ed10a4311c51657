"""Send the learner's weights to an engine in another process, and prove that they arrived.

The weights are sent as a Hugging Face folder in shared memory (or in a temporary folder if there is
no room): the policy is written there with its adapters merged, and the engine reads it. The folder
always holds the newest weights, so a restarted engine starts with them.

Writing and reading prove nothing. For example, vLLM on a CPU keeps a packed copy of a tied output
head that a reload does not refresh: it then silently samples from a mixture of two policies. So
after every sync the engine's log-probabilities of a fixed sequence are compared with the learner's,
and a difference that rounding cannot explain stops the run.

A folder belongs to the process that created it, which holds a lock on it while it lives. A process
that dies leaves an unlocked folder behind, unless its engine removes it first; such folders are
deleted when the next one is created.

Weights are gathered, merged and written one bucket at a time (:mod:`rlvr.policy.merging`), so that
sharded weights are never all in memory at once.
"""

import copy
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from rlvr.files import replacing_folder
from rlvr.policy.batching import padded_inputs
from rlvr.policy.finite import check_writable, first_bad
from rlvr.policy.loading import end_token_ids, text_end_ids
from rlvr.policy.merging import BUCKET_BYTES, merged_buckets
from rlvr.policy.model import Policy
from rlvr.policy.settings import Precision
from rlvr.ranks import Ranks
from rlvr.rollout.arrival import noted
from rlvr.rollout.settings import SHARED_MEMORY, WEIGHTS_PREFIX

_LOCK = "lock"
# Seconds. A younger folder may not have been locked yet by its creator.
_SETTLED_S = 60.0

# Largest mean |difference| in nats that rounding explains (docs/rollout.md has the measurements).
_TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.25}
# vLLM's attention in float32 on a GPU multiplies in TF32, which keeps 10 bits of a fraction.
_TF32_TOLERANCE = 1e-2

_PROOF_TOKENS = 64


class StaleWeightsError(ValueError):
    """The engine does not compute with the weights that it was given."""


class WeightFolder:
    """A folder that holds the newest weights for as long as this process lives.

    Args:
        place: Where to create it; None is shared memory if ``size`` bytes fit with room to spare,
            or else the folder for temporary files.
        size: Size of the weights in bytes.
    """

    def __init__(self, size: int, place: Path | None = None) -> None:
        parent = place or _roomy(size)
        sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=WEIGHTS_PREFIX, dir=parent))
        self.version: int | None = None
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    @property
    def model(self) -> Path:
        """The Hugging Face folder, once written."""
        return self.path / "model"

    def write(
        self, policy: Policy, version: int, dtype: torch.dtype, *, adapters: bool = True
    ) -> dict[str, str]:
        """Replace the weights; the engine must not be reading them.

        If ``adapters`` is false, those of the base model are written.

        Returns:
            What was noted of each tensor (:func:`rlvr.rollout.arrival.noted`), by name.
        """
        self.version = None
        shutil.rmtree(self.model, ignore_errors=True)
        sent: dict[str, str] = {}

        def note(name: str, tensor: torch.Tensor) -> None:
            sent[name] = noted(tensor)

        write_model(policy, self.model, dtype, adapters=adapters, note=note)
        self.version = version
        return sent

    def remove(self) -> None:
        """Delete the folder and release the lock; a second call does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def write_model(
    policy: Policy,
    folder: Path,
    dtype: torch.dtype,
    most: int = BUCKET_BYTES,
    *,
    adapters: bool = True,
    note: Callable[[str, torch.Tensor], None] | None = None,
) -> None:
    """Write the merged policy as a Hugging Face folder, one file per bucket of ``most`` bytes.

    Memory holds at most one bucket besides the policy. The names are those of the published
    checkpoints, which transformers may have changed on loading. If ``adapters`` is false, the base
    model is written instead. ``note`` is called with each name and tensor.

    Raises:
        NonFiniteWeightsError: A weight is not finite, or is not once merged or rounded.
    """
    causal_lm = policy.causal_lm
    folder.mkdir(parents=True, exist_ok=True)
    files: list[str] = []
    where: dict[str, str] = {}
    bad: str | None = None
    for bucket in merged_buckets(policy, dtype, most, adapters=adapters):
        bad = bad or first_bad(bucket.items())
        files.append(f"model-{len(files) + 1:05d}.safetensors")
        tensors = revert_weight_conversion(causal_lm, bucket)
        if note is not None:
            for name, tensor in tensors.items():
                note(name, tensor)
        save_file(tensors, folder / files[-1], metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, files[-1])
    # Only now, as other processes take part in every bucket; without a config it is no model yet.
    check_writable(bad, folder)
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


def sent_tensors(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """The merged weights by the names of published checkpoints; each lasts as its bucket does."""
    for bucket in merged_buckets(policy, dtype):
        yield from revert_weight_conversion(policy.causal_lm, bucket).items()


def export_model(
    policy: Policy,
    tokenizer: Any,  # noqa: ANN401
    target: Path,
    ranks: Ranks,
    also: Callable[[Path], None] = lambda path: None,
) -> None:
    """:func:`write_model` in float32 with its tokenizer, whole or not at all; collective.

    ``also`` writes what else belongs into the folder.
    """
    if not ranks.first:
        for _ in merged_buckets(policy, torch.float32):
            pass  # sharded weights are gathered by all
        return
    with replacing_folder(target) as partial:
        write_model(policy, partial, torch.float32)
        tokenizer.save_pretrained(partial)
        _stop_where_turns_close(policy.causal_lm.generation_config, tokenizer, partial)
        also(partial)


def _stop_where_turns_close(generation: Any, tokenizer: Any, folder: Path) -> None:  # noqa: ANN401
    """Name the chat template's end of a turn, with which responses were learnt, as an end token."""
    ends = text_end_ids(generation, tokenizer)
    if set(ends) > {*end_token_ids(generation, tokenizer)}:
        config = copy.deepcopy(generation)
        config.eos_token_id = list(ends)
        config.save_pretrained(folder)


def _roomy(size: int) -> Path:
    """Shared memory if ``size`` bytes take at most half of its free room, or else a disk folder."""
    usable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    if usable and shutil.disk_usage(SHARED_MEMORY).free > 2 * size:
        return SHARED_MEMORY
    return Path(tempfile.gettempdir())


def sweep(parent: Path) -> list[Path]:
    """Remove this user's weight folders whose owners are gone; return them."""
    removed = []
    for folder in parent.glob(f"{WEIGHTS_PREFIX}*"):
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
            pass  # its owner is alive
        finally:
            os.close(lock)
    return removed


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference between engine and learner on the proof sequence, in nats: mean and largest."""

    mean: float
    largest: float
    engine: float
    learner: float


def default_tolerance(precision: Precision, device: str) -> float:
    """Largest mean |difference| in nats that rounding explains.

    Args:
        precision: Of engine and learner.
        device: Type of the device they run on.
    """
    coarse = precision == "float32" and device == "cuda"
    return _TF32_TOLERANCE if coarse else _TOLERANCE[precision]


def proof_sequence(vocab_size: int, limit: int | None) -> list[int]:
    """A fixed sequence of token ids spread over all rows of the embedding.

    Args:
        vocab_size: Number of token ids.
        limit: Longest sequence in tokens that engine and model accept, if there is a limit.
    """
    length = min(_PROOF_TOKENS, limit or _PROOF_TOKENS)
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(vocab_size, (length,), generator=generator).tolist()
    return ids


def learner_logprobs(policy: Policy, sequence: list[int]) -> list[float]:
    """The policy's log-probabilities of ``sequence[1:]`` at temperature 1, with its adapters."""
    inputs = padded_inputs([sequence[:1]], [sequence[1:]], (0,)).to(policy.device)
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            values: list[float] = policy(inputs).logprobs_N.double().tolist()
    finally:
        policy.train(training)
    return values


def measure_difference(engine: list[float], learner: list[float]) -> Difference:
    """Difference between two lists of log-probabilities of the same tokens."""
    pair = torch.tensor([engine, learner], dtype=torch.float64)
    apart = (pair[0] - pair[1]).abs()
    means: Any = pair.mean(-1).tolist()
    return Difference(float(apart.mean()), float(apart.max()), *means)


def prove(difference: Difference, version: int, precision: Precision, tolerance: float) -> None:
    """Check that the engine computes with the learner's weights.

    Raises:
        StaleWeightsError: The mean difference is above ``tolerance`` or is NaN.
    """
    if difference.mean <= tolerance:
        return
    raise StaleWeightsError(
        f"after the sync of version {version} the engine does not compute with the learner's "
        f"weights: the mean log-probability of a fixed sequence is {difference.engine:.5f} in the "
        f"engine and {difference.learner:.5f} in the learner, |difference| {difference.mean:.3g} "
        f"on average and {difference.largest:.3g} at most, above the {tolerance:g} that "
        f"{precision} explains; a server needs the recipe's model and --dtype {precision}; "
        "otherwise use rollout.engine.name=transformers, or raise rollout.engine.sync_tolerance "
        "if the kernels are known to differ so much"
    )
