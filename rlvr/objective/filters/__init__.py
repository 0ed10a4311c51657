"""Which tokens take part in the policy loss, one file each; a recipe lists those it wants by name.

A filter multiplies the policy loss of every token by a constant weight. Regularisers are not
filtered.
"""

from typing import Annotated

from pydantic import Field

from rlvr.objective.filters.clip_cov import ClipCov
from rlvr.objective.filters.top_entropy import TopEntropy

TokenFilter = Annotated[TopEntropy | ClipCov, Field(discriminator="name")]

__all__ = ["ClipCov", "TokenFilter", "TopEntropy"]
