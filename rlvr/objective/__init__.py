"""Pure maths on tensors: advantages, policy losses, regularisers, the one reducer."""

from rlvr.objective.advantages import (
    Advantage,
    Gae,
    GroupAdvantage,
    LeaveOneOut,
    ReinforcePlusPlus,
    token_rewards,
    whiten,
)
from rlvr.objective.corrections import (
    Correction,
    MaskOutliers,
    NoCorrection,
    TruncatedImportance,
)
from rlvr.objective.filters import ClipCov, TokenFilter, TopEntropy
from rlvr.objective.objective import Objective, merge_metrics
from rlvr.objective.policy_losses import (
    Cispo,
    Clip,
    Gspo,
    NoPolicyLoss,
    PolicyLoss,
    Ratio,
    Reinforce,
)
from rlvr.objective.proxy import Proxy
from rlvr.objective.reducers import ConstantLength, Counts, Reducer, SequenceMean, TokenMean
from rlvr.objective.regularisers import KL, AdaptiveEntropy, Entropy, KlCov, LpReg, Regulariser
from rlvr.objective.terms import PerToken, Step, Terms
from rlvr.objective.value_loss import ValueLoss, explained_variance

__all__ = [
    "KL",
    "AdaptiveEntropy",
    "Advantage",
    "Cispo",
    "Clip",
    "ClipCov",
    "ConstantLength",
    "Correction",
    "Counts",
    "Entropy",
    "Gae",
    "GroupAdvantage",
    "Gspo",
    "KlCov",
    "LeaveOneOut",
    "LpReg",
    "MaskOutliers",
    "NoCorrection",
    "NoPolicyLoss",
    "Objective",
    "PerToken",
    "PolicyLoss",
    "Proxy",
    "Ratio",
    "Reducer",
    "Regulariser",
    "Reinforce",
    "ReinforcePlusPlus",
    "SequenceMean",
    "Step",
    "Terms",
    "TokenFilter",
    "TokenMean",
    "TopEntropy",
    "TruncatedImportance",
    "ValueLoss",
    "explained_variance",
    "merge_metrics",
    "token_rewards",
    "whiten",
]
