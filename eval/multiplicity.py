"""How much models of equal accuracy disagree: predictive multiplicity over seeds or checkpoints.

Let h(x) be a model's pass rate on problem x, h0 the baseline's, and S the set of models whose mean
accuracy is within epsilon of the baseline's (it includes the baseline):

    viable range  V(x)  = max_S h(x) - min_S h(x)
    ambiguity     A     = share of problems with max_S |h(x) - h0(x)| >= delta
    discrepancy   D     = max_S of the share of problems with |h(x) - h0(x)| >= delta;  D <= A

Watson-Daniels et al., "Predictive Multiplicity in Probabilistic Classification" (arXiv:2206.01131).
There S is found by optimisation over a convex model class; here it is the given models, so the
figures are lower bounds. Pass rates of n samples also differ by chance. The null treats every
member as the baseline, draws all samples again, and computes A and D. The baseline's rate on a
problem is itself drawn from Beta(c + 1/2, n - c + 1/2), where c of n samples were right: with the
rate c/n, a problem without right samples would never vary. Only what exceeds the null is
disagreement between the models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_MEMBERS = 3
"""Fewer models say little about the set of near-equal models."""
_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Null:
    """A figure if all members were one model: mean, 95th percentile and p-value.

    ``p`` is the share of draws at or above the observed value, counting the observed value as a
    draw.
    """

    mean: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Multiplicity:
    """Disagreement on one benchmark; nulls are None for greedy answers, which are not random.

    ``members`` are indices of the given models, including 0 for the baseline; ``disputed`` are the
    problems that count towards ambiguity, by decreasing range.
    """

    members: tuple[int, ...]
    problems: int
    width: float
    ambiguity: float
    discrepancy: float
    disputed: tuple[int, ...]
    ambiguity_null: Null | None = None
    discrepancy_null: Null | None = None


def near(means: Sequence[float], epsilon: float) -> tuple[int, ...]:
    """Indices of the models whose mean is within ``epsilon`` of the first one's, including 0."""
    # A small tolerance, because means of counts are not exact.
    return tuple(i for i, mean in enumerate(means) if abs(mean - means[0]) <= epsilon + 1e-9)


def disagreement(rates_MP: np.ndarray, delta: float) -> tuple[float, float]:
    """Ambiguity and discrepancy of models [M, P]; the first one is the baseline."""
    differ_MP = np.abs(rates_MP - rates_MP[0]) >= delta - 1e-9
    return float(differ_MP.any(0).mean()), float(differ_MP.mean(1).max())


def multiplicity(
    rates_MP: np.ndarray,
    counts_MP: np.ndarray | None,
    *,
    epsilon: float = 0.01,
    delta: float = 0.3,
    seed: int = 0,
    draws: int = _DRAWS,
) -> Multiplicity:
    """Disagreement of the models that are near the first one.

    Args:
        rates_MP: Pass rates of M models on P problems.
        counts_MP: Number of samples of each rate; None computes no null.
        epsilon: Largest difference of mean accuracy between near-equal models.
        delta: Difference of pass rates that counts as disagreement.
        seed: Seed of the null.
        draws: Number of draws of the null.

    Raises:
        ValueError: ``epsilon`` or ``delta`` is out of range.
    """
    if epsilon < 0:
        raise ValueError(f"epsilon = {epsilon} is negative; it must be a difference of accuracies")
    if not 0 < delta <= 1:
        raise ValueError(
            f"delta = {delta} is outside (0, 1]; it must be a difference of pass rates"
        )
    members = near(rates_MP.mean(1).tolist(), epsilon)
    own_SP = rates_MP[list(members)]
    ambiguity, discrepancy = disagreement(own_SP, delta)
    width_P = np.ptp(own_SP, axis=0)
    apart_P = np.abs(own_SP - own_SP[0]).max(0)
    order = np.argsort(-width_P, kind="stable")
    disputed = tuple(int(p) for p in order if apart_P[p] >= delta - 1e-9)
    nulls: tuple[Null | None, Null | None] = (None, None)
    if counts_MP is not None:
        drawn_R2 = _null(own_SP, counts_MP[list(members)], delta, seed, draws)
        nulls = _summary(drawn_R2[:, 0], ambiguity), _summary(drawn_R2[:, 1], discrepancy)
    size, width = rates_MP.shape[1], float(width_P.mean())
    return Multiplicity(members, size, width, ambiguity, discrepancy, disputed, *nulls)


def _null(
    rates_SP: np.ndarray, counts_SP: np.ndarray, delta: float, seed: int, draws: int
) -> np.ndarray:
    """Ambiguity and discrepancy [R, 2] if all members were the baseline."""
    random = np.random.Generator(np.random.Philox(key=seed))
    counts_SP = counts_SP.astype(np.int64)
    right_P = rates_SP[0] * counts_SP[0]
    found = []
    for _ in range(draws):
        rates_P = random.beta(right_P + 0.5, counts_SP[0] - right_P + 0.5)
        found.append(disagreement(random.binomial(counts_SP, rates_P) / counts_SP, delta))
    return np.array(found)


def _summary(drawn_R: np.ndarray, observed: float) -> Null:
    reached = float((drawn_R >= observed - 1e-9).sum() + 1) / (len(drawn_R) + 1)
    return Null(float(drawn_R.mean()), float(np.quantile(drawn_R, 0.95)), reached)
