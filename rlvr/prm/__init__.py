"""Implicit process reward models: the reward, its training, best of N, quality, PRIME's maths."""

from rlvr.prm.best_of_n import choose, expected_best, expected_vote, response_score, vote
from rlvr.prm.objectives import (
    Balance,
    CrossEntropy,
    PrmObjective,
    StepLoss,
    balanced,
    takes_pairs,
)
from rlvr.prm.prime import (
    Baseline,
    ProcessReturns,
    batch_normalised,
    centred,
    detached_preference,
    group_passes,
    rivals,
)
from rlvr.prm.quality import (
    auc,
    first_error,
    location,
    ranking,
    tuned_threshold,
)
from rlvr.prm.reward import prefix_values, response_rewards, step_rewards, token_rewards
from rlvr.prm.score import engine_logprobs, ratios
from rlvr.prm.steps import given_step_ends, step_ends, step_starts, steps_of_ids, token_starts

__all__ = [
    "Balance",
    "Baseline",
    "CrossEntropy",
    "PrmObjective",
    "ProcessReturns",
    "StepLoss",
    "auc",
    "balanced",
    "batch_normalised",
    "centred",
    "choose",
    "detached_preference",
    "engine_logprobs",
    "expected_best",
    "expected_vote",
    "first_error",
    "given_step_ends",
    "group_passes",
    "location",
    "prefix_values",
    "ranking",
    "ratios",
    "response_rewards",
    "response_score",
    "rivals",
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
