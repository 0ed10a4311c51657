"""The null engine of follower ranks, whose completions another process samples."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from rlvr.policy.merging import merged_buckets
from rlvr.policy.model import Policy
from rlvr.rollout.engine import Engine, Finished, Progress, Request, Sample
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.weight_sync import learner_logprobs, proof_sequence


class NullEngine(Engine):
    """Samples nothing, but helps to gather sharded weights when they are published.

    Only the first process talks to servers. If the policy is sharded, that process can neither
    write nor prove the weights unless the others take part.
    """

    overlaps = True

    def __init__(self) -> None:
        self._version = 0

    @property
    def policy_version(self) -> int:
        """See the protocol."""
        return self._version

    def publish(self, policy: Policy, version: int) -> dict[str, float]:
        """Take part in the gathering of weights that the first process starts."""
        if policy.gathered is not nullcontext:
            for _ in merged_buckets(policy, torch.float32):
                pass
            vocab_size = policy.causal_lm.config.get_text_config().vocab_size
            learner_logprobs(policy, proof_sequence(vocab_size, policy.context_length))
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
        """Accept only an empty list of requests."""
        assert not requests, "another process samples"
        return []

    def close(self) -> None:
        """See the protocol."""
