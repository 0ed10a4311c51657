"""Work of a fixed size: how long the completions are, and a batch of them.

Lengths are forced, so that two systems, or two versions of one, do exactly the same. Which shape a
run has decides what batching can save:

    uniform     all equal: no padding to save
    lognormal   half of a padded batch is padding, as in reasoning traces
    outlier     one is eight times as long as the others
"""

import math
from statistics import NormalDist
from typing import Literal, get_args

import torch

from rlvr.types import Batch

Workload = Literal["uniform", "lognormal", "outlier"]
WORKLOADS: tuple[str, ...] = get_args(Workload)


def completion_lengths(workload: str, count: int, longest: int) -> list[int]:
    """Lengths of ``count`` completions of which the longest has ``longest`` tokens.

    The log-normal ones are its quantiles (no draw, so the same everywhere), its spread such that
    their mean is half of the longest.

    Raises:
        ValueError: An unknown workload, or no tokens.
    """
    if count < 1 or longest < 1:
        raise ValueError(f"{count} completions of {longest} tokens are no work; both from 1 on")
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
    # In an order that sorts nothing: batching must find the lengths that go together itself.
    return [found[(place * 5 + 3) % count] if count % 5 else found[place] for place in range(count)]


def made_up_batch(
    lengths: list[int], *, prompt_tokens: int, group_size: int, vocabulary: int, seed: int = 0
) -> Batch:
    """A batch of random tokens and advantages, completions of these lengths.

    Args:
        lengths: Tokens of each completion.
        prompt_tokens: Tokens of each prompt; completions of a group share theirs.
        group_size: Completions of a prompt.
        vocabulary: Ids are drawn from [0, vocabulary).
        seed: Of tokens and advantages.

    Raises:
        ValueError: The lengths do not part into whole groups.
    """
    if len(lengths) % group_size:
        raise ValueError(f"{len(lengths)} completions do not part into groups of {group_size}")
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=generator).tolist())

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
