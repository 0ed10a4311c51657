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
from rlvr.objective.filters import ClipCov, OffPolicy, TokenFilter, TopEntropy
from rlvr.objective.objective import Objective, merge_metrics
from rlvr.objective.policy_losses import (
    Cispo,
    Clip,
    Gspo,
    NoPolicyLoss,
    PolicyLoss,
    Ratio,
    Reinforce,
    Sapo,
    Vespo,
)
from rlvr.objective.proxy import Proxy
from rlvr.objective.reducers import ConstantLength, Counts, Reducer, SequenceMean, TokenMean
from rlvr.objective.regularisers import KL, AdaptiveEntropy, Entropy, KlCov, LpReg, Regulariser
from rlvr.objective.terms import PerToken, Step, Terms
from rlvr.objective.uncertainty import Uncertainty, correlation
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
    "OffPolicy",
    "PerToken",
    "PolicyLoss",
    "Proxy",
    "Ratio",
    "Reducer",
    "Regulariser",
    "Reinforce",
    "ReinforcePlusPlus",
    "Sapo",
    "SequenceMean",
    "Step",
    "Terms",
    "TokenFilter",
    "TokenMean",
    "TopEntropy",
    "TruncatedImportance",
    "Uncertainty",
    "ValueLoss",
    "Vespo",
    "correlation",
    "explained_variance",
    "merge_metrics",
    "token_rewards",
    "whiten",
]
