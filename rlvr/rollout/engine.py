"""The engine protocol: prompts in as token ids, samples out as token ids.

An engine knows nothing about problems, rewards or steps. It receives one request per prompt, with
one seed per sample, and returns one sample per seed, in order.

New weights reach it in two steps, so that sampling and learning may overlap: the learner
*publishes* its weights while they do not change, and the engine *loads* the weights published last
while it does not generate.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rlvr.policy.model import Policy
from rlvr.rollout.sampling import Sampling
from rlvr.types import FinishReason, Turn


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete once per seed."""

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of a request; log-probabilities in nats at the sampling temperature.

    ``experts`` are the choices [P, M, K] of a mixture of experts at all positions of prompt and
    completion except the last; only engines that are asked to keep them set it. ``turns`` and
    ``reward`` are those of an episode (:mod:`rlvr.rollout.episodes`).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    experts: torch.Tensor | None = None
    turns: tuple[Turn, ...] = ()
    reward: float | None = None


Progress = Callable[[int, int], None]
"""Called with (completions finished, completions requested) while an engine works; an exception
that it raises stops the engine."""

Finished = Callable[[int, list[Sample]], None]
"""Called with (request index, samples of the request) as soon as a request is complete."""


class Assembly:
    """Collects samples as they arrive and puts them in the order of their requests.

    Args:
        requests: The requests.
        progress: Called for every sample.
        finished: Called for every complete request.
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
        """Put one sample in its place; each place may be filled only once."""
        assert self._outputs[request][sample] is None, "a sample arrived twice"
        self._outputs[request][sample] = output
        self._left[request] -= 1
        self.tick()
        if self._finished is not None and not self._left[request]:
            self._finished(request, self.samples(request))

    def tick(self) -> None:
        """Call ``progress`` with the current counts."""
        if self._progress is not None:
            self._progress(len(self), len(self.slots))

    def missing(self) -> Iterator[tuple[int, int, int]]:
        """(position in ``slots``, request, sample) of the samples that have not arrived yet."""
        for position, (request, sample) in enumerate(self.slots):
            if self._outputs[request][sample] is None:
                yield position, request, sample

    def samples(self, request: int) -> list[Sample]:
        """The samples of one request that have arrived."""
        return [output for output in self._outputs[request] if output is not None]

    @property
    def outputs(self) -> list[list[Sample]]:
        """All samples, the outer list by request."""
        assert not any(self._left), "some samples have not arrived"
        return [self.samples(request) for request in range(len(self._outputs))]


class Engine(Protocol):
    """What the rollout needs from an engine."""

    overlaps: bool
    """Whether it holds a separate copy of the weights, so that it may generate while the learner
    updates."""

    @property
    def interleaves(self) -> bool:
        """Whether what is generated together may depend on timing: its bits repeat anyway, or do
        not in any case."""
        return True

    @property
    def policy_version(self) -> int:
        """Version of the weights with which the engine generates."""
        ...

    def publish(self, policy: Policy, version: int) -> dict[str, float]:
        """Publish the policy's weights as ``version``; return metrics.

        The learner's thread calls it, possibly while another thread generates. The version is the
        number of finished steps.
        """
        ...

    def load(self) -> dict[str, float]:
        """From now on generate with the weights published last; return metrics.

        It is never called during :meth:`generate`.
        """
        ...

    def sync(self, policy: Policy, version: int) -> dict[str, float]:
        """Publish and load; required once before the first :meth:`generate`."""
        return self.publish(policy, version) | self.load()

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Sample]]:
        """Complete every request; the outer list follows ``requests``, the inner lists their
        seeds."""
        ...

    def close(self) -> None:
        """Free the engine's resources."""
        ...
