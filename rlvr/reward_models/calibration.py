"""Do probabilities mean what they say, and how to make them: measures of calibration, and CaPE.

With p a predicted probability and y an outcome in {0, 1} (or a rate in [0, 1]):

    Brier          mean (p - y)^2; its expectation is MSE to the true probability + E[p (1 - p)], so
                   of all measures that need no true probability it orders models best
    NLL            mean -y log p - (1 - y) log(1 - p)
    ECE            sum over bins of weight x |mean p - mean y|, for a choice of bins and weights:
                       width               10 bins of equal width, weighted by their share
                       quantile            15 bins of equally many, all of one weight
                       quantile_weighted   the same, weighted by their share
    MCE            the largest |mean p - mean y| of the 15 bins
    KS             max over prefixes, in the order of p, of |sum p - sum y| / n
    MSE, KL        to true probabilities where there are some, as pass rates of many samples

CaPE (Liu et al., Deep Probability Estimation, arXiv:2111.10734): cross-entropy on single outcomes
is calibrated early, and then learns the outcomes by heart, which drives p to 0 and 1. From the
early stopped model on, epochs alternate: in those with e mod (c + 1) = 0 the labels are replaced by
what the model's own probabilities are worth,

    bins      in the order of p, bins of equally many; the bin's mean label
    kernel    sum_j w_j y_j / sum_j w_j over neighbours in the order of p, w_j normal in p_j - p_i

and in the c others the outcomes are. The paper's `ECE` is `quantile`; many libraries mean `width`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from rlvr.lazy import torch
from rlvr.settings import Settings

EceVariant = Literal["width", "quantile", "quantile_weighted"]
WIDTH_BINS, QUANTILE_BINS = 10, 15


@dataclass(frozen=True, slots=True)
class Bin:
    """Responses whose probability lies in one bin: how many, mean probability, share right."""

    low: float
    high: float
    count: int
    probability: float
    right: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How probabilities agree with outcomes; ``bins`` is the reliability diagram.

    ``ece`` is the variant ``width``.
    """

    brier: float
    ece: float
    bins: tuple[Bin, ...]
    ece_quantile: float
    ece_quantile_weighted: float
    mce: float
    ks: float
    nll: float


def calibration(scores: Sequence[float], labels: Sequence[float], bins: int = 10) -> Calibration:
    """All measures of p = sigmoid(r).

    Args:
        scores: Rewards r.
        labels: Outcomes in [0, 1].
        bins: Of equal width, for ``ece`` and ``bins``.
    """
    r_B = torch.tensor(scores, dtype=torch.float64)
    p_B, y_B = r_B.sigmoid(), torch.tensor(labels, dtype=torch.float64)
    found = width_bins(p_B, y_B, bins)
    quantiles = quantile_bins(p_B, y_B)
    return Calibration(
        brier=brier(p_B, y_B),
        ece=_gap(found, weighted=True),
        bins=found,
        ece_quantile=_gap(quantiles, weighted=False),
        ece_quantile_weighted=_gap(quantiles, weighted=True),
        mce=max(abs(b.probability - b.right) for b in quantiles),
        ks=ks(p_B, y_B),
        nll=log_loss(r_B, y_B),
    )


def brier(p_B: torch.Tensor, y_B: torch.Tensor) -> float:
    """Mean squared difference of probabilities and outcomes."""
    return float((p_B - y_B).square().mean())


def log_loss(r_B: torch.Tensor, y_B: torch.Tensor) -> float:
    """Mean cross-entropy, in nats, of sigmoid(r) against outcomes; rewards, as p may round to 1."""
    losses_B = torch.nn.functional.binary_cross_entropy_with_logits(r_B, y_B, reduction="none")
    return float(losses_B.mean())


def ks(p_B: torch.Tensor, y_B: torch.Tensor) -> float:
    """Kolmogorov and Smirnov's: the largest gap of cumulative sums in the order of p, over n.

    Equal probabilities enter together, so that the order of the data does not matter.
    """
    order = p_B.argsort(stable=True)
    sorted_B = p_B[order]
    gap_B = (sorted_B - y_B[order]).cumsum(0).abs() / len(p_B)
    last_B = torch.ones_like(sorted_B, dtype=torch.bool)
    last_B[:-1] = sorted_B[1:] != sorted_B[:-1]
    return float(gap_B[last_B].max())


def ece(p_B: torch.Tensor, y_B: torch.Tensor, variant: EceVariant = "width") -> float:
    """Expected calibration error of a variant; see the module docstring."""
    if variant == "width":
        return _gap(width_bins(p_B, y_B), weighted=True)
    return _gap(quantile_bins(p_B, y_B), weighted=variant == "quantile_weighted")


