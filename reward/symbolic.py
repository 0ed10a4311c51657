r"""math-verify as the judge of last resort, on single expressions that this package cannot read.

It is called with LaTeX extraction only, so that an unparsable answer never collapses to a number
inside it, in its argument order (gold first), and without its own timeouts: those are alarms that
work in a main thread only and cancel the caller's; the worker process has one alarm over all.

Before it is called, a lexical screen refuses what is known to run away: unevaluated sums and
integrals against a reference without one, towers of powers, huge exponents and factorials, deep
nesting.
"""

import logging
import re

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, MatrixBase, nan, zoo

from reward.limits import TooHard
from reward.tokens import FUNCTIONS, GREEK

MAX_CHARACTERS = 400
MAX_NESTING = 12
_CONFIG = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=True)]
_OPERATORS = ("\\int", "\\sum", "\\prod", "\\lim", "\\iint", "\\oint")
_HARD = [
    (re.compile(r"\^\s*\{?\s*[-+]?\d{4,}"), "an exponent of four digits"),
    (re.compile(r"\^\s*\{[^{}]*\^|\^[^{}\s]\^"), "a tower of powers"),
    (re.compile(r"\d{3,}\s*\)?\s*!|!\s*\)?\s*!"), "a large factorial"),
    (re.compile(r"\d{200,}"), "a number of too many digits"),
    (re.compile(r"\\(?:d|t)?binom\s*\{\s*[^{}]*\d{4,}"), "a large binomial"),
]
_READ = "|".join(
    sorted([*GREEK, *FUNCTIONS, "frac", "binom", "sqrt", "pi", "infty", "lfloor", "rfloor", "lceil",
            "rceil", "overline", "vec", "hat", "bar", "text", "prime", "approx", "le", "ge", "ne",
            "in", "cup", "mathbb", "emptyset", "setminus", "pm", "mp"])
)  # fmt: skip
_UNREAD = re.compile(rf"\\(?!(?:{_READ})(?![A-Za-z]))[A-Za-z]+|\|")
for _name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def screen(pred: str, gold: str) -> None:
    """Refuse an expression that math-verify should not be asked about.

    Raises:
        TooHard: with the reason in words.
    """
    if len(pred) > MAX_CHARACTERS or len(gold) > 2 * MAX_CHARACTERS:
        raise TooHard("an expression too long for symbolic comparison")
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
    """Tell whether braces close in order; what does not parse, math-verify reads in part."""
    level = 0
    for token in re.findall(r"\\.|[{}]", text, re.DOTALL):
        level += (token == "{") - (token == "}")
        if level < 0:
            return False
    return level == 0 and len(re.findall(r"\\\{", text)) == len(re.findall(r"\\\}", text))


def symbolic_equal(gold: str, pred: str) -> bool | None:
    """Compare two LaTeX expressions; ``None`` when one of them does not parse.

    Raises:
        TooHard: when the screen refuses the answer.
    """
    if not (_UNREAD.search(gold) or _UNREAD.search(pred)):
        # Only known notation, so it is malformed; math-verify would read a part of it.
        return None
    screen(pred, gold)
    if not _balanced(pred) or not _balanced(gold):
        return None
    wanted, got = _parsed(f"${gold}$"), _parsed(f"\\boxed{{{pred}}}")
    if wanted is None or got is None or got in (nan, zoo):
        return None
    return bool(
        verify(wanted, got, float_rounding=12, allow_set_relation_comp=True, timeout_seconds=None)
    )


def _parsed(text: str) -> Basic | MatrixBase | None:
    found = parse(text, _CONFIG, extraction_mode="first_match", parsing_timeout=None)
    return next((item for item in found if isinstance(item, Basic | MatrixBase)), None)
