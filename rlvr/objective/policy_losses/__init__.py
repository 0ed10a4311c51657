"""Policy-gradient losses, one file each; a recipe chooses one by name."""

from typing import Annotated

from pydantic import Field

from rlvr.objective.policy_losses.cispo import Cispo
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.gspo import Gspo
from rlvr.objective.policy_losses.none import NoPolicyLoss
from rlvr.objective.policy_losses.ratio import Ratio
from rlvr.objective.policy_losses.reinforce import Reinforce

PolicyLoss = Annotated[
    Clip | Ratio | Gspo | Cispo | Reinforce | NoPolicyLoss, Field(discriminator="name")
]

__all__ = ["Cispo", "Clip", "Gspo", "NoPolicyLoss", "PolicyLoss", "Ratio", "Reinforce"]
