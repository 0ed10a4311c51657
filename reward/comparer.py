r"""Compare two structured answers, part by part.

`Comparer.same` returns True, False, or ``None`` if it cannot tell. Only leaves that the expression
parser could not read are passed to math-verify, never whole answers: structure (the number of
items, the brackets, the signs) is always compared here, so that ``(1,2)`` does not equal
``\{1,2\}`` and ``1,2,2`` does not equal ``1,2``.

The reference determines the form. A label in front of a value ("x = 3", "f(x) = 2x") may be missing
on either side; an equation that is not a label ("x + y = 1") must be matched by an equation. If the
answer is a chain, each numeric member must agree, so that "4 = 3" is not 3.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeGuard

from reward.answer_structure import read, with_unit
from reward.denials import DENIAL
from reward.expression import Tree
from reward.identity import same_up_to_factor
from reward.labels import (
    approximations,
    before_approximation,
    is_function_label,
    label_letters,
    label_of,
    one_by_one,
    stated_values,
)
from reward.nodes import BareList, Bracket, Matrix, Node, Percent, Relation, Text, Value
from reward.numeric import symbols
from reward.regions import is_region_like, open_at_infinity, region, same_region
from reward.relations import difference, directed, variables
from reward.tokens import is_malformed
from reward.units import (
    has_reason,
    is_measured_alike,
    same_unit,
    split_letter_unit,
    split_plural,
    split_rate,
)
from reward.values import is_near, same_value
from reward.verdict import GradingPolicy
from reward.word_answers import number_in_words, same_words, words

Tri = bool | None


@dataclass(frozen=True)
class Comparer:
    """Compares nodes under a policy; ``symbolic`` compares leaves that this package cannot read."""

    policy: GradingPolicy
    symbolic: Callable[[str, str], Tri]

    def same(self, gold: Node, pred: Node) -> Tri:
        """Compare two nodes; ``None`` if it cannot tell."""
        if isinstance(gold, Relation) or isinstance(pred, Relation):
            return self._relations(gold, pred)
        return self._plain(gold, pred)

    def _plain(self, gold: Node, pred: Node) -> Tri:
        if isinstance(gold, Percent) or isinstance(pred, Percent):
            return self._percent(gold, pred)
        if isinstance(gold, Value) and isinstance(pred, Value):
            return self._values(gold, pred)
        if isinstance(gold, Matrix) or isinstance(pred, Matrix):
            return self._matrices(gold, pred)
        if isinstance(gold, Text) or isinstance(pred, Text):
            return self._texts(gold, pred)
        if is_region_like(gold) or is_region_like(pred):
            return self._regions(gold, pred)
        return self._collections(gold, pred)

    # -- values -------------------------------------------------------------------------------

    def _values(self, gold: Value, pred: Value) -> Tri:
        # If one side has a unit, a letter after the other's number is a unit too; after an answer
        # to a plain number "km/h" is a unit.
        if pred.text and symbols(pred.tree) and not symbols(gold.tree):
            letter = _with_letter(pred, gold.unit)
            noun = with_unit(pred.text, split_rate) or with_unit(pred.text, split_plural)
            pred = letter or noun or pred
        elif pred.unit and not gold.unit and symbols(gold.tree) and not symbols(pred.tree):
            gold = _with_letter(gold, pred.unit) or gold
        if pred.unit and not has_reason(gold.unit, pred.unit):
            return False
        if not same_unit(_unit_of(gold), _unit_of(pred), self.policy.units == "strict"):
            return False
        return same_value(gold.tree, pred.tree, self.policy, gold.text)

    def _percent(self, gold: Node, pred: Node) -> Tri:
        """Compare percentages by `GradingPolicy.percent`."""
        wanted = gold.value if isinstance(gold, Percent) else gold
        got = pred.value if isinstance(pred, Percent) else pred
        if not isinstance(wanted, Value) or not isinstance(got, Value):
            return self._collections(gold, pred)
        if isinstance(gold, Percent) and isinstance(pred, Percent):
            return self._values(wanted, got)
        hundred = Fraction(1, 100)
        if isinstance(gold, Percent):
            if self._values(_scaled(wanted, hundred), got):
                return True
            return self.policy.percent != "value" and self._values(wanted, got)
        if self._values(wanted, _scaled(got, hundred)):
            return True
        return self.policy.percent == "both" and self._values(wanted, got)

    def _texts(self, gold: Node, pred: Node) -> Tri:
        if isinstance(gold, Text) and isinstance(pred, Text):
            if gold.is_words and pred.is_words:
                return same_words(gold.text, pred.text)
        elif isinstance(gold, Value) and isinstance(pred, Text):
            named = _named_number(pred)
            if named is not None:
                return self._values(gold, named)
        elif isinstance(gold, Text) and isinstance(pred, Value):
            named = _named_number(gold)
            if named is not None:
                return self._values(named, pred)
        for one, other in ((gold, pred), (pred, gold)):
            if isinstance(one, Text) and words(one.text) == "no solution":
                return isinstance(other, Bracket) and not other.items
        if isinstance(gold, Text) and gold.is_words:
            return same_words(gold.text, text_of(pred) or "")
        elif isinstance(pred, Text) and pred.is_words:
            return False
        wanted, got = text_of(gold), text_of(pred)
        return None if wanted is None or got is None else self.symbolic(wanted, got)

    # -- collections --------------------------------------------------------------------------

    def _collections(self, gold: Node, pred: Node) -> Tri:
        if isinstance(gold, Bracket) and isinstance(pred, Bracket):
            return self._brackets(gold, pred)
        if isinstance(gold, BareList) and isinstance(pred, BareList):
            if all(isinstance(item, Bracket) for item in (*gold.items, *pred.items)):
                # Solutions of a system: repeating one changes nothing.
                return self._lists(_distinct(self, gold.items), _distinct(self, pred.items), False)
            if {gold.joint, pred.joint} == {"and", "or"} and all(map(_is_symbolic, gold.items)):
                return False  # "p and q" is not "p or q", though "1 and 2" may be "1 or 2"
            return self._lists(gold.items, pred.items, self.policy.ordered_lists)
        if isinstance(gold, BareList) and isinstance(pred, Bracket):
            return self._list_and_bracket(gold, pred)
        if isinstance(gold, Bracket) and isinstance(pred, BareList):
            return self._list_and_bracket(pred, gold, swapped=True)
        if _is_singleton(gold):
            return self.same(gold.items[0], pred)  # type: ignore[union-attr]
        if _is_singleton(pred):
            return self.same(gold, pred.items[0])  # type: ignore[union-attr]
        return False

    def _brackets(self, gold: Bracket, pred: Bracket) -> Tri:
        sets = gold.opening == "\\{", pred.opening == "\\{"
        if gold.opening == pred.opening == ":":
            return self._ratios(gold, pred)
        if all(sets):
            return self._lists(_distinct(self, gold.items), _distinct(self, pred.items), False)
        if any(sets):
            if not self.policy.set_for_tuple:
                return False
            return self._lists(gold.items, pred.items, True)
        if (gold.opening, gold.closing) != (pred.opening, pred.closing):
            return False
        return self._lists(gold.items, pred.items, True)

    def _ratios(self, gold: Bracket, pred: Bracket) -> Tri:
        """Compare ``2:3:5`` and ``4:6:10`` term by term, up to one common factor."""
        if len(gold.items) != len(pred.items):
            return False
        wanted, got = ([_tree(item) for item in side.items] for side in (gold, pred))
        crossed = zip(wanted[1:], got[1:], strict=True)
        zero: Tree = ("num", Fraction(0), False)
        if any(same_value(side[0], zero, self.policy) for side in (wanted, got)):
            return None  # zero cannot be scaled
        return all(
            same_value(("mul", one, got[0]), ("mul", other, wanted[0]), self.policy)
            for one, other in crossed
        )

    def _list_and_bracket(self, items: BareList, bracket: Bracket, swapped: bool = False) -> Tri:
        named = _by_name(items.items) if bracket.opening == "(" else items.items
        pairs = (bracket.items, named) if swapped else (named, bracket.items)
        if bracket.opening == "\\{":
            return self._lists(*pairs, self.policy.ordered_lists)
        if not self.policy.tuple_without_brackets or (swapped and items.joint == "or"):
            return False
        if bracket.opening == "(" or len(bracket.items) > 2 or not swapped:
            return self._lists(*pairs, True)
        return False

    def _lists(self, gold: Sequence[Node], pred: Sequence[Node], ordered: bool) -> Tri:
        """Match items one to one, in order or as multisets."""
        if len(gold) != len(pred):
            return False
        if ordered:
            return _all(self.same(one, other) for one, other in zip(gold, pred, strict=True))
        rest, unsure = list(pred), False
        for one in gold:
            for index, other in enumerate(rest):
                verdict = self.same(one, other)
                unsure = unsure or verdict is None
                if verdict:
                    del rest[index]
                    break
            else:
                return None if unsure else False
        return True

    def _matrices(self, gold: Node, pred: Node) -> Tri:
        if isinstance(gold, Matrix) and isinstance(pred, Matrix):
            if _is_determinant(gold) != _is_determinant(pred):
                return False
            shapes = [[len(row) for row in matrix.rows] for matrix in (gold, pred)]
            if shapes[0] != shapes[1]:
                return False
            pairs = zip(_cells(gold), _cells(pred), strict=True)
            return _all(self.same(one, other) for one, other in pairs)
        matrix, other = (gold, pred) if isinstance(gold, Matrix) else (pred, gold)
        assert isinstance(matrix, Matrix)
        if isinstance(other, Text) and not other.is_words:
            return None
        if isinstance(other, Value) and other.tree[:2] == (
            "fn",
            "binom",
        ):  # a column written as a list
            return self._lists(_vector(matrix), [Value(part, "") for part in other.tree[2:]], True)
        if not isinstance(other, Bracket | BareList) or _is_determinant(matrix):
            return False
        if isinstance(other, Bracket) and other.opening == "\\{":
            return False
        cells: Sequence[Node] = _vector(matrix)
        if not cells:
            return False
        if matrix is gold:
            return self._lists(cells, other.items, True)
        return self._lists(other.items, cells, True)

    # -- sets of reals ------------------------------------------------------------------------

    def _regions(self, gold: Node, pred: Node) -> Tri:
        if _are_brackets(gold) and _are_brackets(pred):
            # Points may look like intervals; a list of either is compared item by item.
            return self._lists(gold.items, pred.items, self.policy.ordered_lists)
        wanted, got = region(gold), region(pred)
        if wanted is not None and got is not None:
            if same_region(open_at_infinity(wanted), got, self.policy):
                return True
            if not isinstance(gold, Relation) and not isinstance(pred, Relation):
                return False
        if isinstance(gold, Bracket) and isinstance(pred, Bracket):
            return self._brackets(gold, pred)
        if isinstance(gold, BareList) and isinstance(pred, BareList):
            return self._lists(gold.items, pred.items, self.policy.ordered_lists)
        return False if wanted is not None and got is not None else None

    # -- relations ----------------------------------------------------------------------------

    def _relations(self, gold: Node, pred: Node) -> Tri:
        if is_region_like(gold) or is_region_like(pred):
            return self._inequalities(gold, pred)
        if isinstance(gold, Relation) and isinstance(pred, Relation):
            return self._equations(gold, pred)
        if isinstance(gold, Relation) and isinstance(pred, BareList):
            wanted = one_by_one(gold)
            if wanted and all(isinstance(item, Relation) for item in pred.items):
                return self._lists(wanted, pred.items, False)
        if isinstance(gold, BareList) and isinstance(pred, Relation):
            got = one_by_one(pred)
            if got and len(got) == len(gold.items) and len(pred.parts) > 2:
                return self._lists(gold.items, got, False)
        if isinstance(gold, Relation):
            members = stated_values(gold)
            if members is None:
                if _is_true_arithmetic(self, gold):
                    return self.same(before_approximation(gold, 0)[-1], pred)
                return False
            return self.same(members[-1], pred)
        assert isinstance(pred, Relation)
        return self._value_and_chain(gold, pred)

    def _value_and_chain(self, gold: Node, pred: Relation) -> Tri:
        """Compare a value with ``x = 3``, ``2 + 1 = 3`` or ``x = 2 + 1 = 3``."""
        members = stated_values(pred)
        if not _is_honest(pred, members):
            return False
        if members is None:
            numeric = isinstance(gold, Value) and not symbols(gold.tree)
            if numeric and any(map(_states_something, pred.parts)):
                return False
            members = before_approximation(pred, 0)
        if self.policy.chain == "last":
            return self.same(gold, members[-1])
        last = self.same(gold, members[-1])
        if not last:
            return last
        if isinstance(gold, Value) and not symbols(gold.tree):
            if not all(map(_is_calculation, members)):
                return False
            checked = [part for part in members[:-1] if not _has_symbols(part)]
        else:
            checked = members[:-1]
        return _all(self.same(gold, part) for part in checked)

    def _equations(self, gold: Relation, pred: Relation) -> Tri:
        wanted, got = stated_values(gold), stated_values(pred)
        if wanted is not None and got is not None:
            names = label_of(gold), label_of(pred)
            if label_letters(names[0]) == label_letters(names[1]) or all(
                is_function_label(name) for name in names
            ):
                verdict = self._value_and_chain(wanted[-1], pred)
                if verdict is not False:
                    return verdict
        if len(gold.parts) == len(pred.parts) == 2 and gold.signs == pred.signs:
            return self._two_sided(gold, pred)
        if len(gold.parts) == len(pred.parts) and gold.signs == pred.signs:
            return _all(
                self.same(one, other) for one, other in zip(gold.parts, pred.parts, strict=True)
            )
        return False

    def _two_sided(self, gold: Relation, pred: Relation) -> Tri:
        """Compare two equations (or inequalities) as zero sets: they may differ by a constant
        factor."""
        differences = [difference(relation) for relation in (gold, pred)]
        if differences[0] is None or differences[1] is None:
            pairs = zip(gold.parts, pred.parts, strict=True)
            return _all(self.same(one, other) for one, other in pairs)
        return same_up_to_factor(differences[0], differences[1], gold.signs[0] != "=")

    def _inequalities(self, gold: Node, pred: Node) -> Tri:
        if isinstance(gold, Relation) and isinstance(pred, Relation):
            direct = self._direct_inequalities(gold, pred)
            if direct:
                return True
            if variables(gold) != variables(pred):
                return direct
        if isinstance(gold, Relation) and gold.signs == ("=",) and stated_values(gold) is not None:
            return self.same(gold.parts[-1], pred)
        if isinstance(pred, Relation) and pred.signs == ("=",) and stated_values(pred) is not None:
            return self.same(gold, pred.parts[-1])
        if isinstance(gold, Value | Percent) or isinstance(pred, Value | Percent):
            return False
        return self._regions(gold, pred)

    def _direct_inequalities(self, gold: Relation, pred: Relation) -> Tri:
        """Compare inequalities sign by sign, also when read from right to left or with many
        variables."""
        pairs = [directed(gold), directed(pred)]
        if pairs[0] is None or pairs[1] is None or len(pairs[0]) != len(pairs[1]):
            return None if None in pairs else False
        for (kind, wanted), (other_kind, got) in zip(pairs[0], pairs[1], strict=True):
            if kind != other_kind or not same_up_to_factor(wanted, got, kind != "!="):
                return False
        return True


def text_of(node: Node) -> str | None:
    """Return how a leaf was written, or ``None`` for a node that is not a leaf."""
    return node.text if isinstance(node, Value | Text) else None


def _all(verdicts: Iterable[Tri]) -> Tri:
    """Combine verdicts: False wins, then ``None``."""
    unsure = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unsure = unsure or verdict is None
    return None if unsure else True


def _scaled(value: Value, factor: Fraction) -> Value:
    tree: Tree = ("mul", value.tree, ("num", factor, False))
    return Value(tree, "", value.unit)


def _with_letter(value: Value, unit: str) -> Value | None:
    """Read the letter after a number as a unit if it can be the one that the other side has."""
    read = with_unit(value.text, split_letter_unit) if unit else None
    return read if read is not None and is_measured_alike(unit, read.unit) else None


def _unit_of(value: Value) -> str:
    """Return the unit, including a degree sign at the end: 60 degrees are not 60 radians."""
    return "degree" if not value.unit and value.text.rstrip().endswith("°") else value.unit


def _named_number(text: Text) -> Value | None:
    """Read "twenty-one", "twelve apples" and "negative infinity" as values."""
    said = words(text.text)
    if said in _INFINITIES:
        return Value(_INFINITIES[said], said)
    counted, _, noun = said.rpartition(" ")
    for name, unit in ((said, ""), (counted, noun)):
        number = number_in_words(name)
        if number is not None and not (unit in _NO_NOUN or (unit and number_in_words(unit))):
            return Value(("num", number, False), str(number), unit)
    return None


_INFINITY: Tree = ("const", "inf")
_INFINITIES: dict[str, Tree] = {
    "infinity": _INFINITY,
    "positive infinity": _INFINITY,
    "negative infinity": ("neg", _INFINITY),
    "minus infinity": ("neg", _INFINITY),
}
_NO_NOUN = {"more", "less", "hundred", "thousand", "million", "dozen", "percent", "or", "and"}


def _by_name(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """Put "y = 2, x = 1" in the order of coordinates."""
    names = [item.texts[0] if isinstance(item, Relation) else "" for item in items]
    if not set(names) <= set("xyz") or len(set(names)) < len(names):
        return items
    return tuple(items[names.index(name)] for name in sorted(names))


def _distinct(comparer: Comparer, items: Sequence[Node]) -> list[Node]:
    kept: list[Node] = []
    for item in items:
        if not any(comparer.same(other, item) for other in kept):
            kept.append(item)
    return kept


def _tree(node: Node) -> Tree:
    assert isinstance(node, Value)
    return node.tree


def _are_brackets(node: Node) -> TypeGuard[BareList]:
    return isinstance(node, BareList) and all(isinstance(item, Bracket) for item in node.items)


def _is_singleton(node: Node) -> bool:
    return isinstance(node, Bracket) and node.opening == "\\{" and len(node.items) == 1


def _is_determinant(matrix: Matrix) -> bool:
    return matrix.environment.rstrip("*") in ("vmatrix", "Vmatrix")


def _cells(matrix: Matrix) -> list[Node]:
    return [cell for row in matrix.rows for cell in row]


def _vector(matrix: Matrix) -> list[Node]:
    """Return the entries of a row or column; the rows of a larger matrix as brackets."""
    if len(matrix.rows) == 1 or all(len(row) == 1 for row in matrix.rows):
        return _cells(matrix)
    return [Bracket("[", "]", row) for row in matrix.rows]


def _is_symbolic(node: Node) -> bool:
    return isinstance(node, Value) and bool(symbols(node.tree))


def _has_symbols(node: Node) -> bool:
    if isinstance(node, Percent):
        node = node.value
    return (isinstance(node, Value) and bool(symbols(node.tree))) or not isinstance(node, Value)


def _states_something(node: Node) -> bool:
    """Tell whether a side of ``... = 3`` has unknowns, so that the whole is not a value.

    Unsupported notation (a limit, a determinant) counts as a calculation.
    """
    if isinstance(node, Percent):
        node = node.value
    if isinstance(node, Value):
        return bool(symbols(node.tree))
    if isinstance(node, Text):
        return node.is_words or is_malformed(node.text)
    return not isinstance(node, Matrix)


def _is_calculation(node: Node) -> bool:
    """Tell whether a member of a chain can have a value: it is not malformed or denied."""
    return not isinstance(node, Text) or not (is_malformed(node.text) or DENIAL.search(node.text))


def _is_honest(relation: Relation, members: Sequence[Node] | None) -> bool:
    """Tell whether the members after an approximation sign are near the exact ones before it."""
    exact = (members or before_approximation(relation, 0))[-1]
    return all(
        part is exact or _approximates(exact, part, text) for part, text in approximations(relation)
    )


def _approximates(exact: Node, part: Node, text: str) -> bool:
    """Tell whether one node, written so, can stand behind an approximation sign."""
    if isinstance(part, Text) and _CONTINUED.search(text):
        return _approximates(exact, read(_CONTINUED.sub("", text)), _CONTINUED.sub("", text))
    if isinstance(part, Percent):
        per_cent = exact.value if isinstance(exact, Percent) else exact
        if isinstance(exact, Value):
            per_cent = _scaled(exact, Fraction(100))
        return _approximates(per_cent, part.value, text.rstrip(" %"))
    if isinstance(exact, Percent):
        return _approximates(_scaled(exact.value, Fraction(1, 100)), part, text)
    if isinstance(exact, Value) and isinstance(part, Value):
        return exact.tree == part.tree or is_near(exact.tree, part.tree, text)
    if isinstance(exact, Matrix) and isinstance(part, Matrix):
        pairs = _cells(exact), _cells(part)
    elif isinstance(exact, Bracket | BareList) and isinstance(part, Bracket | BareList):
        if _kind(exact) != _kind(part):
            return False
        pairs = list(exact.items), list(part.items)
    else:
        return False
    return len(pairs[0]) == len(pairs[1]) and all(
        _approximates(one, other, text_of(other) or "") for one, other in zip(*pairs, strict=True)
    )


def _kind(node: Bracket | BareList) -> tuple[str, str]:
    return (node.opening, node.closing) if isinstance(node, Bracket) else ("", "")


_CONTINUED = re.compile(r"(?:\\ldots|\.{3})\s*+\Z")  # 0.333...


def _is_true_arithmetic(comparer: Comparer, relation: Relation) -> bool:
    """Tell whether a chain has numbers only, like ``2 + 1 = 3``."""
    if any(_has_symbols(part) for part in relation.parts) or not set(relation.signs) <= {"=", "~"}:
        return False
    exact = before_approximation(relation, 0)
    return bool(_all(comparer.same(exact[-1], part) for part in exact))
