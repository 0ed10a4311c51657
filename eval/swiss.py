"""Rank many models over many benchmarks with simulated Swiss tournaments.

LLM Swiss Round (arXiv 2512.21010): the benchmarks are rounds. In each round, models of equal score
are paired at random, and the one with the better result on that benchmark gets a point; in an odd
group one model has no opponent and gets no point. The result is a model's expected final score over
many tournaments. Benchmarks have no weights, and a single outlying result costs only one round.

The paper leaves some points open; here we chose: equal results give half a point each; groups are
formed by score, so half points form separate groups; elimination removes T models at random from
the lowest group after each round, at most the whole group and never one of the last two models;
sensitivity to failure is the least-squares slope of the expected score over T; rank intervals come
from resampling problems within each benchmark.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK = 2000


def win_tensor(results_MK: np.ndarray) -> np.ndarray:
    """W [M, M, K]: 1 if the row model beats the column model on a benchmark, 1/2 if they are
    equal."""
    first, second = results_MK[:, None, :], results_MK[None, :, :]
    wins: np.ndarray = (first > second) + 0.5 * (first == second)
    return wins


def expected_scores(
    wins_MMK: np.ndarray, tournaments: int, seed: int, eliminated: int = 0
) -> np.ndarray:
    """Mean final score of every model, [M].

    Args:
        wins_MMK: Result of :func:`win_tensor`, with benchmarks in the order of rounds.
        tournaments: Number of simulated tournaments.
        seed: Seed of pairing and elimination.
        eliminated: Number of models removed after each round (T).
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    doubled = np.rint(2 * wins_MMK).astype(np.int64)
    total = np.zeros(len(doubled))
    for start in range(0, tournaments, _CHUNK):
        count = min(_CHUNK, tournaments - start)
        total += play(doubled, count, random, eliminated).sum(0) / 2
    return total / tournaments


def play(
    doubled_MMK: np.ndarray, tournaments: int, random: np.random.Generator, eliminated: int
) -> np.ndarray:
    """Twice the final scores of N tournaments, [N, M], as whole numbers."""
    models, rounds = len(doubled_MMK), doubled_MMK.shape[2]
    scores_NM = np.zeros((tournaments, models), dtype=np.int64)
    active_NM = np.ones((tournaments, models), dtype=bool)
    for round_ in range(rounds):
        first_P, second_P, row_P = _pairs(scores_NM, active_NM, random)
        won_P = doubled_MMK[first_P, second_P, round_]
        scores_NM[row_P, first_P] += won_P
        scores_NM[row_P, second_P] += 2 - won_P
        if eliminated and round_ + 1 < rounds:
            _eliminate(scores_NM, active_NM, random, eliminated)
    return scores_NM


