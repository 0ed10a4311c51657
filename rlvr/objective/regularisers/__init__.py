"""Terms added to the policy loss, one file each; a recipe lists those it wants by name."""

from typing import Annotated

from pydantic import Field

from rlvr.objective.regularisers.entropy import Entropy
from rlvr.objective.regularisers.kl import KL

Regulariser = Annotated[KL | Entropy, Field(discriminator="name")]

__all__ = ["KL", "Entropy", "Regulariser"]
