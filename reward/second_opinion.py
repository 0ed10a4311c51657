r"""A second judge of mathematics, to see how often the verifier is wrong.

It reads the answer where the verifier does (`reward.extract`), and the lexical screen that keeps
symbolic algebra from hanging is the same (`reward.symbolic.screen`). Everything else is other code:
math-verify's parser reads both texts, and two paths compare what it read, math-verify's ``verify``
and, below, sympy by value. There is a verdict only if both say the same; if they contradict each
other or sympy cannot tell, there is none.

math-verify leaves out what it does not know, so texts with anything outside a list of notation are
not judged either (`unreadable`): words, units, percent and degree signs, bases, times, chains.

The judge does not know the verifier's conventions (`GradingPolicy`), so where it contradicts, that
is evidence and no proof.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import replace

from sympy import (
    Abs,
    Basic,
    Eq,
    Expr,
    FiniteSet,
    Float,
    I,
    Interval,
    MatrixBase,
    N,
    Rational,
    Set,
    Symbol,
    Tuple,
    im,
    nan,
    oo,
    zoo,
)

from reward.extract import extract, last_box
from reward.library import latex_alone, math_verify
from reward.limits import TooHard
from reward.symbolic import screen
from reward.verdict import DEFAULT, Grade, GradingPolicy

DIGITS = 50
_EXACT = 1e-40
"""Largest relative difference between two exact values, which are computed to `DIGITS`."""
_ZERO = 1e-90
POINTS = 16
ENOUGH = 5
"""Points at which two expressions must have real values to be called equal."""
MAX_NAMES = 6
MAX_OPERATIONS = 300

_COMMAND = re.compile(r"\\[A-Za-z]+|\\[{}\\,;! ]")
_KNOWN = re.compile(
    r"\\(?:[dtc]?frac|sqrt|pi|cdot|times|div|left|right|infty|pm|d?binom|begin|end"
    r"|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|ln|log|exp|[lr]floor|[lr]ceil"
    r"|alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|[{}\\,;! ])"
)
_CHARACTERS = re.compile(r"[0-9A-Za-z\s+\-*/^_(){}\[\]=<>|.,!&]*")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[bpv]?matrix\}")
_WORD = re.compile(r"[A-Za-z]{2,}")
_NAME = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
"""A letter that stands alone: where x and y do, xy is their product and no unit."""
_SPACE = r"(?:\s|\\[,;! ])"
_MISREAD = (
    (re.compile(r"=[^=]*="), "a chain of equations"),
    (re.compile(r"\d\s*_"), "a base"),
    (re.compile(r"\d[eE][-+]?\d|\d\s*x\s*\d"), "a number with an exponent in letters"),
    (re.compile(rf"\d{_SPACE}+\d|(?<!\d)0,\d|\d,!"), "digits in groups"),
    (re.compile(r"\\infty\s*(?:\\right)?\]|\[\s*-\\infty"), "an interval that holds infinity"),
)
_UNIT_LETTERS = frozenset("mgshLNKJWVACFTPdltk")


def second_opinion(response: str, gold: str, policy: GradingPolicy = DEFAULT) -> Grade:
    """Judge a response by another path than the verifier's.

    Args:
        response: what the model wrote; if the prompt left a thought open, with its marker in front.
        gold: the reference answer; it may be in a box or in dollar signs.
        policy: which answer counts, and how far a decimal may be off; nothing else of it is used.

    Returns:
        A verdict with the status ``ok``, or one that says why there is none: ``no_answer``,
        ``unparsable_pred``, ``unparsable_gold``, or ``uncertain`` if the two paths contradict each
        other.
    """
    found = extract(response, policy.extraction, policy.join_boxes, policy.thoughts)
    if found.answer is None:
        return Grade(False, None, "unknown", "extract", found.reason, "no_answer")
    pred, wanted = _bare(found.answer), _bare(last_box(gold) or gold)
    reason = None if pred == wanted else unreadable(pred, wanted)
    if reason is not None:
        return Grade(False, pred, "unknown", "screen", reason, "unparsable_pred")
    return _in_brackets(pred, wanted, policy.relative_tolerance)


def unreadable(pred: str, gold: str) -> str | None:
    """Say what math-verify would misread in one of two texts, or ``None``."""
    for text in (pred, gold):
        reason = _unknown_notation(text)
        if reason is not None:
            return reason
    names = {*_NAME.findall(f"{pred} {gold}")}
    odd = [sorted(word for word in _words(text) if not {*word} <= names) for text in (pred, gold)]
    if odd[0] != odd[1]:
        return "letters side by side that are no names, and that the other text has not"
    try:
        screen(pred, gold)
    except TooHard as hard:
        return str(hard)
    return None


def _unknown_notation(text: str) -> str | None:
    unknown = [command for command in _COMMAND.findall(text) if not _KNOWN.fullmatch(command)]
    if unknown:
        return f"unknown notation {unknown[0]}"
    plain = _COMMAND.sub(" ", _ENVIRONMENT.sub(" ", text))
    if not _CHARACTERS.fullmatch(plain):
        return "unknown signs"
    if any(len(word) > 2 for word in _words(text)) or re.fullmatch(r"\(?[A-Z]\)?", text):
        return "words or letters of a choice"
    return next((what for pattern, what in _MISREAD if pattern.search(text)), None)


def _words(text: str) -> list[str]:
    return _WORD.findall(_COMMAND.sub(" ", _ENVIRONMENT.sub(" ", text)))


def _bare(text: str) -> str:
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == "$" and text[-2] != "\\":
        text = text.strip("$")
    return " ".join(text.split())


def _in_brackets(pred: str, gold: str, tolerance: float) -> Grade:
    """Compare tuples and intervals bracket by bracket and item by item, everything else whole.

    math-verify reads both (2, 1) and (4, 3) as an interval without a number in it.
    """
    wanted, got = _items(gold), _items(pred)
    if wanted is None or got is None:
        return _compared(pred, gold, tolerance)
    if wanted[:2] != got[:2] or len(wanted[2]) != len(got[2]):
        return Grade(False, pred, "brackets", "brackets", "other brackets, or more or fewer items")
    pairs = zip(got[2], wanted[2], strict=True)
    verdicts = [_in_brackets(one.strip(), other.strip(), tolerance) for one, other in pairs]
    # One item that differs is enough; otherwise one of which nothing is known.
    order = sorted(verdicts, key=lambda one: (one.status != "ok") + 2 * one.correct)
    return replace(order[0], extracted=pred, kind="brackets")


def _items(text: str) -> tuple[str, str, list[str]] | None:
    """The outer brackets of ``(a, b)`` or ``[a, b)`` and what they hold, or ``None``."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])\s*", "", text).strip()
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]"):
        return None
    items, level, start = [], 0, 1
    for index, character in enumerate(text):
        level += (character in "([{") - (character in ")]}")
        if level == 0 and index < len(text) - 1:
            return None
        if level == 1 and character == ",":
            items.append(text[start:index])
            start = index + 1
    return (text[0], text[-1], [*items, text[start:-1]]) if items else None


