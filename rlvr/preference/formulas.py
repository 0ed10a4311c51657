"""Propositional formulas over predictions: reading, truth tables, simplifying, printing.

An atom is a prediction that some model deems an output valid:

    w, l         the policy, the winner y_w and the loser y_l
    rw, rl       the reference model
    w2, l2       a fresh copy of the policy's atom, for a probability that stands twice
    rw2, rl2     likewise of the reference's
    mw, ml       manual atoms, whose weights are set by hand (SimPO's margin)

A formula over n atoms is also its set of models, held as an integer: bit i is set if the formula
holds in row i, and in row i atom k is true if bit k of i is set. Sets of rows then cost a machine
word at the sizes met here (n <= 6), and equivalence is equality.

Nothing read from text is evaluated: the grammar below is parsed by hand.

    formula := implied ("<->" implied)*          implied := or ["->" implied]
    or := xor ("|" xor)*    xor := and ("xor" and)*    and := not ("&" not)*
    not := ("~" | "!" | "not") not | "(" formula ")" | "true" | "false" | ATOM
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from rlvr.lazy import sympy

if TYPE_CHECKING:
    from sympy.logic.boolalg import Boolean

ATOMS = ("w", "l", "rw", "rl", "w2", "l2", "rw2", "rl2", "mw", "ml")
"""Every atom, in the order in which they are printed."""

_WORDS = {
    "w": "the policy deems the winner valid",
    "l": "the policy deems the loser valid",
    "rw": "the reference deems the winner valid",
    "rl": "the reference deems the loser valid",
    "w2": "a second copy of the policy deems the winner valid",
    "l2": "a second copy of the policy deems the loser valid",
    "rw2": "a second copy of the reference deems the winner valid",
    "rl2": "a second copy of the reference deems the loser valid",
    "mw": "the hand-set model deems the winner valid",
    "ml": "the hand-set model deems the loser valid",
}
_TOKEN = re.compile(r"\s*(<->|<=>|->|=>|[()&|~!^]|[A-Za-z_]\w*)")
_SPELLINGS = {
    "<=>": "<->", "=>": "->", "!": "~", "not": "~", "and": "&",
    "or": "|", "^": "xor", "top": "true", "bottom": "false",
}  # fmt: skip


@cache
def symbol(atom: str) -> Boolean:
    """The atom as a formula."""
    return sympy.Symbol(atom)


def parse_formula(text: str) -> Boolean:
    """A formula from text; unknown atoms and broken syntax are named.

    Raises:
        ValueError: The text is not a formula over :data:`ATOMS`.
    """
    reader = _Reader(text, _tokens(text))
    formula = reader.formula()
    if reader.peek() is not None:
        reader.fail(f"{reader.peek()!r} is left over")
    return formula


def _tokens(text: str) -> list[str]:
    found, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(
                f"formula {text!r}: {text[position:].strip()[0]!r} is not understood; use atoms "
                "with ~ & | xor -> <-> and parentheses"
            )
        token = match[1]
        found.append(_SPELLINGS.get(token.lower(), token))
        position = match.end()
    return found


class _Reader:
    """Recursive descent over the grammar of the module docstring."""

    def __init__(self, text: str, tokens: list[str]) -> None:
        self.text, self.tokens, self.position = text, tokens, 0

    def peek(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self, token: str) -> bool:
        if self.peek() == token:
            self.position += 1
            return True
        return False

    def fail(self, reason: str) -> None:
        raise ValueError(f"formula {self.text!r}: {reason}; write it like 'l -> w' or 'w & ~l'")

    def formula(self) -> Boolean:
        value = self.implied()
        while self.take("<->"):
            value = sympy.Equivalent(value, self.implied())
        return value

    def implied(self) -> Boolean:
        value = self.either()
        return sympy.Implies(value, self.implied()) if self.take("->") else value

    def either(self) -> Boolean:
        value = self.exclusive()
        while self.take("|"):
            value = sympy.Or(value, self.exclusive())
        return value

    def exclusive(self) -> Boolean:
        value = self.both()
        while self.take("xor"):
            value = sympy.Xor(value, self.both())
        return value

    def both(self) -> Boolean:
        value = self.negation()
        while self.take("&"):
            value = sympy.And(value, self.negation())
        return value

    def negation(self) -> Boolean:
        if self.take("~"):
            return sympy.Not(self.negation())
        if self.take("("):
            value = self.formula()
            if not self.take(")"):
                self.fail("a parenthesis is not closed")
            return value
        token = self.peek()
        if token is None:
            self.fail("it ends too early")
        assert token is not None
        self.position += 1
        constant = {"true": sympy.true, "false": sympy.false}.get(token.lower())
        if constant is not None:
            return constant
        if token not in ATOMS:
            self.fail(f"{token!r} is no atom (they are {', '.join(ATOMS)})")
        return symbol(token)


def atoms_of(*formulas: Boolean) -> tuple[str, ...]:
    """Names of the atoms that stand in the formulas, in printing order."""
    names = {str(symbol) for formula in formulas for symbol in formula.atoms(sympy.Symbol)}
    return tuple(name for name in ATOMS if name in names)


def mask_of(formula: Boolean, atoms: Sequence[str]) -> int:
    """The rows over ``atoms`` in which the formula holds, as bits."""
    columns = [atom_mask(index, len(atoms)) for index in range(len(atoms))]
    return _mask(formula, dict(zip(atoms, columns, strict=True)), full(len(atoms)))


def full(count: int) -> int:
    """All rows over ``count`` atoms."""
    return (1 << (1 << count)) - 1


@cache
def atom_mask(index: int, count: int) -> int:
    """The rows over ``count`` atoms in which atom ``index`` is true."""
    return sum(1 << row for row in range(1 << count) if row >> index & 1)


def _mask(formula: Boolean, columns: dict[str, int], whole: int) -> int:
    if isinstance(formula, sympy.logic.boolalg.BooleanTrue):
        return whole
    if isinstance(formula, sympy.logic.boolalg.BooleanFalse):
        return 0
    if formula.is_Symbol:
        return columns[str(formula)]
    parts = [_mask(part, columns, whole) for part in formula.args]
    if isinstance(formula, sympy.Not):
        return whole & ~parts[0]
    if isinstance(formula, sympy.Implies):
        return (whole & ~parts[0]) | parts[1]
    if isinstance(formula, sympy.Equivalent):
        return _fold(lambda a, b: whole & ~(a ^ b), parts)
    if isinstance(formula, sympy.And):
        return _fold(lambda a, b: a & b, parts)
    if isinstance(formula, sympy.Or):
        return _fold(lambda a, b: a | b, parts)
    assert isinstance(formula, sympy.Xor), f"no truth table for {type(formula).__name__}"
    return _fold(lambda a, b: a ^ b, parts)


def _fold(operation: Callable[[int, int], int], parts: list[int]) -> int:
    value = parts[0]
    for part in parts[1:]:
        value = operation(value, part)
    return value


def essential(mask: int, count: int) -> tuple[int, ...]:
    """Indices of the atoms that the rows actually depend on."""
    found = []
    for index in range(count):
        true = atom_mask(index, count)
        if (mask & true) >> (1 << index) != mask & ~true & full(count):
            found.append(index)
    return tuple(found)


def project(mask: int, count: int, kept: Sequence[int]) -> int:
    """The same function over the atoms ``kept`` alone; the others must not be essential."""
    result = 0
    for row in range(1 << len(kept)):
        whole = sum(1 << index for place, index in enumerate(kept) if row >> place & 1)
        result |= (mask >> whole & 1) << row
    return result


def widen(mask: int, atoms: Sequence[str], onto: Sequence[str]) -> int:
    """The same function as rows over more atoms."""
    result = 0
    for row in range(1 << len(onto)):
        narrow = sum(1 << i for i, name in enumerate(atoms) if row >> onto.index(name) & 1)
        result |= (mask >> narrow & 1) << row
    return result


def formula_of(mask: int, atoms: Sequence[str]) -> Boolean:
    """A short formula that holds in exactly these rows."""
    kept = essential(mask, len(atoms))
    names = [atoms[index] for index in kept]
    return _minimal(project(mask, len(atoms), kept), tuple(names))


@lru_cache(maxsize=4096)
def _minimal(mask: int, atoms: tuple[str, ...]) -> Boolean:
    """Quine-McCluskey through sympy, of the rows or of their complement, whichever is shorter."""
    count = len(atoms)
    if mask in (0, full(count)):
        return sympy.true if mask else sympy.false
    symbols = [symbol(name) for name in atoms]

    def terms(rows: int) -> Boolean:
        listed = [
            [row >> place & 1 for place in range(count)]
            for row in range(1 << count)
            if rows >> row & 1
        ]
        return sympy.SOPform(symbols, listed)

    positive, negative = terms(mask), terms(full(count) & ~mask)
    product = sympy.to_nnf(sympy.Not(negative))
    return min((positive, product), key=lambda formula: (formula.count_ops(), str(formula)))


def to_text(formula: Boolean) -> str:
    """The formula as text that :func:`parse_formula` reads back; clauses as implications."""
    return _text(formula, 0)


# How tightly operators bind: implication 1, or 2, and 3, not 4.
def _text(formula: Boolean, outer: int) -> str:
    if isinstance(formula, sympy.logic.boolalg.BooleanTrue):
        return "true"
    if isinstance(formula, sympy.logic.boolalg.BooleanFalse):
        return "false"
    if formula.is_Symbol:
        return str(formula)
    if isinstance(formula, sympy.Not):
        return f"~{_text(formula.args[0], 4)}"
    if isinstance(formula, sympy.Or):
        equal = _exclusive(formula)
        if equal is not None:
            return _wrapped(equal, 1, outer)
        before, after = split_clause(formula)
        if not after and not before:
            return f"~{_text(sympy.And(*[part.args[0] for part in formula.args]), 4)}"
        if before and after:
            text = f"{_join('&', before, 3)} -> {_join('|', after, 2)}"
            return _wrapped(text, 1, outer)
        return _wrapped(_join("|", _sorted(formula.args), 2), 2, outer)
    if isinstance(formula, sympy.And):
        return _wrapped(_join("&", _sorted(formula.args), 3), 3, outer)
    if isinstance(formula, sympy.Implies):
        left, right = (_text(part, 2) for part in formula.args)
        return _wrapped(f"{left} -> {right}", 1, outer)
    sign = " xor " if isinstance(formula, sympy.Xor) else " <-> "
    return _wrapped(sign.join(_text(part, 4) for part in _sorted(formula.args)), 1, outer)


def _exclusive(formula: Boolean) -> str | None:
    """``a xor b`` or ``a <-> b`` where that is what a disjunction of two terms says."""
    names = atoms_of(formula)
    if len(names) != 2:
        return None
    mask = mask_of(formula, names)
    return {0b0110: f"{names[0]} xor {names[1]}", 0b1001: f"{names[0]} <-> {names[1]}"}.get(mask)


def split_clause(formula: Boolean) -> tuple[list[Boolean], list[Boolean]]:
    """A disjunction as an implication: what its negated atoms require, and what then holds.

    Of negated atoms alone, the reference's go in front, as in ``rw -> ~l``; where that leaves
    either side without any, both lists are empty: ``~(w & l)`` is no implication.
    """
    before = [part for part in formula.args if isinstance(part, sympy.Not)]
    after = [part for part in formula.args if not isinstance(part, sympy.Not)]
    if not after:
        after = [part for part in before if not str(part.args[0]).startswith("r")]
        before = [part for part in before if part not in after]
        if not (before and after):
            return [], []
    return _sorted([part.args[0] for part in before]), _sorted(after)


def _sorted(parts: Sequence[Boolean]) -> list[Boolean]:
    order = {name: index for index, name in enumerate(ATOMS)}
    return sorted(parts, key=lambda part: ([order[n] for n in atoms_of(part)], str(part)))


def _join(sign: str, parts: Sequence[Boolean], level: int) -> str:
    inner = level if len(parts) > 1 else 0
    return f" {sign} ".join(_text(part, inner + 1 if len(parts) > 1 else level) for part in parts)


def _wrapped(text: str, level: int, outer: int) -> str:
    return f"({text})" if level < outer else text


def to_english(formula: Boolean) -> str:
    """The formula as a sentence, without a full stop."""
    if isinstance(formula, sympy.logic.boolalg.BooleanTrue):
        return "anything goes"
    if isinstance(formula, sympy.logic.boolalg.BooleanFalse):
        return "nothing at all"
    if formula.is_Symbol:
        return _WORDS[str(formula)]
    if isinstance(formula, sympy.Not):
        inner = formula.args[0]
        if inner.is_Symbol:
            return _WORDS[str(inner)].replace(" deems ", " does not deem ")
        return f"it is not so that {to_english(inner)}"
    if isinstance(formula, sympy.Or):
        equal = _exclusive(formula)
        if equal is not None:
            names = [_WORDS[name] for name in atoms_of(formula)]
            how = "exactly one holds of: " if "xor" in equal else "both or neither hold of: "
            return how + ", ".join(names)
        before, after = split_clause(formula)
        if not before and not after:
            return "not all hold of: " + ", ".join(_WORDS[name] for name in atoms_of(formula))
        if before and after:
            then = " or ".join(map(to_english, after))
            return f"whenever {' and '.join(map(to_english, before))}, {then}"
        return f"{', or '.join(map(to_english, _sorted(formula.args)))}"
    if isinstance(formula, sympy.And):
        return ", and ".join(map(to_english, _sorted(formula.args)))
    if isinstance(formula, sympy.Implies):
        return f"whenever {to_english(formula.args[0])}, {to_english(formula.args[1])}"
    if isinstance(formula, sympy.Equivalent):
        return f"{' exactly if '.join(map(to_english, formula.args))}"
    return f"either {' or '.join(map(to_english, formula.args))}, not both"
