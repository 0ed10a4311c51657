"""The weights that the learner published last: a folder, and the proof for engines that load it."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import Any

import torch

from rlvr.policy.merging import weight_shapes
from rlvr.policy.model import Policy
from rlvr.policy.settings import Precision
from rlvr.rollout.arrival import arrival_fault, listed, noted
from rlvr.rollout.weight_sync import (
    Difference,
    StaleWeightsError,
    WeightFolder,
    default_tolerance,
    learner_logprobs,
    measure_difference,
    proof_sequence,
    prove,
    sent_tensors,
)

_BASE = "the base without its adapters"
_FIRST = "the weights that it began with"
_BEFORE = "the version before"

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What weights are rounded to on their way to engines of a precision."""


def proof_of(policy: Policy, limit: int | None) -> list[int]:
    """The sequence that proves the policy's weights in engines that accept ``limit`` tokens."""
    limits = [n for n in (limit, policy.context_length) if n]
    most = min(limits, default=None)
    vocab_size = policy.causal_lm.config.get_text_config().vocab_size
    return proof_sequence(vocab_size, most and most - 1)


def check_cache(version: int, cached: int) -> None:
    """See that an engine's prefix cache was dropped with the weights that filled it.

    Raises:
        StaleWeightsError: It was not.
    """
    if cached:
        raise StaleWeightsError(
            f"after the sync of version {version} the engine's prefix cache still holds the "
            f"version before ({cached} left), and would begin completions from it; install the "
            "version of vLLM that this project pins, or use rollout.engine.name=transformers"
        )


