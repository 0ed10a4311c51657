"""Policy-gradient losses, one file each; a recipe chooses one by name."""

from typing import Annotated

from pydantic import Field

from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.reinforce import Reinforce

PolicyLoss = Annotated[Clip | Reinforce, Field(discriminator="name")]

__all__ = ["Clip", "PolicyLoss", "Reinforce"]
