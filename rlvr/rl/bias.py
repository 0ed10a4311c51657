r"""What is trained on against what was drawn: their lengths and their difficulty.

Filters, masks for truncated completions, refills and groups carried over from other steps change
which completions enter the loss, and with that whose lengths and whose problems the policy learns
from. A completion is *drawn* if it was sampled for the step, and *trained on* if it is in the batch
with a token that is not masked. (A group of equal rewards that is kept has no gradient either, but
nothing took it out.)

Is a difference more than chance? Let the means of groups be independent draws of one population
with variance S^2, M groups drawn, m trained on, c of them both. Then

    Var(mean trained - mean drawn) = S^2 (1/m + 1/M - 2 c / (m M)),

which for c = m is the variance of a simple random sample without replacement, S^2 / m (1 - m / M)
(Cochran, Sampling Techniques, 1977, section 2.6). Groups are the units because completions of a
prompt resemble each other. Where completions are taken out of groups, the same formula holds with
completions as units, and the larger of the two errors counts.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from statistics import fmean, variance
from typing import Any

from rlvr.runs.scoring import ScoredCompletion
from rlvr.types import Batch

Groups = Sequence[Sequence[ScoredCompletion]]
Figure = Callable[[ScoredCompletion], float]


def bias_metrics(drawn: Groups, kept: Groups, batch: Batch) -> dict[str, float]:
    """How trained completions differ from drawn ones; empty where they are the same ones.

    Args:
        drawn: The groups sampled for a step.
        kept: The groups of its batch.
        batch: What was trained on, in the order of ``kept``.
    """
    rows = iter((batch.mask_BT.sum(-1) > 0).tolist())
    taken = [[item for item in group if next(rows)] for group in kept]
    trained = [group for group in taken if group]
    if not trained or _same(drawn, trained):
        return {}
    metrics = _length_metrics(drawn, trained)
    if all(item.correct is not None for group in (*drawn, *trained) for item in group):
        metrics |= _difficulty_metrics(drawn, trained)
    return metrics


def _same(drawn: Groups, trained: Groups) -> bool:
    one, other = ({id(item) for group in groups for item in group} for groups in (drawn, trained))
    return one == other


def _length(item: ScoredCompletion) -> float:
    return float(item.completion.length)


def _correct(item: ScoredCompletion) -> float:
    return float(bool(item.correct))


def _length_metrics(drawn: Groups, trained: Groups) -> dict[str, float]:
    before, after = _values(drawn, _length), _values(trained, _length)
    return {
        "bias/length": fmean(after) / max(fmean(before), 1e-9),
        "bias/length_distance": ks_distance(before, after),
        **_z("bias/length_z", drawn, trained, _length),
    }


def _difficulty_metrics(drawn: Groups, trained: Groups) -> dict[str, float]:
    change = fmean(_values(trained, _correct)) - fmean(_values(drawn, _correct))
    return {"bias/difficulty": change, **_z("bias/difficulty_z", drawn, trained, _correct)}


def _values(groups: Groups, figure: Figure) -> list[float]:
    return [figure(item) for group in groups for item in group]


def _z(name: str, drawn: Groups, trained: Groups, figure: Figure) -> dict[str, float]:
    """The difference of the means in standard errors; nothing where there is no error."""
    error = difference_error(drawn, trained, figure)
    change = fmean(_values(trained, figure)) - fmean(_values(drawn, figure))
    return {name: change / error} if error else {}


def difference_error(drawn: Groups, trained: Groups, figure: Figure) -> float:
    """Standard error of (mean trained - mean drawn) if what is trained on were taken at random."""
    means = [
        {group[0].completion.group_id: fmean(map(figure, group)) for group in groups}
        for groups in (drawn, trained)
    ]
    single = [
        {id(item): figure(item) for group in groups for item in group}
        for groups in (drawn, trained)
    ]
    return max(_error(*means), _error(*single))


def _error(drawn: dict[Any, float], trained: dict[Any, float]) -> float:
    # Of groups in both, drawn has the whole and trained perhaps a part.
    population = list({**trained, **drawn}.values())
    if len(population) < 2:
        return 0.0
    m, all_drawn, both = len(trained), len(drawn), len(drawn.keys() & trained.keys())
    share = 1 / m + 1 / all_drawn - 2 * both / (m * all_drawn)
    return math.sqrt(max(0.0, variance(population) * share))


def ks_distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest difference of their distribution
    functions, from 0 to 1."""
    first, second = sorted(one), sorted(other)
    return max(
        abs(bisect_right(first, x) / len(first) - bisect_right(second, x) / len(second))
        for x in {*first, *second}
    )
