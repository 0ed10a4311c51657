"""The null engine of follower ranks, whose completions another process samples."""

from collections.abc import Sequence
from contextlib import nullcontext

from rlvr.policy.merging import merged_buckets
from rlvr.policy.model import Policy
from rlvr.rollout.engine import Engine, Finished, Progress, Request, Sample
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.weight_store import DTYPES, proof_of
from rlvr.rollout.weight_sync import learner_logprobs


class NullEngine(Engine):
    """Samples nothing, but helps to gather sharded weights when they are published.

    Only the first process talks to servers. If the policy is sharded, that process can neither
    write nor prove the weights unless the others take part, in the same collectives: buckets are
    cut by the servers' precision, and the proof runs as many tokens.

    Args:
        policy: The learner's policy.
        longest: Longest sequence in tokens that will be requested; None is the model's context.
    """

    overlaps = True

    def __init__(self, policy: Policy, longest: int | None = None) -> None:
        self._version = 0
        self._dtype = DTYPES[policy.precision]
        self._sequence = proof_of(policy, longest)

    @property
    def policy_version(self) -> int:
        """See the protocol."""
        return self._version

    def publish(self, policy: Policy, version: int) -> dict[str, float]:
        """Take part in the gathering of weights that the first process starts."""
        if policy.gathered is not nullcontext:
            for _ in merged_buckets(policy, self._dtype):
                pass
            learner_logprobs(policy, self._sequence)
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
