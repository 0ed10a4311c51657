"""A loss given as logic: a preference structure, compiled (arXiv:2412.17696).

The atoms' weights are probabilities of whole completions or, by default, the geometric mean of
their tokens' probabilities: whole sequences are so improbable that every 1 - p is 1, and losses
that differ in such factors (CPO, cCPO, ORPO) become one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from rlvr.lazy import torch
from rlvr.preference.compile import Form, log_ratio, loss_of
from rlvr.preference.lattice import find
from rlvr.preference.losses.base import PairLoss
from rlvr.preference.losses.terms import Pairs, Side
from rlvr.preference.structure import Structure
from rlvr.settings import Settings


class StructureSettings(Settings):
    """A preference structure, written out (atoms and signs: docs/methods/preference_logic.md)."""

    P: str
    """The core formula, such as "l -> w"."""
    P_C: str = "true"
    """The conditioning constraint: cases outside it count for nothing."""
    P_A: str = "false"
    """The additive constraint: cases in it count on both sides."""


class Logic(PairLoss):
    """f of the log-ratio of two weighted model counts."""

    name: Literal["logic"] = "logic"
    equation: ClassVar[str] = "f(log WMC(Check) / WMC(Cross), beta) + nll_weight NLL(y_w)"
    paper: ClassVar[str] = "Richardson et al., 2412.17696"

    example: ClassVar[Mapping[str, Any]] = {"structure": "cCPO"}

    structure: str | StructureSettings
    """A known loss by its name (CE, CEUnl, cCPO, qfUnl, cfUnl, unCPO, l5, ...), or formulas."""
    reference: bool = False
    """Take the reference form of a structure that speaks of the policy alone."""
    form: Form = "logistic"
    """f: -log sigmoid(beta rho), (rho - 1 / (2 beta))^2 or max(0, beta - rho)."""
    beta: float = Field(1.0, gt=0)
    """f's parameter."""
    per: Literal["token", "sequence"] = "token"
    """What an atom's weight is: the mean per token of the log-probability, or its sum."""
    manual: dict[Literal["mw", "ml"], float] = Field(default_factory=dict)
    """Weights in (0, 1) of the manual atoms that the structure names."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the winner's negative log-likelihood."""

    @model_validator(mode="after")
    def _possible(self) -> Logic:
        used = set(self.compiled.used_atoms)
        for name in sorted({"mw", "ml"} & used - set(self.manual)):
            raise ValueError(f"the structure names the manual atom {name!r}; give manual.{name}")
        for name, value in self.manual.items():
            if name not in used or not 0 < value < 1:
                raise ValueError(
                    f"manual.{name} = {value}: a weight in (0, 1) of an atom that the structure "
                    f"names ({', '.join(sorted(used))}) is needed"
                )
        return self

    @property
    def compiled(self) -> Structure:
        """The structure, in reference form where that is asked for."""
        if isinstance(self.structure, str):
            return _named(self.structure, self.reference)
        given = self.structure
        return _written(given.P, given.P_C, given.P_A, self.reference)

    @property
    def needs_reference(self) -> bool:
        """Whether the structure names a reference atom."""
        return self.compiled.needs_reference

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        """Loss [B]."""
        structure = self.compiled
        weights = self._weights(pairs, structure)
        loss_B = loss_of(log_ratio(structure, weights), self.form, self.beta)
        return loss_B + self.nll_weight * pairs.nll_B() if self.nll_weight else loss_B

    def _weights(self, pairs: Pairs, structure: Structure) -> dict[str, torch.Tensor]:
        """log p of each atom, [B]; a copy of an atom has its weight."""
        found: dict[str, torch.Tensor] = {}
        for atom in structure.used_atoms:
            if atom in ("mw", "ml"):
                found[atom] = torch.full_like(
                    pairs.chosen.logps_B.detach(),
                    math.log(self.manual[atom]),  # type: ignore[index]
                )
                continue
            side = pairs.chosen if "w" in atom else pairs.rejected
            found[atom] = self._log_weight(side, atom.startswith("r"))
        return found

    def _log_weight(self, side: Side, reference: bool) -> torch.Tensor:
        value_B = side.reference_logps_B if reference else side.logps_B
        assert value_B is not None, "this structure needs reference log-probabilities"
        return value_B / side.lengths_B.clamp_min(1) if self.per == "token" else value_B


@lru_cache(maxsize=64)
def _named(name: str, reference: bool) -> Structure:
    found = find(name)
    return found.referenced() if reference else found


@lru_cache(maxsize=64)
def _written(core: str, condition: str, added: str, reference: bool) -> Structure:
    found = Structure.of(core, condition, added)
    return found.referenced() if reference else found
