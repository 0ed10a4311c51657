"""The engine protocol: prompts in as token ids, samples out as token ids.

An engine knows nothing of problems, rewards or steps. It gets one request per prompt with a seed
per sample, and gives back that many samples per request, in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlvr.policy import Policy
from rlvr.rollout.sampling import Sampling
from rlvr.types import FinishReason


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, to be completed once per seed."""

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of a request; log-probabilities in nats at the sampling temperature."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


Progress = Callable[[int, int], None]
"""Called with (completions finished, completions asked for) while an engine works."""


class Engine(Protocol):
    """What the rollout worker needs of an engine."""

    @property
    def policy_version(self) -> int:
        """Number of learner updates that the engine's weights have seen."""
        ...

    def sync(self, policy: Policy, version: int) -> dict[str, float]:
        """Take the policy's weights, which are those after ``version`` updates; metrics of it.

        Needed once before the first :meth:`generate` and after every update.
        """
        ...

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Sample]]:
        """Complete every request; the outer list follows ``requests``, the inner their seeds."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