def _pairs(
    scores_NM: np.ndarray, active_NM: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random pairs within groups of equal score: (first, second, tournament), each [P]."""
    tournaments, models = scores_NM.shape
    # Sort by score, in random order within a score: neighbours in a group are then a random pair.
    keys_NM = np.where(active_NM, scores_NM, -1) + random.random(scores_NM.shape) / 2
    order_NM = np.argsort(-keys_NM, axis=1)
    sorted_NM = np.take_along_axis(np.where(active_NM, scores_NM, -1), order_NM, axis=1)
    places_M = np.arange(models)
    begins_NM = np.ones((tournaments, models), dtype=bool)
    begins_NM[:, 1:] = sorted_NM[:, 1:] != sorted_NM[:, :-1]
    start_NM = np.maximum.accumulate(np.where(begins_NM, places_M, 0), axis=1)
    even_NM = (places_M - start_NM) % 2 == 0
    paired_NM = np.zeros((tournaments, models), dtype=bool)
    paired_NM[:, :-1] = even_NM[:, :-1] & ~begins_NM[:, 1:] & (sorted_NM[:, :-1] >= 0)
    row_P, place_P = np.nonzero(paired_NM)
    return order_NM[row_P, place_P], order_NM[row_P, place_P + 1], row_P


def _eliminate(
    scores_NM: np.ndarray, active_NM: np.ndarray, random: np.random.Generator, eliminated: int
) -> None:
    """Remove random models of the lowest group; they keep their score."""
    alive_NM = np.where(active_NM, scores_NM, np.iinfo(np.int64).max)
    lowest_NM = active_NM & (alive_NM == alive_NM.min(axis=1, keepdims=True))
    leaving_N = np.minimum(
        np.minimum(lowest_NM.sum(1), eliminated), np.maximum(active_NM.sum(1) - 2, 0)
    )
    draws_NM = np.where(lowest_NM, random.random(scores_NM.shape), 2.0)
    rank_NM = np.argsort(np.argsort(draws_NM, axis=1), axis=1)
    active_NM &= ~(lowest_NM & (rank_NM < leaving_N[:, None]))


@dataclass(frozen=True, slots=True)
class Standing:
    """A model's rank and scores.

    ``any_order`` is its expected score with benchmarks in random order. ``slope`` is the change of
    the expected score per model eliminated in a round, ``failing_rank`` its rank at the largest T
    tried. ``low`` and ``high`` bound 95 % of its ranks when problems are resampled.
    """

    score: float
    rank: float
    any_order: float
    slope: float
    failing_rank: float
    low: float
    high: float


def standings(
    results_MK: np.ndarray,
    *,
    tournaments: int = 10_000,
    seed: int = 0,
    resample: Callable[[np.random.Generator], np.ndarray] | None = None,
    resamples: int = 200,
    orders: int = 20,
) -> list[Standing]:
    """Rank models with tournaments.

    Args:
        results_MK: Results of M models on K benchmarks, in the order of rounds.
        tournaments: Number simulated for the scores; resamples and orders get a fifth each.
        seed: Seed of all random numbers.
        resample: Returns results over resampled problems; None leaves intervals at the rank.
        resamples: Number of resamples.
        orders: Number of random orders of the benchmarks to average over.
    """
    models, rounds = results_MK.shape
    wins = win_tensor(results_MK)
    scores_M = expected_scores(wins, tournaments, seed)
    fewer = max(200, tournaments // 5)
    slope_M, failing_M = _sensitivity(wins, fewer, seed)
    random = np.random.Generator(np.random.Philox(key=seed + 1))
    shuffled = [
        expected_scores(wins[:, :, random.permutation(rounds)], max(200, fewer // orders), seed + i)
        for i in range(orders)
    ]
    ranks_RM = ranks(scores_M)[None, :]
    if resample is not None:
        drawn = [
            ranks(expected_scores(win_tensor(resample(random)), fewer, seed + i))
            for i in range(resamples)
        ]
        ranks_RM = np.array(drawn)
    low_M, high_M = np.quantile(ranks_RM, [0.025, 0.975], axis=0)
    return [
        Standing(
            float(scores_M[m]),
            float(ranks(scores_M)[m]),
            float(np.mean(shuffled, axis=0)[m]),
            float(slope_M[m]),
            float(failing_M[m]),
            float(low_M[m]),
            float(high_M[m]),
        )
        for m in range(models)
    ]


def _sensitivity(wins: np.ndarray, tournaments: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Slope of the expected score over T, and ranks at the largest T, both [M].

    T is at most the value at which two models are left in the last round.
    """
    models, _, rounds = wins.shape
    most = max(1, (models - 2) // max(1, rounds - 1)) if models > 2 and rounds > 1 else 0
    levels = sorted({0, *np.unique(np.linspace(0, most, min(most, 4) + 1).astype(int)).tolist()})
    profile_TM = np.array(
        [expected_scores(wins, tournaments, seed, eliminated) for eliminated in levels]
    )
    if len(levels) == 1:
        return np.zeros(models), ranks(profile_TM[0])
    slope_M = np.polyfit(levels, profile_TM, 1)[0]
    return slope_M, ranks(profile_TM[-1])


def ranks(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks from 1 (the highest score); equal scores share the mean of their ranks."""
    scores_M = np.asarray(scores)
    above_M = (scores_M[None, :] > scores_M[:, None]).sum(1)
    equal_M = (scores_M[None, :] == scores_M[:, None]).sum(1)
    found: np.ndarray = above_M + (equal_M + 1) / 2
    return found
