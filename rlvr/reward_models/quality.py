"""How good a reward model is, measured on labelled responses: ranking and location.

    AUC            probability that a right response scores above a wrong one, equal scores 1/2
    within prompt  the mean over prompts that have both; what best-of-N lives on
    pairs          over all right x wrong pairs of a prompt, pooled

How well probabilities sigmoid(r) are calibrated is ``rlvr/reward_models/calibration.py``'s.

First-error location as in ProcessBench (Zheng et al., arXiv:2412.06559) with the rule of
arXiv:2412.01981's released code: step k scores sigmoid(coefficient x q at its end); the prediction
is the first step below a threshold, or that there is none. F1 is the harmonic mean of the accuracy
on erroneous and on correct solutions; the threshold is tuned on other data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from rlvr.lazy import torch


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Area under the ROC curve; None where the labels are all alike."""
    values = torch.tensor(scores, dtype=torch.float64)
    right = torch.tensor(labels, dtype=torch.bool)
    positives, negatives = values[right], values[~right].sort().values
    if not len(positives) or not len(negatives):
        return None
    below = torch.searchsorted(negatives, positives, right=False)
    up_to = torch.searchsorted(negatives, positives, right=True)
    wins = (below + up_to).double().sum() / 2
    return float(wins / (len(positives) * len(negatives)))


@dataclass(frozen=True, slots=True)
class Ranking:
    """How responses are ranked; None where no prompt has both right and wrong ones.

    ``accuracy`` is of sign(r) against the label, over all responses; r = 0 counts 1/2.
    """

    auc: float | None
    auc_within: float | None
    pairs: float | None
    accuracy: float
    prompts: int

    @property
    def metrics(self) -> dict[str, float]:
        """What there is of it, by the names that runs log it under."""
        names = {"pairs": "pair_accuracy", "accuracy": "sign_accuracy"}
        values = {names.get(name, name): value for name, value in asdict(self).items()}
        return {name: float(value) for name, value in values.items() if value is not None}


def ranking(scores: Sequence[float], labels: Sequence[bool], groups: Sequence[object]) -> Ranking:
    """Measures of rank from rewards r, labels and prompts of responses."""
    members: dict[object, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    areas, wins, count = [], 0.0, 0
    for rows in members.values():
        own = [labels[row] for row in rows]
        area = auc([scores[row] for row in rows], own)
        if area is not None:
            pairs = sum(own) * (len(own) - sum(own))
            areas.append(area)
            wins, count = wins + area * pairs, count + pairs
    signs = [
        0.5 if r == 0 else float((r > 0) == right) for r, right in zip(scores, labels, strict=True)
    ]
    within = fmean(areas) if areas else None
    pooled = wins / count if count else None
    return Ranking(auc(scores, labels), within, pooled, fmean(signs), len(areas))


def first_error(
    steps_K: torch.Tensor, threshold: float, coefficient: float, *, cumulative: bool = True
) -> int:
    """The first step, from 0, whose score falls below a threshold; -1 where none does.

    Args:
        steps_K: Step rewards in nats of log-ratio.
        threshold: Of the score, between 0 and 1.
        coefficient: Scale; the score is sigmoid(coefficient x value).
        cumulative: Whether the value is that of the prefix, or the step's own reward.
    """
    for index, value in enumerate(_step_scores(steps_K, coefficient, cumulative)):
        if value < threshold:
            return index
    return -1


def _step_scores(steps_K: torch.Tensor, coefficient: float, cumulative: bool) -> list[float]:
    values_K = steps_K.cumsum(-1) if cumulative else steps_K
    scores: list[float] = (coefficient * values_K.double()).sigmoid().tolist()
    return scores


@dataclass(frozen=True, slots=True)
class Location:
    """How well first errors are found."""

    erroneous: float
    correct: float

    @property
    def f1(self) -> float:
        """Harmonic mean of the two accuracies."""
        total = self.erroneous + self.correct
        return 2 * self.erroneous * self.correct / total if total else 0.0


def location(predicted: Sequence[int], truth: Sequence[int]) -> Location:
    """Accuracy on solutions with an error (truth >= 0) and on those without (-1).

    Raises:
        ValueError: One of the two kinds is missing.
    """
    pairs = list(zip(predicted, truth, strict=True))
    bad = [p == t for p, t in pairs if t >= 0]
    good = [p == t for p, t in pairs if t < 0]
    if not bad or not good:
        raise ValueError("first-error location needs solutions with and without an error")
    return Location(fmean(bad), fmean(good))


def tuned_threshold(
    steps: Sequence[torch.Tensor],
    truth: Sequence[int],
    coefficient: float,
    *,
    cumulative: bool = True,
) -> float:
    """The threshold of the highest F1 on these solutions; a midpoint between their values."""
    values = [_step_scores(s, coefficient, cumulative) for s in steps]
    candidates = list(_midpoints(itertools.chain.from_iterable(values)))

    def f1(threshold: float) -> float:
        found = [next((k for k, v in enumerate(own) if v < threshold), -1) for own in values]
        return location(found, truth).f1

    return max((f1(t), -abs(t - 0.5), t) for t in candidates)[2]


def _midpoints(values: Iterable[float], most: int = 500) -> Iterator[float]:
    found = sorted(set(values))
    shown = found[:: max(1, math.ceil(len(found) / most))]
    yield from [0.0, *((a + b) / 2 for a, b in itertools.pairwise(shown)), 1.0]
