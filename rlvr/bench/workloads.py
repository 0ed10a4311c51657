"""Workloads of fixed size: lengths of completions, and batches with these lengths.

Lengths are fixed, so that two systems, or two versions of one, do exactly the same work. The shape
of the workload determines how much batching can save:

    uniform     all equal: no padding to save
    lognormal   half of a padded batch is padding, as in reasoning traces
    outlier     one is eight times as long as the others
"""

import math
from statistics import NormalDist

import torch

from rlvr.bench.size import WORKLOADS
from rlvr.types import Batch


def completion_lengths(workload: str, count: int, longest: int) -> list[int]:
    """Lengths of ``count`` completions, the longest of which has ``longest`` tokens.

    The log-normal lengths are quantiles (not random, so the same everywhere); the spread is chosen
    such that their mean is half of the longest.

    Raises:
        ValueError: The workload is unknown, or there are no tokens.
    """
    if count < 1 or longest < 1:
        raise ValueError(
            f"{count} completions of {longest} tokens are no work; both must be at least 1"
        )
    if workload == "uniform":
        return [longest] * count
    if workload == "outlier":
        return [max(1, longest // 8)] * (count - 1) + [longest]
    if workload == "lognormal":
        return _half_padding(count, longest)
    raise ValueError(f"unknown workload {workload!r}; the known ones are {', '.join(WORKLOADS)}")


def _half_padding(count: int, longest: int) -> list[int]:
    normal = NormalDist()
    points = [normal.inv_cdf((place + 0.5) / count) for place in range(count)]

    def lengths(spread: float) -> list[int]:
        scale = longest / math.exp(spread * points[-1])
        return [max(1, round(scale * math.exp(spread * point))) for point in points]

    low, high = 0.0, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        if sum(lengths(middle)) > count * longest / 2:
            low = middle
        else:
            high = middle
    found = lengths(high)
    # In a shuffled order: batching itself must find lengths that go together.
    return [found[(place * 5 + 3) % count] if count % 5 else found[place] for place in range(count)]


def made_up_batch(
    lengths: list[int], *, prompt_tokens: int, group_size: int, vocab_size: int, seed: int = 0
) -> Batch:
    """A batch of random tokens and advantages with completions of these lengths.

    Args:
        lengths: Number of tokens of each completion.
        prompt_tokens: Number of tokens of each prompt; completions of a group share a prompt.
        group_size: Number of completions per prompt.
        vocab_size: Ids are drawn from [0, vocab_size).
        seed: Seed of tokens and advantages.

    Raises:
        ValueError: The lengths do not divide into whole groups.
    """
    if len(lengths) % group_size:
        raise ValueError(f"{len(lengths)} completions do not divide into groups of {group_size}")
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocab_size, (count,), generator=generator).tolist())

    prompts = [ids(prompt_tokens) for _ in range(len(lengths) // group_size)]
    mask_BT = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        mask_BT[row, :length] = 1
    advantages_B1 = torch.randn(len(lengths), 1, generator=generator)
    group_index_B = torch.arange(len(lengths)) // group_size
    return Batch(
        prompt_ids=tuple(prompts[int(group)] for group in group_index_B),
        completion_ids=tuple(ids(length) for length in lengths),
        group_index_B=group_index_B,
        rewards_B=advantages_B1[:, 0],
        advantages_BT=advantages_B1 * mask_BT,
        mask_BT=mask_BT,
    )