def width_bins(p_B: torch.Tensor, y_B: torch.Tensor, bins: int = WIDTH_BINS) -> tuple[Bin, ...]:
    """Bins of equal width of [0, 1]; empty ones are left out."""
    bin_B = (p_B * bins).long().clamp_max(bins - 1)
    found = []
    for index in range(bins):
        inside = bin_B == index
        if bool(inside.any()):
            means = float(p_B[inside].mean()), float(y_B[inside].mean())
            found.append(Bin(index / bins, (index + 1) / bins, int(inside.sum()), *means))
    return tuple(found)


def quantile_bins(
    p_B: torch.Tensor, y_B: torch.Tensor, bins: int = QUANTILE_BINS
) -> tuple[Bin, ...]:
    """Bins of equally many (or one more or less) in the order of p; none is empty.

    Within equal probabilities the order would be arbitrary, so each gets the mean label of its
    equals: a model that says one number for all has one number in every bin.
    """
    order = p_B.argsort(stable=True)
    sorted_B, labels_B = p_B[order], _mean_of_equals(p_B, y_B)[order]
    return tuple(
        Bin(float(p[0]), float(p[-1]), len(p), float(p.mean()), float(y.mean()))
        for p, y in zip(
            sorted_B.tensor_split(min(bins, len(p_B))),
            labels_B.tensor_split(min(bins, len(p_B))),
            strict=True,
        )
    )


def _gap(bins: Sequence[Bin], *, weighted: bool) -> float:
    total = sum(b.count for b in bins) if weighted else len(bins)
    return (
        math.fsum((b.count if weighted else 1) * abs(b.probability - b.right) for b in bins) / total
    )


def _mean_of_equals(p_B: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """Each one's mean label over all that have exactly its probability."""
    _, inverse_B, count_U = p_B.unique(return_inverse=True, return_counts=True)
    sum_U = torch.zeros(len(count_U), dtype=y_B.dtype).index_add(0, inverse_B, y_B)
    return (sum_U / count_U)[inverse_B]


def mse_to(p_B: torch.Tensor, true_B: torch.Tensor) -> float:
    """Mean squared difference of probabilities and true ones."""
    return float((p_B - true_B).square().mean())


def divergences(p_B: torch.Tensor, true_B: torch.Tensor) -> tuple[float, float]:
    """Mean KL(true || p) and KL(p || true) of coins, in nats; infinite where one is ruled out."""
    return _kl(true_B, p_B), _kl(p_B, true_B)


def _kl(a_B: torch.Tensor, b_B: torch.Tensor) -> float:
    terms = torch.xlogy(a_B, a_B) - torch.xlogy(a_B, b_B)
    terms = terms + torch.xlogy(1 - a_B, 1 - a_B) - torch.xlogy(1 - a_B, 1 - b_B)
    return float(terms.mean())


class BinTargets(Settings):
    """The mean label of a bin of equally many."""

    name: Literal["bins"] = "bins"
    """Bins."""
    bins: int = Field(10, ge=1)
    """How many. One makes every target the base rate; as many as responses leaves the labels."""

    def __call__(self, p_M: torch.Tensor, y_M: torch.Tensor) -> torch.Tensor:
        """Targets [M] in float64, detached; equal probabilities stay in the order of the data."""
        p_M, y_M = p_M.detach().double(), y_M.detach().double()
        order = p_M.argsort(stable=True)
        targets_M = torch.empty_like(y_M)
        for rows in order.tensor_split(min(self.bins, len(order))):
            targets_M[rows] = y_M[rows].mean()
        return targets_M


class KernelTargets(Settings):
    """The mean label of neighbours in probability, near ones counting more."""

    name: Literal["kernel"] = "kernel"
    """A kernel."""
    window: int = Field(500, ge=1)
    """Neighbours on either side, in the order of p."""
    width: float = Field(0.1, gt=0)
    """Standard deviation of the normal weights, in probability."""

    def __call__(self, p_M: torch.Tensor, y_M: torch.Tensor) -> torch.Tensor:
        """Targets [M] in float64, detached."""
        p_M, y_M = p_M.detach().double(), y_M.detach().double()
        order = p_M.argsort(stable=True)
        sorted_M, labels_M = p_M[order], y_M[order]
        targets_M = torch.empty_like(y_M)
        for place, row in enumerate(order.tolist()):
            near = slice(max(0, place - self.window), place + self.window + 1)
            weight_J = torch.exp(-0.5 * ((sorted_M[near] - sorted_M[place]) / self.width).square())
            targets_M[row] = (weight_J * labels_M[near]).sum() / weight_J.sum()
        return targets_M


class Cape(Settings):
    """Calibrated probability estimation: epochs on the model's own calibrated probabilities."""

    targets: Annotated[BinTargets | KernelTargets, Field(discriminator="name")] = BinTargets()
    """How probabilities and labels become targets."""
    hard_epochs: int = Field(5, ge=0)
    """c: epochs on the labels themselves after every epoch on targets."""

    def is_soft(self, epoch: int) -> bool:
        """Whether an epoch, from 0, trains on targets, which are made anew when it begins."""
        return epoch % (self.hard_epochs + 1) == 0
