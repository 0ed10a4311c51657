"""What the learner published last: a folder with the weights, and the proof that goes with them."""

import threading
from pathlib import Path

import torch

from rlvr.policy import Policy, Precision
from rlvr.rollout.weights import (
    TOLERANCE,
    Difference,
    WeightFolder,
    compare,
    learner_logprobs,
    proof_sequence,
    prove,
    whole_elements,
)

_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PublishedWeights:
    """The newest weights of a policy for engines that read them from a folder.

    Args:
        policy: The learner's policy.
        precision: How the engines round.
        place: Where the folder is made; None is shared memory where the weights fit.
        tolerance: Largest mean |difference| in nats; None is that of ``precision``.
        limit: Longest sequence that engines and model take, if there is a limit.

    Attributes:
        lock: Held by whoever writes the weights (the learner) or has them read (an engine).
        serial: Counts the writes: a version may be published twice with other weights.
        sequence: The token ids whose log-probabilities are the proof.
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
        self.tolerance = tolerance or TOLERANCE[precision]
        vocabulary = policy.causal_lm.config.get_text_config().vocab_size
        self.sequence = proof_sequence(vocabulary, limit and limit - 1)
        self.lock = threading.RLock()
        self.serial = 0
        self.dtype = _DTYPES[precision]
        self._place = place
        self._version: int | None = None
        self._folder: WeightFolder | None = None
        self._expected: list[float] = []

    @property
    def folder(self) -> WeightFolder:
        """The folder, with whole weights in it."""
        assert self._folder is not None, "an engine has no weights before its first sync"
        assert self._folder.version is not None, "the weights were not written whole"
        return self._folder

    @property
    def version(self) -> int:
        """What the learner called the weights."""
        assert self._version is not None, "an engine has no weights before its first sync"
        return self._version

    def write(self, policy: Policy, version: int, *, files: bool = True) -> None:
        """Replace the weights by the policy's.

        Without ``files`` only what the proof needs is renewed, for weights that take another way;
        the folder then keeps the first ones, which engines start from.
        """
        with self.lock:
            if self._folder is None:
                size = sum(whole_elements(p) for p in policy.parameters()) * self.dtype.itemsize
                self._folder = WeightFolder(size, self._place)
                files = True
            if files:
                self._folder.write(policy, version, self.dtype)
            self._expected = learner_logprobs(policy, self.sequence)
            self._version = version
            self.serial += 1

    def check(self, logprobs: list[float]) -> Difference:
        """Hold an engine's log-probabilities of :attr:`sequence` against the learner's.

        Raises:
            StaleWeightsError: They are too far apart.
        """
        difference = compare(logprobs, self._expected)
        prove(difference, self.version, self.precision, self.tolerance)
        return difference

    def close(self) -> None:
        """Remove the folder; a second call does nothing."""
        if self._folder is not None:
            self._folder.remove()
            self._folder = None
