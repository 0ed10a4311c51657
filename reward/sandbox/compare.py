"""When an output or a result is the expected one."""

import math
import re

TOLERANCE = 1e-6
"""Relative, and absolute below 1, where the expected number is written as a decimal."""
_DECIMAL = re.compile(r"[-+]?+(?:\d++\.\d*+|\.\d++|\d++(?=[eE]))(?:[eE][-+]?+\d{1,4}+)?+")
_NUMBER = re.compile(r"[-+]?+(?:\d{1,400}+\.?+\d*+|\.\d++)(?:[eE][-+]?+\d{1,4}+)?+")


def same_output(got: str, expected: str) -> bool:
    """Whether two texts are the same line by line.

    White space at the ends of lines and empty lines at the end do not count, nor how much white
    space there is within a line; words are compared as they stand. Where the expected word is a
    decimal number, a number within the tolerance of it will do.
    """
    ours, theirs = _lines(got), _lines(expected)
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _lines(text: str) -> list[list[str]]:
    lines = [line.split() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_line(got: list[str], expected: list[str]) -> bool:
    return len(got) == len(expected) and all(map(_same_word, got, expected))


def _same_word(got: str, expected: str) -> bool:
    if got == expected:
        return True
    if not (_DECIMAL.fullmatch(expected) and _NUMBER.fullmatch(got)):
        return False
    return _near(float(got), float(expected))


def _near(got: float, expected: float) -> bool:
    return math.isfinite(got) and math.isclose(got, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def same_result(got: object, expected: object) -> bool:
    """Whether a function's result is a JSON value.

    A tuple is a list, as JSON has no tuples, and a whole number as a key is its text; true is not
    1; where a number with a fraction is expected, the tolerance applies.
    """
    if isinstance(expected, bool) or isinstance(got, bool):
        return got is expected
    if isinstance(expected, float) and isinstance(got, int | float):
        return got == expected or _near(_as_float(got), expected)
    if isinstance(expected, list) and isinstance(got, list | tuple):
        return len(got) == len(expected) and all(map(same_result, got, expected))
    if isinstance(expected, dict) and isinstance(got, dict):
        named = {_key(key): value for key, value in got.items()}
        return (
            len(named) == len(got)
            and named.keys() == expected.keys()
            and all(same_result(named[key], expected[key]) for key in expected)
        )
    return type(got) in (type(expected), int, float) and got == expected


def _as_float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _key(key: object) -> object:
    return str(key) if type(key) is int else key
