"""Terms added to the policy loss, one file each; a recipe lists those it wants by name."""

from typing import Annotated

from pydantic import Field

from rlvr.objective.regularisers.adaptive_entropy import AdaptiveEntropy
from rlvr.objective.regularisers.entropy import Entropy
from rlvr.objective.regularisers.kl import KL
from rlvr.objective.regularisers.kl_cov import KlCov
from rlvr.objective.regularisers.lp_reg import LpReg

Regulariser = Annotated[KL | Entropy | AdaptiveEntropy | KlCov | LpReg, Field(discriminator="name")]

__all__ = ["KL", "AdaptiveEntropy", "Entropy", "KlCov", "LpReg", "Regulariser"]
