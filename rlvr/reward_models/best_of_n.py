"""Best of N: which of several responses to a problem a process reward model would hand out.

    values   diff: step rewards r^k; cumulative: prefix values q at the ends of steps
    score    min, sum or last of them (sum of diff = last of cumulative = r(y), an outcome reward)
    choice   the response of the highest score, the first of equal ones
    vote     the answer of the largest sum over its responses of sigmoid(coefficient x score)

Yuan et al., arXiv:2412.01981, sections 4.1 and 5.1; its text takes the lowest step reward (diff,
min). All here is in nats of log-ratio (beta = 1): the choice does not depend on a positive factor,
the vote does, so its coefficient is a parameter and belongs into every report. At 0 it is majority
vote. The released evaluation uses 0.001, training 0.05.

Expectations over the draw of N from M responses are exact where the choice depends on ranks alone;
votes are averaged over drawn subsets. Majority vote and pass@N beside them are those of
``eval/metrics.py``, a room above this one, and join in ``rlvr/tasks/tools/rank.py``.
"""

import math
import random
from collections.abc import Hashable, Sequence
from typing import Literal

import torch

Values = Literal["diff", "cumulative"]
Aggregate = Literal["min", "sum", "last"]


def response_score(
    steps_K: torch.Tensor, values: Values = "diff", aggregate: Aggregate = "min"
) -> float:
    """Score of a response from its step rewards [K].

    Raises:
        ValueError: There is no step, or a choice of the two that is not there.
    """
    if len(steps_K) == 0:
        raise ValueError("a response without tokens has no score; leave it out")
    values_K = steps_K if values == "diff" else steps_K.cumsum(-1)
    reduced = {"min": values_K.min(), "sum": values_K.sum(), "last": values_K[-1]}
    if aggregate not in reduced:
        raise ValueError(f"aggregate {aggregate!r} is not one of {', '.join(reduced)}")
    return float(reduced[aggregate])


def choose(scores: Sequence[float]) -> int:
    """The place of the highest score, the first of equal ones."""
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def vote(
    answers: Sequence[Hashable | None], scores: Sequence[float], coefficient: float
) -> list[Hashable]:
    """The answers of the largest weight; several where they tie.

    Args:
        answers: Of the responses; one without an answer (None) does not vote.
        scores: Of the responses, in nats.
        coefficient: What scores are multiplied by before the sigmoid.
    """
    weights: dict[Hashable, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            weights.setdefault(answer, []).append(_sigmoid(coefficient * score))
    totals = {answer: math.fsum(members) for answer, members in weights.items()}
    best = max(totals.values(), default=0.0)
    return [answer for answer, total in totals.items() if total >= best * (1 - 1e-12)]


def expected_best(correct: Sequence[bool], scores: Sequence[float], n: int) -> float:
    """Probability that the best-scored of n responses, drawn without replacement, is right.

    In the order of scores the i-th of M is the best of a draw in C(M - i, n - 1) of C(M, n) draws.

    Raises:
        ValueError: n is not in 1..M.
    """
    m = len(correct)
    _check(n, m)
    order = sorted(range(m), key=lambda index: (-scores[index], index))
    ways = sum(math.comb(m - 1 - i, n - 1) for i, row in enumerate(order) if correct[row])
    return ways / math.comb(m, n)


def expected_vote(
    answers: Sequence[Hashable | None],
    scores: Sequence[float],
    right: Hashable,
    n: int,
    coefficient: float,
    *,
    draws: int = 200,
    seed: str = "",
) -> float:
    """Share of draws of n responses whose weighted vote is right; a tie of t counts 1/t.

    Args:
        answers, scores, coefficient: As :func:`vote`, of all M responses.
        right: The right answer.
        n: How many are drawn, without replacement; with n = M there is one draw.
        draws: How many subsets are drawn.
        seed: Which.

    Raises:
        ValueError: n is not in 1..M.
    """
    m = len(answers)
    _check(n, m)
    generator = random.Random(f"vote {seed} {n}")
    subsets = [range(m)] if n == m else [generator.sample(range(m), n) for _ in range(draws)]
    total = 0.0
    for rows in subsets:
        winners = vote([answers[r] for r in rows], [scores[r] for r in rows], coefficient)
        total += (right in winners) / max(1, len(winners))
    return total / len(subsets)


def _check(n: int, m: int) -> None:
    if not 1 <= n <= m:
        raise ValueError(f"n = {n} needs at least {n} responses of a problem, but there are {m}")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
