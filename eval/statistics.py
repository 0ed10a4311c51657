"""Errors of means over problems, and tests of two models on the same problems.

The unit is the problem: its samples are averaged first, and problems are resampled (a cluster
bootstrap; Miller, "Adding Error Bars to Evals", arXiv 2411.00640). Treating problems x samples as
independent would make intervals far too narrow.

A percentile interval over few problems is somewhat too short, and it has no width if all problems
have the same value; Wilson's interval (1927) replaces it then. docs/evaluation.md has the measured
coverage.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

RESAMPLES = 4000
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its standard error and 95 % interval.

    ``se`` is None for a single problem. ``interval`` names the method behind ``low`` and ``high``.
    """

    value: float
    se: float | None
    low: float
    high: float
    interval: Literal["bootstrap", "wilson"] = "bootstrap"


class Bootstrap:
    """Resampled problems, shared by all metrics of a benchmark.

    Args:
        problems: Number of problems.
        label: Determines the random numbers, whatever else is evaluated.
        resamples: Number of resamples.
    """

    def __init__(self, problems: int, label: str, resamples: int = RESAMPLES) -> None:
        assert problems > 0, "there is nothing to resample"
        digest = hashlib.blake2b(label.encode(), digest_size=8).digest()
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
        counts = random.multinomial(problems, np.full(problems, 1 / problems), size=resamples)
        self.weights_RP = counts / problems
        self.problems = problems

    def means(self, values_P: np.ndarray) -> np.ndarray:
        """The mean of every resample, [R]."""
        means: np.ndarray = self.weights_RP @ values_P
        return means

    def estimate(self, values: Sequence[float] | np.ndarray) -> Estimate:
        """The mean of one value in [0, 1] per problem, with its error and interval."""
        values_P = np.asarray(values, dtype=float)
        mean = float(values_P.mean())
        means_R = self.means(values_P)
        se = float(means_R.std()) if self.problems > 1 else None
        if np.ptp(values_P) == 0:
            low, high = wilson(mean, self.problems)
            return Estimate(mean, 0.0 if se is not None else None, low, high, "wilson")
        low, high = np.quantile(means_R, [0.025, 0.975])
        return Estimate(mean, se, float(low), float(high))


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count`` independent problems."""
    z2 = _Z * _Z
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def macro_average(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean over benchmarks; their errors are independent, so variances add up.

    If all problems of a benchmark have the same value, its standard error of 0 means nothing, and
    the width of Wilson's interval is used instead. Of one benchmark it is that benchmark's.
    """
    count = len(estimates)
    if count == 1:
        return estimates[0]
    value = sum(item.value for item in estimates) / count
    errors = [
        (item.high - item.low) / (2 * _Z) if item.interval == "wilson" else item.se or 0.0
        for item in estimates
    ]
    se = math.sqrt(sum(error * error for error in errors)) / count
    return Estimate(value, se, max(0.0, value - _Z * se), min(1.0, value + _Z * se))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: discordant problems fall on either side with probability
    1/2.

    Args:
        only_first: Number of problems that only the first model solves.
        only_second: Number of problems that only the second model solves.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return float(min(1.0, 2 * tail / 2**n))


@dataclass(frozen=True, slots=True)
class Paired:
    """The mean difference of two models over the same problems (second minus first)."""

    difference: float
    se: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], label: str, resamples: int = 10_000
) -> Paired:
    """Compare two models' per-problem means.

    p is two-sided: how often a resample of the differences, shifted to mean zero, is at least as
    far from zero as the observed mean (Efron and Tibshirani, 1993, chapter 16).
    """
    differences_P = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    seen = float(differences_P.mean())
    means_R = Bootstrap(len(differences_P), label, resamples).means(differences_P)
    low, high = np.quantile(means_R, [0.025, 0.975])
    # A tolerance, because sums in another order may round an equal value to slightly below.
    beyond = int((np.abs(means_R - seen) >= abs(seen) - 1e-12).sum())
    p = (beyond + 1) / (resamples + 1) if np.any(differences_P) else 1.0
    return Paired(seen, float(means_R.std()), float(low), float(high), float(min(1.0, p)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979) in the given order; they control the familywise error
    rate."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
