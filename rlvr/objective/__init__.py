"""Pure maths on tensors: advantages, policy losses, regularisers, the one reducer."""

from rlvr.objective.advantages import Advantage, GroupAdvantage
from rlvr.objective.corrections import (
    Correction,
    MaskOutliers,
    NoCorrection,
    TruncatedImportance,
)
from rlvr.objective.objective import Objective, merge_metrics
from rlvr.objective.policy_losses import Clip, PolicyLoss, Reinforce
from rlvr.objective.reducers import ConstantLength, Counts, Reducer, SequenceMean, TokenMean
from rlvr.objective.regularisers import KL, Entropy, Regulariser
from rlvr.objective.terms import PerToken, Terms

__all__ = [
    "KL",
    "Advantage",
    "Clip",
    "ConstantLength",
    "Correction",
    "Counts",
    "Entropy",
    "GroupAdvantage",
    "MaskOutliers",
    "NoCorrection",
    "Objective",
    "PerToken",
    "PolicyLoss",
    "Reducer",
    "Regulariser",
    "Reinforce",
    "SequenceMean",
    "Terms",
    "TokenMean",
    "TruncatedImportance",
    "merge_metrics",
]