class WeightStore:
    """The newest weights of a policy, for engines that read them from a folder.

    Args:
        policy: The learner's policy.
        precision: Precision of the engines.
        place: Where to create the folder; None is shared memory if the weights fit.
        tolerance: Largest mean |difference| in nats; None is the default of ``precision``.
        limit: Longest sequence in tokens that engines and model accept, if there is a limit.

    Attributes:
        lock: Held while the learner writes the weights or an engine reads them.
        serial: Number of writes, because a version may be published twice with different weights.
        sequence: Token ids whose log-probabilities are the proof.
        through_folder: Whether the newest weights were written to the folder.
        engine_arguments: Keyword arguments of ``vllm.LLM`` that these weights need.
    """

    def __init__(
        self,
        policy: Policy,
        precision: Precision,
        place: Path | None,
        tolerance: float | None,
        limit: int | None,
    ) -> None:
        self.precision = precision
        self.tolerance = tolerance or default_tolerance(precision, policy.device.type)
        self.sequence = proof_of(policy, limit)
        self.lock = threading.RLock()
        self.serial = 0
        self.dtype = DTYPES[precision]
        self.engine_arguments: dict[str, Any] = {}
        self._place = place
        self._policy = policy
        self._others: dict[str, list[float]] = {}
        self._version: int | None = None
        self.through_folder = False
        self._folder: WeightFolder | None = None
        self._expected: list[float] = []
        self._sent: dict[str, str] = {}
        self._sent_before: dict[str, str] = {}

    @property
    def folder(self) -> WeightFolder:
        """The folder with complete weights."""
        assert self._folder is not None, "an engine has no weights before its first sync"
        assert self._folder.version is not None, "the weights were not written completely"
        return self._folder

    @property
    def version(self) -> int:
        """The version under which the learner published the weights."""
        assert self._version is not None, "an engine has no weights before its first sync"
        return self._version

    @property
    def adapter_number(self) -> int:
        """Number of the adapter that an engine must name in its answers; 0 is none."""
        return 0

    def write(self, policy: Policy, version: int, *, files: bool = True) -> None:
        """Replace the weights with the policy's.

        If ``files`` is false, only the data of the proof is renewed, because the weights are sent
        another way; the folder then keeps the first weights, from which engines start.
        """
        with self.lock:
            folder = self._folder
            if folder is None:
                folder, files = self._make_folder(policy), True
            self.through_folder = files
            self._sent_before = self._sent
            if files:
                self._sent = folder.write(policy, version, self.dtype)
            else:
                self._sent = {name: noted(t) for name, t in sent_tensors(policy, self.dtype)}
            self._expected = learner_logprobs(policy, self.sequence)
            self._know_base(policy)
            self._version = version
            self.serial += 1

    def _know_base(self, policy: Policy) -> None:
        """Note once what the base answers without its adapters; it does not change.

        Not where weights are sharded: other processes would have to take part.
        """
        sharded = policy.gathered is not nullcontext
        if policy.has_adapters and not sharded and _BASE not in self._others:
            with policy.reference():
                self._others[_BASE] = learner_logprobs(policy, self.sequence)

    def _make_folder(self, policy: Policy) -> WeightFolder:
        shapes = weight_shapes(policy, self.dtype)
        size = sum(prod(shape) * dtype.itemsize for _, dtype, shape in shapes)
        self._folder = WeightFolder(size, self._place)
        return self._folder

    def metrics(self) -> dict[str, float]:
        """What is to be logged of the newest weights."""
        return {}

    def check(
        self,
        logprobs: list[float],
        repair: Callable[[], str | None] = lambda: None,
        cached: int = 0,
    ) -> Difference:
        """Compare an engine's log-probabilities of :attr:`sequence` with the learner's.

        Args:
            logprobs: The engine's.
            repair: Called after a failure; says what was wrong if it could be put right.
            cached: Blocks or tokens of the old version that are left in its prefix cache.

        Raises:
            StaleWeightsError: They differ too much, and the message says what is most likely; or
                the cache was not dropped.
        """
        difference = measure_difference(logprobs, self._expected)
        try:
            prove(difference, self.version, self.precision, self.tolerance)
        except StaleWeightsError as error:
            why = repair() or self.diagnosis(logprobs)
            raise StaleWeightsError(f"{error}. Most likely {why}") from None
        check_cache(self.version, cached)
        if _FIRST not in self._others:
            self._others[_FIRST] = self._expected
        self._others[_BEFORE] = self._expected
        return difference

    def check_arrival(
        self, noted_by_workers: Sequence[Mapping[str, Any]], score: Callable[[], list[float]]
    ) -> None:
        """See that an engine was given the tensors that the learner sent.

        Args:
            noted_by_workers: What each worker has noted (``WeightRepair.noted_weights``).
            score: The engine's log-probabilities of :attr:`sequence`; called after a failure.

        Raises:
            StaleWeightsError: It was not; the message names the tensor.
        """
        for answer in noted_by_workers:
            fault = arrival_fault(self._sent, answer["tensors"], self._sent_before)
            if fault is None and answer["missed"]:
                fault = f"its model did not take {listed(answer['missed'])}"
            if fault is not None:
                raise self._not_arrived(fault, score())

    def _not_arrived(self, fault: str, logprobs: list[float]) -> StaleWeightsError:
        from rlvr.rollout.sync_diagnosis import answers_as

        why = (self.through_folder and self._folder_fault()) or fault
        whose = answers_as(logprobs, self._expected, self._others)
        return StaleWeightsError(
            f"after the sync of version {self.version} the engine does not have the learner's "
            f"weights: {why}{f'; {whose}' if whose else ''}; continue the run from its newest "
            "checkpoint, or use rollout.engine.name=transformers"
        )

    def agrees(self, logprobs: list[float]) -> bool:
        """Whether an engine's log-probabilities are the learner's."""
        return measure_difference(logprobs, self._expected).mean <= self.tolerance

    def diagnosis(self, logprobs: list[float]) -> str:
        """What most likely went wrong where a proof has failed (:mod:`.sync_diagnosis`).

        Args:
            logprobs: The engine's, of :attr:`sequence`.
        """
        from rlvr.rollout import sync_diagnosis as look  # only a failure needs it

        model = self.folder.model
        fault = self._folder_fault() if self.through_folder else None
        if fault is not None:
            return fault
        return (
            look.answers_as(logprobs, self._expected, self._others)
            or look.rounding_fault(logprobs, self._expected, model, self.sequence, self.dtype)
            or "it runs another model, or only some of the weights that it was sent: it answers "
            "as no policy that this run knows"
        )

    def _folder_fault(self) -> str | None:
        from rlvr.rollout.sync_diagnosis import folder_fault

        fault = folder_fault(self._policy, self.folder.model, self.dtype)
        return fault and f"the weights were not sent whole: {fault}"

    def close(self) -> None:
        """Remove the folder; a second call does nothing."""
        if self._folder is not None:
            self._folder.remove()
            self._folder = None
