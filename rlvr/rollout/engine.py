"""The engine protocol: prompts in as token ids, samples out as token ids.

An engine knows nothing of problems, rewards or steps. It gets one request per prompt with a seed
per sample, and gives back that many samples per request, in order.

New weights reach it in two halves, so that sampling and learning may overlap: the learner
*publishes* what it has, at a moment when its weights stand still, and the engine *loads* what was
published last, at a moment when it does not generate.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

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
    """One completion of a request; log-probabilities in nats at the sampling temperature.

    ``experts`` are a mixture's choices [P, M, K] at all positions of prompt and completion but the
    last, from engines that are asked to keep them.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    experts: torch.Tensor | None = None


Progress = Callable[[int, int], None]
"""Called with (completions finished, completions asked for) while an engine works; what it raises
ends the work."""

Finished = Callable[[int, list[Sample]], None]
"""Called with (request index, its samples) as soon as a request is complete."""


class Assembly:
    """Samples as they come, put back into the order of their requests.

    Args:
        requests: What was asked for.
        progress: Told about every sample.
        finished: Told about every request that is complete.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> None:
        self.slots: list[tuple[int, int]] = [
            (r, s) for r, request in enumerate(requests) for s in range(len(request.seeds))
        ]
        self._outputs: list[list[Sample | None]] = [[None] * len(r.seeds) for r in requests]
        self._left = [len(request.seeds) for request in requests]
        self._progress, self._finished = progress, finished

    def __len__(self) -> int:
        return len(self.slots) - sum(self._left)

    def add(self, request: int, sample: int, output: Sample) -> None:
        """Put one sample in its place; each place is filled once."""
        assert self._outputs[request][sample] is None, "a sample came twice"
        self._outputs[request][sample] = output
        self._left[request] -= 1
        self.tick()
        if self._finished is not None and not self._left[request]:
            self._finished(request, self.samples(request))

    def tick(self) -> None:
        """Tell ``progress`` how far things are."""
        if self._progress is not None:
            self._progress(len(self), len(self.slots))

    def missing(self) -> Iterator[tuple[int, int, int]]:
        """(position in ``slots``, request, sample) of what has not come yet."""
        for position, (request, sample) in enumerate(self.slots):
            if self._outputs[request][sample] is None:
                yield position, request, sample

    def samples(self, request: int) -> list[Sample]:
        """The samples of one request that are there."""
        return [output for output in self._outputs[request] if output is not None]

    @property
    def outputs(self) -> list[list[Sample]]:
        """All samples, the outer list by request."""
        assert not any(self._left), "not every sample has come"
        return [self.samples(request) for request in range(len(self._outputs))]


class Engine(Protocol):
    """What the rollout worker needs of an engine."""

    overlaps: bool
    """Whether it holds weights of its own, so that it may generate while the learner updates."""

    @property
    def policy_version(self) -> int:
        """Version of the weights that the engine generates with."""
        ...

    def publish(self, policy: Policy, version: int) -> dict[str, float]:
        """Take note of the policy's weights, called ``version``; metrics of it.

        Called by the learner's thread, possibly while another one generates. The version counts
        finished steps.
        """
        ...

    def load(self) -> dict[str, float]:
        """Generate with the weights published last from now on; metrics of it.

        Never called during :meth:`generate`.
        """
        ...

    def sync(self, policy: Policy, version: int) -> dict[str, float]:
        """Publish and load. Needed once before the first :meth:`generate`."""
        return self.publish(policy, version) | self.load()

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Sample]]:
        """Complete every request; the outer list follows ``requests``, the inner their seeds."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
