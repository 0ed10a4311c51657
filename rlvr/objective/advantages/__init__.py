"""From rewards to advantages, one file each; a recipe chooses one by name."""

from typing import Annotated

from pydantic import Field

from rlvr.objective.advantages.gae import Gae, discounted, token_rewards, whiten
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.advantages.reinforce_pp import ReinforcePlusPlus
from rlvr.objective.advantages.rloo import LeaveOneOut

OutcomeAdvantage = GroupAdvantage | LeaveOneOut | ReinforcePlusPlus
"""One number for all tokens of a completion, from rewards alone."""

Advantage = Annotated[OutcomeAdvantage | Gae, Field(discriminator="name")]

__all__ = [
    "Advantage",
    "Gae",
    "GroupAdvantage",
    "LeaveOneOut",
    "OutcomeAdvantage",
    "ReinforcePlusPlus",
    "discounted",
    "token_rewards",
    "whiten",
]
