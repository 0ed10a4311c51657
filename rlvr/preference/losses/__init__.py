"""Preference losses: a table of small functions, chosen by name in a recipe.

A recipe names one loss or a mixture; the loss of a step is the sum over the mixture of weight x
mean over the step's pairs.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from rlvr.preference.losses.base import PairLoss, PreferenceLoss, UnpairedLoss
from rlvr.preference.losses.comp_sum import CompSum, comp_sum, comp_sum_mean
from rlvr.preference.losses.difference import (
    DifferenceLoss,
    Discopop,
    ExoPair,
    Hinge,
    Ipo,
    Robust,
    Sigmoid,
    SigmoidNorm,
)
from rlvr.preference.losses.logical import Logic, StructureSettings
from rlvr.preference.losses.modifiers import desensitised_logps, sampling_weights
from rlvr.preference.losses.offsets import Dpop, Odpo, RDpo
from rlvr.preference.losses.reference_free import (
    AlphaPo,
    Cpo,
    CpoIpo,
    Orpo,
    Rrhf,
    Sft,
    SimPo,
    Slic,
)
from rlvr.preference.losses.separate import ApoDown, ApoZero, BcoPair, NcaPair, SppoHard
from rlvr.preference.losses.terms import Labelled, Pairs, Side
from rlvr.preference.losses.transport import Aot, AotUnpaired
from rlvr.preference.losses.unpaired import ApoZeroUnpaired, Kto, WeightedUnpaired, baseline_of

_PAIRED: tuple[type[PairLoss], ...] = (
    Sigmoid, Hinge, Ipo, ExoPair, NcaPair, Robust, BcoPair, SppoHard, Aot, AotUnpaired, ApoZero,
    ApoDown, Discopop, Sft, SigmoidNorm, Cpo, CpoIpo, SimPo, AlphaPo, Orpo, RDpo, Odpo, Dpop, Slic,
    Rrhf, CompSum, Logic,
)  # fmt: skip
_UNPAIRED: tuple[type[UnpairedLoss], ...] = (Kto, ApoZeroUnpaired)

LOSSES: dict[str, type[PreferenceLoss]] = {
    str(loss.model_fields["name"].default): loss for loss in (*_PAIRED, *_UNPAIRED)
}
"""Every loss by its name; the first fifteen have TRL's names."""

AnyLoss = Annotated[
    Sigmoid | Hinge | Ipo | ExoPair | NcaPair | Robust | BcoPair | SppoHard | Aot | AotUnpaired
    | ApoZero | ApoDown | Discopop | Sft | SigmoidNorm | Cpo | CpoIpo | SimPo | AlphaPo | Orpo
    | RDpo | Odpo | Dpop | Slic | Rrhf | CompSum | Logic | Kto | ApoZeroUnpaired,
    Field(discriminator="name"),
]  # fmt: skip
"""One loss of a recipe."""


def mixed_loss(
    losses: Sequence[PairLoss], pairs: Pairs, weights_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Loss [B] of every pair: the weighted sum of the losses, times WPO's weights if given."""
    total_B = torch.stack([loss.weight * loss(pairs) for loss in losses]).sum(0)
    return total_B if weights_B is None else weights_B * total_B


__all__ = [
    "LOSSES",
    "AnyLoss",
    "CompSum",
    "DifferenceLoss",
    "Labelled",
    "Logic",
    "PairLoss",
    "Pairs",
    "PreferenceLoss",
    "Side",
    "StructureSettings",
    "UnpairedLoss",
    "WeightedUnpaired",
    "baseline_of",
    "comp_sum",
    "comp_sum_mean",
    "desensitised_logps",
    "mixed_loss",
    "sampling_weights",
]