def _compared(pred: str, gold: str, tolerance: float) -> Grade:
    if pred == gold:
        return Grade(True, pred, "unknown", "text", "the same text")
    wanted, got = _parsed(gold), _parsed(pred)
    if wanted is None:
        reason = "the reference does not parse"
        return Grade(False, pred, "unknown", "parse", reason, "unparsable_gold")
    if got is None:
        return Grade(False, pred, "unknown", "parse", "does not parse", "unparsable_pred")
    kind = type(wanted).__name__
    by_value = by_sympy(wanted, got, tolerance)
    if by_value is None:
        reason = "values do not tell"
        return Grade(False, pred, kind, "sympy", reason, "unparsable_pred")
    options = {"allow_set_relation_comp": True, "timeout_seconds": None}
    other = math_verify().verify(wanted, got, **options)
    if by_value != bool(other):
        reason = f"sympy: {_called(by_value)}; math-verify: {_called(bool(other))}"
        return Grade(False, pred, kind, "sympy and math-verify", reason, "uncertain")
    return Grade(by_value, pred, kind, "sympy and math-verify", _called(by_value))


def _called(equal: bool) -> str:
    return "equal" if equal else "different"


def _parsed(text: str) -> Basic | MatrixBase | None:
    """What math-verify reads; None also where it, or sympy, has left a part of the text away."""
    options = {"extraction_mode": "first_match", "parsing_timeout": None}
    found = math_verify().parse(f"${text}$", latex_alone(), **options)
    read = next((item for item in found if isinstance(item, Basic | MatrixBase)), None)
    if isinstance(read, FiniteSet) and len(read) != text.count(",") + 1 + text.count("\\pm"):
        return None  # a set forgets how often it was told a member
    if isinstance(read, Set) and read.is_empty:
        return None  # (4, -1) as an interval
    return None if read is None or _lost_letters(text, read) else read


def _lost_letters(text: str, read: Basic | MatrixBase) -> bool:
    """Whether a letter of the text is in none of the names, as a unit that was dropped."""
    letters = {*re.findall(r"[a-z]", _COMMAND.sub(" ", _ENVIRONMENT.sub(" ", text)).lower())}
    names = "".join(name.name for name in read.free_symbols).lower()
    return any(letter not in names for letter in letters - {"e", "i"})


