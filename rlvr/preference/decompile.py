"""Loss equation -> structure.

The equation is rho's fraction: numerator and denominator are disjoint multilinear polynomials of
prediction probabilities (Pw, Pl of the policy, Rw, Rl of the reference, copies P2w ..., manual
Mw, Ml). Each side is translated part by part (arXiv:2412.17696, the algorithm SEM):

    p -> its atom     1 - F -> not F     F * G -> F and G     F + G -> F or G

and then P = (Cross -> Check), P_C = (Check or Cross), P_A = (Check and Cross). The translation
means what the polynomial says, WMC(SEM(poly)) = poly, only if the factors of a product share no
probability and the terms of a sum cannot hold together. Anything else is refused, with the terms
that are in the way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlvr.lazy import sympy
from rlvr.preference.compile import PROBABILITIES
from rlvr.preference.formulas import atoms_of, essential, full, mask_of, symbol
from rlvr.preference.structure import Structure

if TYPE_CHECKING:
    from sympy.logic.boolalg import Boolean

_ATOM_OF = {probability: atom for atom, probability in PROBABILITIES.items()}
_TOKEN = re.compile(r"\s*(\*\*|[-+*/^()·]|\d+(?:\.\d*)?|\.\d+|[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Meaning:
    """A part of a polynomial: how it was written, and the formula it counts the models of."""

    text: str
    formula: Boolean

    @property
    def atoms(self) -> tuple[str, ...]:
        """Atoms that stand in it."""
        return atoms_of(self.formula)


@dataclass(frozen=True)
class Decompiled:
    """A structure and what is worth saying about the equation it was read from."""

    structure: Structure
    notes: tuple[str, ...] = ()


def decompile(equation: str) -> Decompiled:
    """The preference structure of ``numerator / denominator``.

    Raises:
        ValueError: Broken syntax, unknown probabilities, powers, constants, factors that share a
            probability, sums that are not disjoint; the terms are shown.
    """
    reader = _EquationReader(equation, _tokens(equation))
    top, bottom = reader.fraction()
    structure = Structure.of_sets(top.formula, bottom.formula)
    return Decompiled(structure, _common_factors(structure))


def _common_factors(structure: Structure) -> tuple[str, ...]:
    """Literals on both sides: they cancel in rho, and yet stand in P_C."""
    count, found = len(structure.atoms), []
    for index, name in enumerate(structure.atoms):
        true = mask_of(symbol(name), structure.atoms)
        both = structure.check | structure.cross
        for rows, text in ((true, PROBABILITIES[name]), (full(count) & ~true, _minus(name))):
            # Not rw in Rw / Rw: a factor has to leave something on each side.
            if not both & ~rows and index in essential(both, count):
                found.append(
                    f"{text} divides both sides: it cancels in rho, but P_C asks for it; drop it "
                    "from the equation for the structure without it"
                )
    return tuple(found)


def _minus(name: str) -> str:
    return f"(1-{PROBABILITIES[name]})"


def _tokens(text: str) -> list[str]:
    found, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(
                f"equation {text!r}: {text[position:].strip()[0]!r} is not understood; write it "
                "like 'Pw*(1-Pl) / (Pl*(1-Pw))'"
            )
        found.append({"**": "^", "·": "*"}.get(match[1], match[1]))
        position = match.end()
    return found


class _EquationReader:
    """Recursive descent over sums, products and complements, translating as it goes."""

    def __init__(self, text: str, tokens: list[str]) -> None:
        self.text, self.tokens, self.position = text, tokens, 0

    def peek(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self, token: str) -> bool:
        if self.peek() == token:
            self.position += 1
            return True
        return False

    def fault(self, reason: str) -> ValueError:
        return ValueError(f"equation {self.text!r}: {reason}")

    def fraction(self) -> tuple[Meaning, Meaning]:
        if self.tokens[:2] == ["log", "("] and self.tokens[-1] == ")":
            self.tokens = self.tokens[2:-1]
        top = self.sum()
        if not self.take("/"):
            left = self.peek()
            what = f"{left!r} is left over" if left else "there is no denominator"
            raise self.fault(f"{what}; write numerator / denominator, a denominator of one factor "
                             "or in parentheses")  # fmt: skip
        bottom = self.product()
        if self.peek() is not None:
            raise self.fault(
                f"{self.peek()!r} stands after the denominator; put all of it in parentheses"
            )
        return top, bottom

    def sum(self) -> Meaning:
        total = self.product()
        while self.peek() in ("+", "-"):
            sign = self.tokens[self.position]
            self.position += 1
            part = self.product()
            total = self.added(total, part) if sign == "+" else self.without(total, part)
        return total

    def added(self, one: Meaning, other: Meaning) -> Meaning:
        row = _both_hold(one.formula, other.formula)
        if row is not None:
            raise self.fault(
                f"the terms {one.text} and {other.text} are not disjoint: both hold where {row}, "
                f"so their sum counts that case twice and is the model count of no formula; write "
                f"one of them times the other's complement, such as {one.text} + "
                f"{_bracketed(f'1-{_bracketed(one.text)}')}*{_bracketed(other.text)} if they are "
                "independent"
            )
        return Meaning(
            f"{one.text} + {other.text}", sympy.Or(one.formula, other.formula, evaluate=False)
        )

    def without(self, one: Meaning, other: Meaning) -> Meaning:
        row = _both_hold(other.formula, sympy.Not(one.formula, evaluate=False))
        if row is not None:
            raise self.fault(
                f"{other.text} cannot be taken from {one.text}: it also holds where {row}, where "
                f"{one.text} does not"
            )
        text = f"{one.text}-{_bracketed(other.text)}"
        negated = sympy.Not(other.formula, evaluate=False)
        return Meaning(text, sympy.And(one.formula, negated, evaluate=False))

    def product(self) -> Meaning:
        value = self.factor()
        while self.peek() == "*" or self._factor_follows():
            self.take("*")
            value = self.times(value, self.factor())
        return value

    def _factor_follows(self) -> bool:
        token = self.peek()
        return token is not None and (token == "(" or token[0].isalnum() or token[0] in "_.")

    def times(self, one: Meaning, other: Meaning) -> Meaning:
        shared = [PROBABILITIES[name] for name in one.atoms if name in other.atoms]
        if shared:
            raise self.fault(
                f"{one.text} and {other.text} both hold {' and '.join(shared)}, so their product "
                "is not multilinear (a power); multiply it out, or use a fresh copy of the atom "
                f"({_copy_of(shared[0])})"
            )
        text = f"{_bracketed(one.text)}*{_bracketed(other.text)}"
        return Meaning(text, sympy.And(one.formula, other.formula, evaluate=False))

    def factor(self) -> Meaning:
        token = self.peek()
        if token is None:
            raise self.fault("it ends too early")
        self.position += 1
        if token == "(":
            value = self.sum()
            if not self.take(")"):
                raise self.fault("a parenthesis is not closed")
        elif token[0].isdigit() or token[0] == ".":
            value = self.constant(token)
        elif token in _ATOM_OF:
            value = Meaning(token, symbol(_ATOM_OF[token]))
        else:
            known = ", ".join(_ATOM_OF)
            raise self.fault(f"{token!r} is no probability here; they are {known}, and 1")
        if self.peek() == "^":
            raise self.fault(
                f"{value.text}^{(self.tokens[self.position + 1 :] or ['?'])[0]} is a power, which "
                "counts no formula's models; use a fresh copy of the atom "
                f"({_copy_of(value.text)})"
            )
        return value

    def constant(self, token: str) -> Meaning:
        if float(token) not in (0.0, 1.0):
            raise self.fault(
                f"the constant {token} is no prediction; give it a manual atom (Mw or Ml) with "
                "that weight"
            )
        return Meaning(token, sympy.true if float(token) else sympy.false)


def _both_hold(one: Boolean, other: Boolean) -> str | None:
    """A case in which two formulas hold together, in words; None if there is none."""
    atoms = atoms_of(one, other)
    mask = mask_of(one, atoms) & mask_of(other, atoms)
    if not mask:
        return None
    row = (mask & -mask).bit_length() - 1
    cases = [f"{name} is {'true' if row >> i & 1 else 'false'}" for i, name in enumerate(atoms)]
    return " and ".join(cases) or "anything holds"


def _bracketed(text: str) -> str:
    return text if text.isalnum() or ("+" not in text and "-" not in text) else f"({text})"


def _copy_of(probability: str) -> str:
    copies = {"Pw": "P2w", "Pl": "P2l", "Rw": "R2w", "Rl": "R2l"}
    return copies.get(probability, "P2w, P2l, R2w, R2l")
