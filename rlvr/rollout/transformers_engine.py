"""Generation with the learner's own module: exact, without a second copy of the weights or a sync.

Rows run in batches by prompt length (:mod:`rlvr.rollout.running_batch`).

Not every family is exact that way: recurrent layers carry a state instead of keys, and some cannot
skip padding. A trial when the engine is built (:mod:`rlvr.rollout.engine_trial`) chooses a way of
caching that gives the learner's numbers. With ``learner.exact`` a row also has the same bits in
every batch (:mod:`rlvr.rollout.exact_batch`).

The engine has no continuous batching and no paged memory; use vLLM for those.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch

from rlvr.policy.model import Policy
from rlvr.rollout.engine import Assembly, Engine, Finished, Progress, Request, Sample
from rlvr.rollout.engine_trial import Caching, exact_caching
from rlvr.rollout.exact_batch import (
    BLOCK_ROWS,
    BlockBatch,
    block_width,
    blocks_are_exact,
    one_thread,
)
from rlvr.rollout.running_batch import (
    RoutedBatch,
    RunningBatch,
    UncachedBatch,
    batches,
)
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import TransformersEngineSettings


class TransformersEngine(Engine):
    """An :class:`~rlvr.rollout.engine.Engine` over a policy in this process.

    Args:
        policy: The learner's policy; its current weights are used at every call.
        stop_ids: Token ids that end a completion.
        settings: Batch size.
        caching: How rows are generated; None is what a trial finds to be exact.
        exact: Whether a row has the same bits in every batch.

    Attributes:
        rows: How they are put together: as many as fit (``any``), or so that their bits do not
            depend on it, in ``blocks`` of a fixed number or ``alone``.

    Raises:
        ValueError: No way of generating gives the policy's own numbers.
    """

    overlaps = False

    def __init__(
        self,
        policy: Policy,
        stop_ids: Sequence[int],
        settings: TransformersEngineSettings | None = None,
        caching: Caching | None = None,
        *,
        exact: bool = False,
    ) -> None:
        self.policy = policy
        self.stop_ids = tuple(stop_ids)
        self.settings = settings or TransformersEngineSettings()
        self.caching = caching or exact_caching(policy, self._as_tried)
        self._keeps_experts = False
        self._version = 0
        self.rows: Literal["any", "blocks", "alone"] = "any"
        if exact:
            in_blocks = blocks_are_exact(policy, self.caching, self._in_full_blocks)
            self.rows = "blocks" if in_blocks else "alone"

    def _as_tried(self, stop_ids: Sequence[int], caching: Caching) -> Engine:
        return TransformersEngine(self.policy, stop_ids, self.settings, caching)

    def _in_full_blocks(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> list[list[Sample]]:
        """Generate in blocks, whatever ``max_rows`` leaves of them: places count in the trial."""
        full = TransformersEngineSettings(max_rows=BLOCK_ROWS)
        engine = TransformersEngine(self.policy, self.stop_ids, full, self.caching)
        engine.rows = "blocks"
        return engine.generate(requests, sampling)

    @property
    def keeps_experts(self) -> bool:
        """Whether samples record the experts to which a mixture sent their tokens."""
        return self._keeps_experts

    @keeps_experts.setter
    def keeps_experts(self, keep: bool) -> None:
        if keep and self.caching.kind == "none":
            raise ValueError(
                f"{self.policy.causal_lm.config.model_type} is generated without a cache, which "
                "records no experts; leave replayed routing (router) out of the recipe"
            )
        self._keeps_experts = keep

    @property
    def interleaves(self) -> bool:
        """Whether rows have the same bits in every batch."""
        return self.rows != "any"

    @property
    def note(self) -> str | None:
        """What is to be said of a model that is not generated the usual way."""
        family, caching = self.policy.causal_lm.config.model_type, self.caching
        if caching.kind == "none":
            return (
                f"rollout: no cache gives the learner's numbers for {family}, so every token runs "
                "its whole sequence; rollout.engine.name=vllm is faster where it knows the family"
            )
        if not caching.mixed:
            return f"rollout: {family} cannot skip padding; prompts of one length run together"
        return None

    @property
    def policy_version(self) -> int:
        """Version of the weights published last."""
        return self._version

    def publish(self, policy: Policy, version: int) -> dict[str, float]:
        """Record the version; the weights are the learner's own and are not copied."""
        assert policy is self.policy, "an engine belongs to one policy"
        self._version = version
        return {}

    def load(self) -> dict[str, float]:
        """Do nothing: the weights are the learner's own."""
        return {}

    def close(self) -> None:
        """Free nothing: the weights belong to the learner."""

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Sample]]:
        """See :class:`~rlvr.rollout.engine.Engine`.

        Raises:
            ValueError: A prompt leaves no room for a token in the model's context.
        """
        self._check_context(requests, sampling)
        assembly = Assembly(requests, progress, finished)
        training = self.policy.training
        self.policy.eval()
        try:
            with nullcontext() if self.rows == "any" else one_thread():
                self._run_batches(requests, sampling, assembly)
        finally:
            self.policy.train(training)
        return assembly.outputs

    def _run_batches(
        self, requests: Sequence[Request], sampling: Sampling, assembly: Assembly
    ) -> None:
        kind = self._kind
        for slots in batches(requests, self._rows_of(kind), self._widths(requests, kind)):
            batch = kind(self.policy, self.stop_ids, requests, slots, sampling, self.caching)
            for request, sample, output in batch.run():
                assembly.add(request, sample, output)

    @property
    def _kind(self) -> type[RunningBatch]:
        if self.caching.kind == "none":
            return UncachedBatch
        if self.keeps_experts:
            return RoutedBatch
        return BlockBatch if self.rows == "blocks" else RunningBatch

    def _rows_of(self, kind: type[RunningBatch]) -> int:
        """Most rows of a batch."""
        if self.rows == "any":
            return self.settings.max_rows
        return min(self.settings.max_rows, BLOCK_ROWS) if kind is BlockBatch else 1

    def _widths(self, requests: Sequence[Request], kind: type[RunningBatch]) -> list[int]:
        """Of each request, what those that share a batch with it must have too."""
        lengths = [len(request.prompt_ids) for request in requests]
        if kind is BlockBatch:
            return [block_width(length, self.caching.mixed) for length in lengths]
        return [0] * len(lengths) if self.caching.mixed else lengths

    def _check_context(self, requests: Sequence[Request], sampling: Sampling) -> None:
        limit = self.policy.context_length
        longest = max((len(request.prompt_ids) for request in requests), default=0)
        if limit is not None and longest + sampling.max_tokens > limit:
            raise ValueError(
                f"a prompt of {longest} tokens with max_tokens {sampling.max_tokens} exceeds the "
                f"model's context of {limit}; lower max_tokens or data.max_prompt_tokens"
            )
