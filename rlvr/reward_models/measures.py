"""How good rewards of held-out responses are: best of N, and how passes spread.

    best_of_n      share of prompts whose highest-scored response is right, over those that have
                   both right and wrong ones; equal scores share
    pass_variance  variance of rewards among a prompt's right responses, mean over such prompts
    pass_spread    its root over the mean gap, within prompts, of right and wrong responses: the
                   variance in units that do not depend on the scale of rewards

Ranking is ``rlvr/reward_models/quality.py``'s, calibration ``rlvr/reward_models/calibration.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pvariance

from rlvr.lazy import torch
from rlvr.reward_models.calibration import mse_to
from rlvr.reward_models.pairs import members


def best_and_spread(
    rewards: Sequence[float], labels: Sequence[bool], groups: Sequence[str]
) -> dict[str, float]:
    """The measures of the module docstring by name; what cannot be computed is left out."""
    best, variances, gaps = [], [], []
    for rows in members(groups).values():
        right = [rewards[row] for row in rows if labels[row]]
        wrong = [rewards[row] for row in rows if not labels[row]]
        if len(right) > 1:
            variances.append(pvariance(right))
        if right and wrong:
            highest = max(*right, *wrong)
            winners = right.count(highest) + wrong.count(highest)
            best.append(right.count(highest) / winners)
            gaps.append(fmean(right) - fmean(wrong))
    measures = {"best_of_n": fmean(best)} if best else {}
    if variances:
        measures["pass_variance"] = fmean(variances)
        if gaps and fmean(gaps) > 0:
            measures["pass_spread"] = measures["pass_variance"] ** 0.5 / fmean(gaps)
    return measures


def rate_error(rewards: Sequence[float], labels: Sequence[bool], groups: Sequence[str]) -> float:
    """Squared error of each prompt's mean probability sigmoid(r) to its share of right ones."""
    problems = [torch.tensor(rows) for rows in members(groups).values()]
    p_M = torch.tensor(rewards, dtype=torch.float64).sigmoid()
    y_M = torch.tensor(labels, dtype=torch.float64)
    predicted, rates = (torch.stack([v[rows].mean() for rows in problems]) for v in (p_M, y_M))
    return mse_to(predicted, rates)
