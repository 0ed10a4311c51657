"""Rows whose bits do not depend on the batch they were generated in (``learner.exact``).

A matrix product adds in an order that the library chooses by the shapes it is given and by the
number of threads: MKL takes another kernel for 4 rows than for 16, and with several threads it may
split the sum. So a row that moves to a batch of another size comes out a few units in the last
place apart, and in time draws another token. What does not change the order, for the kernels that
were measured, are the contents of the other rows, a row's place among them, and where the operands
lie in memory. That leaves shapes, and these are fixed here by the row itself:

- A prompt runs alone, padded on the left to a multiple of :data:`PADDED_TO`, with at least one
  column of padding so that every prompt has a mask. Its width depends on its length alone.
- Tokens are drawn by blocks of :data:`BLOCK_ROWS` rows of one width, whatever the engine's limit.
  Rows that are missing are copies, and finished ones stay, so that every product has the same
  shape; keys are as long as the row's width and step say.
- One thread does the work.
- A loop over the elements of a tensor takes some vectors at once and the rest one by one, and an
  exponential function of one number is not that of a vector. So a block has as many rows as leave
  no rest, whatever the width of the tensor (with two-byte numbers: if it is even).

That kernels keep to this is measured and not promised, so :func:`blocks_are_exact` tries it on the
model at hand. Where it does not hold, and for models whose rows meet each other (a mixture runs the
tokens of an expert together) or whose cache cannot be joined, every row runs alone, which is exact
because there is nothing to depend on.

The idea of batch-invariant kernels: He et al., "Defeating Nondeterminism in LLM Inference",
Thinking Machines Lab: Connectionism, 2025.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from transformers.cache_utils import Cache

from rlvr.policy.mixture import has_experts
from rlvr.policy.model import MODEL_ERRORS, Policy
from rlvr.policy.model_check import probe_ids
from rlvr.rollout.engine import Request, Sample
from rlvr.rollout.engine_trial import Caching
from rlvr.rollout.growing_layer import GrowingLayer
from rlvr.rollout.running_batch import RunningBatch, Slot, counted, left_padded
from rlvr.rollout.sampling import Sampling

BLOCK_ROWS = 32
PADDED_TO = 16
_TRIED = (3, 7, 12, 9)
_SAMPLES = BLOCK_ROWS // len(_TRIED)
_STRIDE_BYTES = 128
"""What a loop over elements takes at once on a CPU at most: two registers of 512 bits."""
_SAMPLING = Sampling(max_tokens=4, temperature=1.0)

Generate = Callable[[Sequence[Request], Sampling], list[list[Sample]]]


def block_width(length: int, mixed: bool) -> int:
    """Columns of a prompt of ``length`` tokens, by its length alone."""
    return (length // PADDED_TO + 1) * PADDED_TO if mixed else length


class BlockBatch(RunningBatch):
    """Up to :data:`BLOCK_ROWS` rows of one width, filled up to that many with copies of the last.

    Arguments are those of :class:`~rlvr.rollout.running_batch.RunningBatch`.
    """

    leave_together: ClassVar[int] = 0

    def __init__(
        self,
        policy: Policy,
        stop_ids: Sequence[int],
        requests: Sequence[Request],
        slots: list[Slot],
        sampling: Sampling,
        caching: Caching,
    ) -> None:
        self.asked, self.mixed = len(slots), caching.mixed
        rows = [*slots, *[slots[-1]] * (BLOCK_ROWS - len(slots))]
        super().__init__(policy, stop_ids, requests, rows, sampling, caching)

    def _idle(self) -> torch.Tensor:
        return self.active >= self.asked

    def _prefill(self, prompts: list[tuple[int, ...]]) -> torch.Tensor:
        """Run each distinct prompt alone; return the last logits [B, V]."""
        unique = list(dict.fromkeys(prompts))
        logits, masks, caches = zip(*map(self._alone, unique), strict=True)
        self.cache = caches[0]
        for layer, *others in zip(*(cache.layers for cache in caches), strict=True):
            layer.join(others)
        index = torch.tensor([unique.index(prompt) for prompt in prompts], device=self.device)
        self._select_cache(index)
        mask = torch.cat(masks)[index]
        self.next_position = mask.sum(-1)
        self.mask = mask if self.mixed else None
        return torch.cat(logits)[index]

    def _alone(self, prompt: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """The last logits [1, V] of a prompt, its mask [1, width] and its cache."""
        self.cache = Cache(layer_class_to_replicate=GrowingLayer)
        width = block_width(len(prompt), self.mixed)
        ids, mask = left_padded([prompt], width, self.device)
        logits = self._forward(ids, counted(mask), mask if self.mixed else None)
        return logits, mask, self.cache


def blocks_are_exact(policy: Policy, caching: Caching, generate: Generate) -> bool:
    """Whether rows in blocks have the same bits wherever and with whatever they run.

    Args:
        policy: On its device.
        caching: How its rows are generated.
        generate: Generates in blocks.
    """
    if caching.kind != "growing" or has_experts(policy.causal_lm) or _leaves_rest(policy):
        return False
    lengths = _TRIED if caching.mixed else (max(_TRIED),) * len(_TRIED)
    ids = probe_ids(policy, sum(lengths)).tolist()
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    requests = [
        Request(tuple(ids[start : start + length]), tuple(range(start, start + _SAMPLES)))
        for start, length in zip(starts, lengths, strict=True)
    ]
    try:
        together = generate(requests, _SAMPLING)
        first, second = (generate(requests[start::2], _SAMPLING) for start in (0, 1))
        alone = [generate([request], _SAMPLING)[0] for request in requests]
        return together[::2] == first and together[1::2] == second and together == alone
    except MODEL_ERRORS:
        return False


def _leaves_rest(policy: Policy) -> bool:
    """Whether a loop over the elements of a block's activations ends within a vector."""
    widths = [m.out_features for m in policy.modules() if isinstance(m, torch.nn.Linear)]
    row = BLOCK_ROWS * policy.compute_dtype.itemsize
    return any(row * width % _STRIDE_BYTES for width in widths)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have each operation of this process run in the thread that calls it, while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
