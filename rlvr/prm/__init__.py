"""Implicit process reward models: the reward, its training, best of N, quality, PRIME's maths."""

from rlvr.prm.best_of_n import choose, expected_best, expected_vote, response_score, vote
from rlvr.prm.objectives import (
    Balance,
    CrossEntropy,
    PrmObjective,
    balanced,
    takes_pairs,
)
from rlvr.prm.prime import Baseline, ProcessReturns, batch_normalised, centred, group_passes
from rlvr.prm.quality import (
    auc,
    first_error,
    location,
    ranking,
    tuned_threshold,
)
from rlvr.prm.reward import prefix_values, response_rewards, step_rewards, token_rewards
from rlvr.prm.score import log_ratios, response_logprobs
from rlvr.prm.steps import step_ends, step_starts, steps_of_ids, token_starts

__all__ = [
    "Balance",
    "Baseline",
    "CrossEntropy",
    "PrmObjective",
    "ProcessReturns",
    "auc",
    "balanced",
    "batch_normalised",
    "centred",
    "choose",
    "expected_best",
    "expected_vote",
    "first_error",
    "group_passes",
    "location",
    "log_ratios",
    "prefix_values",
    "ranking",
    "response_logprobs",
    "response_rewards",
    "response_score",
    "step_ends",
    "step_rewards",
    "step_starts",
    "steps_of_ids",
    "takes_pairs",
    "token_rewards",
    "token_starts",
    "tuned_threshold",
    "vote",
]
