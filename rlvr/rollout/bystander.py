"""An engine for a process whose share another one samples."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from rlvr.policy import Policy
from rlvr.rollout.engine import Engine, Finished, Progress, Request, Sample
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.weights import learner_logprobs, merged_buckets, proof_sequence


class Bystander(Engine):
    """Samples nothing; helps to gather sharded weights when they are published.

    Engines behind an address are spoken to by the first process alone. Where the policy is sharded
    it cannot write the weights, nor prove them, unless the others take part.
    """

    overlaps = True

    def __init__(self) -> None:
        self._version = 0

    @property
    def policy_version(self) -> int:
        """See the protocol."""
        return self._version

    def publish(self, policy: Policy, version: int) -> dict[str, float]:
        """Do what the other process does, for the gathering that is in it."""
        if policy.gathered is not nullcontext:
            for _ in merged_buckets(policy, torch.float32):
                pass
            vocabulary = policy.causal_lm.config.get_text_config().vocab_size
            learner_logprobs(policy, proof_sequence(vocabulary, policy.context_length))
        self._version = version
        return {}

    def load(self) -> dict[str, float]:
        """See the protocol."""
        return {}

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Sample]]:
        """Nothing is asked for."""
        assert not requests, "another process samples"
        return []

    def close(self) -> None:
        """See the protocol."""
