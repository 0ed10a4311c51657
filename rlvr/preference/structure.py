"""The preference structure: what a preference loss says, as logic.

Richardson, Srikumar and Sabharwal, "Understanding the Logic of Direct Preference Alignment through
Logic" (arXiv:2412.17696). A loss is a statement about which outputs models deem valid. Its
structure is a core formula P, a conditioning constraint P_C (rows outside it count for nothing)
and an additive constraint P_A (rows that count on both sides):

    Check = (P or P_A) and P_C          counted above the fraction line
    Cross = (~P or P_A) and P_C         counted below it
    rho   = log WMC(Check) / WMC(Cross)         loss = f(rho, beta)

The core formula alone does not fix a loss: four losses share l -> w. Two structures mean the same
loss if and only if their Check and Cross hold in the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlvr.lazy import sympy
from rlvr.preference import formulas
from rlvr.preference.formulas import ATOMS, formula_of, full, mask_of, parse_formula, to_text, widen

if TYPE_CHECKING:
    from sympy.logic.boolalg import Boolean

POLICY_ATOMS = ("w", "l")
REFERENCE_ATOMS = ("w", "l", "rw", "rl")
_MOST_ATOMS = 8


@dataclass(frozen=True)
class Structure:
    """Check and Cross as sets of rows over ``atoms`` (bits as in ``formulas.py``).

    Make one with :meth:`of`, from P, P_C and P_A.
    """

    atoms: tuple[str, ...]
    check: int
    cross: int

    @staticmethod
    def of(
        P: str | Boolean, P_C: str | Boolean = "true", P_A: str | Boolean = "false"
    ) -> Structure:
        """The structure that three formulas (or their texts) describe.

        Raises:
            ValueError: A formula is not understood; Check or Cross is empty, so that the loss would
                be the logarithm of 0.
        """
        core, condition, added = (
            parse_formula(part) if isinstance(part, str) else part for part in (P, P_C, P_A)
        )
        atoms = formulas.atoms_of(core, condition, added) or POLICY_ATOMS
        if len(atoms) > _MOST_ATOMS:
            raise ValueError(f"{len(atoms)} atoms ({', '.join(atoms)}) are too many; use at most 8")
        p, c, a = (mask_of(part, atoms) for part in (core, condition, added))
        found = Structure(atoms, (p | a) & c, (full(len(atoms)) & ~p | a) & c)
        found.refuse_empty(f"P = {to_text(core)}, P_C = {to_text(condition)}")
        return found

    @staticmethod
    def of_sets(check: Boolean, cross: Boolean) -> Structure:
        """The structure with these formulas for Check and Cross.

        Raises:
            ValueError: One of them holds nowhere.
        """
        atoms = formulas.atoms_of(check, cross) or POLICY_ATOMS
        found = Structure(atoms, mask_of(check, atoms), mask_of(cross, atoms))
        found.refuse_empty(f"{to_text(check)} over {to_text(cross)}")
        return found

    def refuse_empty(self, what: str) -> None:
        """Raise where Check or Cross holds in no row.

        Raises:
            ValueError: Which side is empty, and what to change.
        """
        for name, rows, fault in (
            ("Check", self.check, "P (or P_A) never holds within P_C"),
            ("Cross", self.cross, "P never fails within P_C, and P_A never holds in it"),
        ):
            if not rows:
                raise ValueError(
                    f"{what}: {name} is empty, because {fault}; the loss would be the logarithm of "
                    "0. Widen P_C or change P"
                )

    @property
    def core(self) -> Boolean:
        """P, simplified: what Cross requires of Check (Cross -> Check)."""
        return formula_of(full(len(self.atoms)) & ~self.cross | self.check, self.atoms)

    @property
    def condition(self) -> Boolean:
        """P_C, simplified: the rows that count at all."""
        return formula_of(self.check | self.cross, self.atoms)

    @property
    def added(self) -> Boolean:
        """P_A, simplified: the rows that count on both sides."""
        return formula_of(self.check & self.cross, self.atoms)

    @property
    def formulas(self) -> dict[str, str]:
        """P, P_C and P_A as text."""
        return {"P": to_text(self.core), "P_C": to_text(self.condition), "P_A": to_text(self.added)}

    def over(self, atoms: Sequence[str]) -> Structure:
        """The same structure over more atoms."""
        onto = tuple(atoms)
        if onto == self.atoms:
            return self
        return Structure(
            onto, widen(self.check, self.atoms, onto), widen(self.cross, self.atoms, onto)
        )

    def same_as(self, other: Structure) -> bool:
        """Whether both mean the same loss."""
        mine, theirs = aligned(self, other)
        return (mine.check, mine.cross) == (theirs.check, theirs.cross)

    def below(self, other: Structure) -> bool:
        """Whether this one asks for at least as much: its loss is never the smaller one.

        Check here within Check there, and Cross there within Cross here.
        """
        mine, theirs = aligned(self, other)
        return not mine.check & ~theirs.check and not theirs.cross & ~mine.cross

    def referenced(self) -> Structure:
        """The reference form: Check and rl over Cross and rw; rho falls by log(Rw / Rl).

        Raises:
            ValueError: A reference stands in it already.
        """
        if {"rw", "rl"} & set(self.atoms):
            raise ValueError(
                f"{self.formulas['P']} speaks of the reference already (rw or rl); leave the "
                "reference form out"
            )
        wide = self.over(tuple(name for name in ATOMS if name in {*self.atoms, "rw", "rl"}))
        rw, rl = (
            formulas.atom_mask(wide.atoms.index(name), len(wide.atoms)) for name in ("rw", "rl")
        )
        return Structure(wide.atoms, wide.check & rl, wide.cross & rw)

    @property
    def used_atoms(self) -> tuple[str, ...]:
        """Atoms that Check or Cross depends on."""
        count = len(self.atoms)
        used = {*formulas.essential(self.check, count), *formulas.essential(self.cross, count)}
        return tuple(name for index, name in enumerate(self.atoms) if index in used)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss looks at a reference model."""
        return any(name.startswith("r") for name in self.used_atoms)

    def reading(self) -> str:
        """The core formula in English, and the constraints where they are short enough to read."""
        sentence = formulas.to_english(self.core)
        parts = [f"{sentence[:1].upper()}{sentence[1:]}"]
        if len(self.used_atoms) > 2:
            return f"{parts[0]}."
        if self.condition != sympy.true:
            parts.append(f"only cases count in which {formulas.to_english(self.condition)}")
        if self.added != sympy.false:
            parts.append(f"cases in which {formulas.to_english(self.added)} count on both sides")
        return "; ".join(parts) + "."


def aligned(one: Structure, other: Structure) -> tuple[Structure, Structure]:
    """Both structures over the union of their atoms."""
    atoms = tuple(name for name in ATOMS if name in {*one.atoms, *other.atoms})
    return one.over(atoms), other.over(atoms)


def count_structures(atoms: int) -> int:
    """How many losses there are over so many atoms: ordered pairs of sets of rows, 4^(2^n)."""
    return 4 ** (2**atoms)
