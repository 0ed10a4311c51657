r"""Use math-verify as a last resort, for single expressions that this package cannot read.

It is called with LaTeX extraction only, so that an unparsable answer is never reduced to a number
inside it, in its argument order (gold first), and without its own timeouts: those are alarms that
work only in a main thread and cancel the caller's alarm; the worker process has one alarm for
everything.

Before the call, a lexical screen refuses expressions that are known to take forever: unevaluated
sums and integrals if the reference has none, towers of powers, huge exponents and factorials, deep
nesting, many more names and functions than the reference has.
"""

import re

from sympy import Basic, MatrixBase, nan, zoo

from reward.library import latex_alone, math_verify
from reward.limits import TooHard
from reward.tokens import HEDGES, UNREAD

MAX_CHARACTERS = 400
MAX_NESTING = 12
MAX_PIECES = 40
_OPERATORS = ("\\int", "\\sum", "\\prod", "\\lim", "\\iint", "\\oint")
_HARD = [
    (re.compile(r"\^\s*+\{?\s*+[-+]?\d{4}"), "an exponent with four digits"),
    (re.compile(r"\^\s*+\{[^{}^]*+\^|\^[^{}\s]\^"), "a tower of powers"),
    (re.compile(r"(?<!\d)\d{3,}+\s*+\)?\s*+!|!\s*+\)?\s*+!"), "a large factorial"),
    (re.compile(r"(?<!\d)\d{200}"), "a number with too many digits"),
    (re.compile(r"\\[dt]?binom\s*+\{[^{}]*?\d{4}"), "a large binomial"),
]
_PIECE = re.compile(r"\\[A-Za-z]++|[A-Za-z]")
# Commands that math-verify skips, though they say something.
_SKIPPED = re.compile(rf"\\ldots(?![A-Za-z])|{HEDGES.pattern}")
_GLUED = re.compile(r"\\(?:frac|sqrt|binom|[lr]floor|[lr]ceil)[A-Za-z]")  # \rfloorx is no command


def screen(pred: str, gold: str) -> None:
    """Refuse an expression that must not be given to math-verify.

    Raises:
        TooHard: with the reason in words.
    """
    if len(pred) > MAX_CHARACTERS or len(gold) > 2 * MAX_CHARACTERS:
        raise TooHard("an expression too long for symbolic comparison")
    pieces = [len(_PIECE.findall(text)) for text in (pred, gold)]
    if pieces[0] > max(MAX_PIECES, 2 * pieces[1]) or pieces[1] > 2 * MAX_PIECES:
        raise TooHard("too many names and functions for symbolic comparison")
    for operator in _OPERATORS:
        if operator in pred and operator not in gold:
            raise TooHard(f"an unevaluated {operator[1:]}")
    for text in (pred, gold):
        for pattern, what in _HARD:
            if pattern.search(text):
                raise TooHard(what)
        if _nesting(text) > MAX_NESTING:
            raise TooHard("nesting too deep")


def _nesting(text: str) -> int:
    level = deepest = 0
    for character in text:
        level += (character in "({[") - (character in ")}]")
        deepest = max(deepest, level)
    return deepest


def _balanced(text: str) -> bool:
    """Tell whether braces close in order; math-verify reads a part of malformed expressions."""
    level = 0
    for token in re.findall(r"\\.|[{}]", text, re.DOTALL):
        level += (token == "{") - (token == "}")
        if level < 0:
            return False
    return level == 0 and len(re.findall(r"\\\{", text)) == len(re.findall(r"\\\}", text))


def symbolic_equal(gold: str, pred: str) -> bool | None:
    """Compare two LaTeX expressions; ``None`` if one of them does not parse.

    Raises:
        TooHard: if the screen refuses the answer.
    """
    bars = "|" in gold and "|" not in pred
    if not (bars or UNREAD.search(gold) or UNREAD.search(pred)):
        # It uses only known notation, so it is malformed; math-verify would read a part of it.
        return None
    if _GLUED.search(pred) or _GLUED.search(gold):
        return None
    if {*_SKIPPED.findall(pred)} - {*_SKIPPED.findall(gold)}:
        return None
    screen(pred, gold)
    if not _balanced(pred) or not _balanced(gold):
        return None
    wanted, got = _parsed(f"${gold}$"), _parsed(f"\\boxed{{{pred}}}")
    if wanted is None or got is None or got in (nan, zoo):
        return None
    options = {"float_rounding": 12, "allow_set_relation_comp": True, "timeout_seconds": None}
    return bool(math_verify().verify(wanted, got, **options))


def _parsed(text: str) -> Basic | MatrixBase | None:
    options = {"extraction_mode": "first_match", "parsing_timeout": None}
    found = math_verify().parse(text, latex_alone(), **options)
    return next((item for item in found if isinstance(item, Basic | MatrixBase)), None)