def by_sympy(
    wanted: Basic | MatrixBase, got: Basic | MatrixBase, tolerance: float = 1e-6
) -> bool | None:
    """Compare two parsed answers by their values; ``None`` if these do not tell.

    Args:
        wanted: the reference.
        got: the answer.
        tolerance: largest relative difference if either side has a decimal.
    """
    wanted, got = _value_of(wanted, got), _value_of(got, wanted)
    if isinstance(wanted, MatrixBase) and isinstance(got, MatrixBase):
        return wanted.shape == got.shape and _members(wanted.flat(), got.flat(), tolerance)
    if isinstance(wanted, Interval) and isinstance(got, Interval):
        if (wanted.left_open, wanted.right_open) != (got.left_open, got.right_open):
            return False
        return _members((wanted.start, wanted.end), (got.start, got.end), tolerance)
    if isinstance(wanted, Tuple) and isinstance(got, Tuple):
        return len(wanted) == len(got) and _members(wanted, got, tolerance)
    if isinstance(wanted, FiniteSet) and isinstance(got, FiniteSet):
        return _sets(list(wanted), list(got), tolerance)
    if isinstance(wanted, Expr) and isinstance(got, Expr):
        return _values(wanted, got, tolerance)
    return True if wanted == got else None


def _value_of(one: Basic | MatrixBase, other: Basic | MatrixBase) -> Basic | MatrixBase:
    """The right side of ``x = 5`` if the other text is a bare value, or says the same of x."""
    named = isinstance(one, Eq) and isinstance(one.lhs, Symbol)
    return one.rhs if named and (not isinstance(other, Eq) or other.lhs == one.lhs) else one


def _members(wanted: Iterable[Basic], got: Iterable[Basic], tolerance: float) -> bool | None:
    verdicts = [by_sympy(*pair, tolerance) for pair in zip(wanted, got, strict=True)]
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _sets(wanted: list[Basic], got: list[Basic], tolerance: float) -> bool | None:
    """Whether each member has one that equals it on the other side."""
    left = list(got)
    for member in wanted:
        verdicts = [by_sympy(member, other, tolerance) for other in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            return None
        else:
            return False
    return not left


def _values(wanted: Expr, got: Expr, tolerance: float) -> bool | None:
    """Compare two expressions: by value if they have no names, otherwise at points."""
    wanted, got = _with_imaginary_unit(wanted), _with_imaginary_unit(got)
    if wanted == got:
        return True
    names = [{name.name for name in side.free_symbols} for side in (wanted, got)]
    both, alone = names[0] | names[1], names[0] ^ names[1]
    if alone and alone <= _UNIT_LETTERS:
        return None
    if len(both) > MAX_NAMES or max(wanted.count_ops(), got.count_ops()) > MAX_OPERATIONS:
        return None
    near = tolerance if wanted.has(Float) or got.has(Float) else _EXACT
    if not {wanted, got}.isdisjoint((oo, -oo)):
        return None if {wanted, got} & {zoo, nan} else False
    if not both:
        return _near(_number(wanted), _number(got), near)
    symbols = sorted(wanted.free_symbols | got.free_symbols, key=str)
    return _at_points(wanted, got, symbols, near)


def _with_imaginary_unit(side: Expr) -> Expr:
    return side.xreplace({name: I for name in side.free_symbols if name.name == "i"})


def _at_points(wanted: Expr, got: Expr, symbols: list[Basic], near: float) -> bool | None:
    """Compare at rational points, half of them positive; where a side is not real does not count.

    The points are drawn for the pair, so the same pair has always the same verdict.
    """
    generator, found = random.Random(f"{wanted} {got}"), 0
    for index in range(POINTS):
        signs = (1,) if 2 * index < POINTS else (1, -1)
        point = {
            name: Rational(generator.choice(signs) * generator.randint(20, 400), 97)
            for name in symbols
        }
        one, other = _number(wanted.subs(point)), _number(got.subs(point))
        if _real(one, near) and _real(other, near):
            if not _near(one, other, near):
                return False
            found += 1
    return True if found >= ENOUGH else None


def _number(expression: Basic) -> Expr | None:
    """A finite complex number in `DIGITS` digits."""
    value = N(expression.doit(), DIGITS)
    return value if value.is_number and value.is_finite else None


def _real(value: Expr | None, near: float) -> bool:
    return value is not None and bool(Abs(im(value)) < near)


def _near(wanted: Expr | None, got: Expr | None, near: float) -> bool | None:
    if wanted is None or got is None:
        return None
    apart, size = N(Abs(wanted - got), DIGITS), max(N(Abs(wanted)), N(Abs(got)))
    return bool(apart <= near * size + _ZERO)
