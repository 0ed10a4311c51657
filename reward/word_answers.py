r"""Answers that are not mathematics: choice letters, numbers in a base, times, plain text.

Each comparison takes two cleaned answers and returns True, False, or ``None`` if the gold answer is
not of its kind.
"""

import math
import re
from fractions import Fraction

from reward.denials import DENIAL

_LETTER_GOLD = re.compile(
    r"\(?([A-J])\)?[.:]?"
    r"|\(([A-J])\)[.:]?\s*(\S.*)|([A-J])[.:)]\s*(\S.*)|([B-H])\s+([A-Z][a-z].*)",
    re.DOTALL,
)
_LETTER_PRED = re.compile(
    r"(?:(?:option|choice|answer|letter)\s*+:?\s*+)?"
    r"(?:\(\s*+([A-Ja-j])\s*+\)|([A-J])(?=[.:)]|\Z)|([a-j])(?=\)|\.?\Z))\s*+[.:)]*+\s*+(.*)",
    re.DOTALL | re.IGNORECASE,
)
_SELECTION = re.compile(r"[A-J]{2,6}")
_CUED_LETTER = re.compile(
    r"(?:\b(?:is|it's|choose|option|answer|est|choice)|答案|选)[^A-Za-z]{0,8}([A-J])(?![A-Za-z'])"
)
_LONE_LETTER = re.compile(r"(?<![A-Za-z'])([B-J]|A(?! [a-z]))(?![A-Za-z'])")
_BASE_WORDS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16, "binary": 2, "octal": 8,
    "decimal": 10, "hexadecimal": 16, "hex": 16,
}  # fmt: skip
_BASE = re.compile(
    r"\(?\s?(-?[0-9A-Fa-f][0-9A-Fa-f.\s]*?)\s?\)?\s?"
    r"(?:_\s?\{?\s?\(?\s?(?:base)?\s?(\d{1,2}|[a-z]++)\s?\)?\s?\}?"
    r"|\(?(?:in )?base[- ]?(\d{1,2}|[a-z]+)\)?)"
)
_TIME = re.compile(
    r"(\d{1,2})(?:\s?:\s?([0-5]\d))?(?:\s?:\s?([0-5]\d))?\s*(a\.?\s?m\.?|p\.?\s?m\.?)?",
    re.IGNORECASE,
)
HALF_DAY = 12 * 3600
_NOISE = re.compile(r"\\(?:text|quad|,|;|!| )|[{}()\[\].,;:!?\"'`*_$\\]|-(?=\s)|(?<=\s)-")
_SAME_MEANING = {
    "no solutions": "no solution", "no real solution": "no solution", "none": "no solution",
    "no real solutions": "no solution", "there is no solution": "no solution",
    "there are no solutions": "no solution", "emptyset": "no solution", "empty set": "no solution",
    "dne": "does not exist", "doesn t exist": "does not exist",
    "infinitely many solutions": "infinitely many", "infinite solutions": "infinitely many",
    "all reals": "all real numbers", "all real number": "all real numbers",
}  # fmt: skip
_UNITS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9,
}  # fmt: skip
_TEENS = {
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15,
    "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90,
}  # fmt: skip
_THOUSANDS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
    "eighth": 8, "ninth": 9, "tenth": 10, "eleventh": 11,
    "twelfth": 12, "fifteenth": 15, "sixteenth": 16, "twentieth": 20, "hundredth": 100,
    "thousandth": 1000, "millionth": 10**6,
}  # fmt: skip
_JOINTS = re.compile(r"\s|(?<=[^\W\d_])-(?=[^\W\d_])")  # but "-x" is not "x"
_SUBJECT = re.compile(r"\A(?:it is|they are|there are|there is) (?=\w)")
_ARTICLES = re.compile(r"\b(?:the|a|an)\b")
_PREDICATE = re.compile(r".+ (?:is|are) (\w+)")
_ENUMERATION = re.compile(r"[,;&]|\band\b")
_NEGATION = re.compile(r"\b(?:not|no|never|none|neither|nor|false|except)\b|n't")


def plain(text: str) -> str:
    r"""Remove ``\text`` and braces, and keep everything else."""
    return re.sub(r"\s+", " ", re.sub(r"\\text\s*|[{}]", " ", text)).strip()


def same_choice(gold: str, pred: str) -> bool | None:
    """Compare a choice letter, with or without the text of the choice after it."""
    bare = plain(gold)
    if _SELECTION.fullmatch(bare) and list(bare) == sorted(set(bare)):
        return _same_selection(bare, plain(pred))
    wanted = _LETTER_GOLD.fullmatch(bare)
    if wanted is None:
        return None
    letter = next(group for group in wanted.group(1, 2, 4, 6) if group)
    content = next((group for group in wanted.group(3, 5, 7) if group), "")
    got = _LETTER_PRED.fullmatch(plain(pred))
    if got is None:
        return bool(content) and words(content) == words(pred)
    given = next(group for group in got.group(1, 2, 3) if group)
    behind = got.group(4) or ""
    if content and words(content) == words(behind):
        return given.upper() == letter
    if _LETTER_PRED.match(behind) or re.search(r"(?<![A-Za-z])[A-J](?![A-Za-z])", behind):
        return False  # "A, B, C", "A or B"
    if re.search(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])|\A[-,;+*/=^_!<>|]", behind):
        return False
    if DENIAL.search(behind):
        return False
    return given.upper() == letter


def _same_selection(gold: str, pred: str) -> bool | None:
    """Compare ``ACD`` with ``A, C, D``; other forms may be a product or the name of a figure."""
    letters = re.sub(r"[\s,;&()]|\band\b", "", pred)
    if letters == pred:
        return pred == gold or None
    return set(letters) == set(gold) and len(letters) == len(gold) if letters.isupper() else None


def stated_choice(gold: str, sentence: str) -> bool | None:
    """Compare a bare choice letter with the one that a sentence chooses ("I think it's B")."""
    if not re.fullmatch(r"\(?[A-J]\)?", plain(gold)):
        return None
    cued = _CUED_LETTER.findall(sentence)
    letters = cued[-1:] or _LONE_LETTER.findall(sentence)[:1]
    return letters[0] == plain(gold).strip("()") if letters else None


def same_base(gold: str, pred: str, required: bool) -> bool | None:
    """Compare numerals with a base subscript: the digits and, if both have it, the base."""
    wanted = read_numeral(gold)
    if wanted is None:
        return None
    got = read_numeral(pred)
    if got is None:
        bare = re.sub(r"[\s(){}]", "", plain(pred)).upper()
        return not required and bare == wanted[0]
    return wanted == got


def read_numeral(text: str) -> tuple[str, int] | None:
    """Read a numeral with a base subscript as (digits, base)."""
    match = _BASE.fullmatch(plain(text))
    if match is None or not match.group(1)[:2].strip("-")[:1].isalnum():
        return None
    name = match.group(2) or match.group(3)
    base = int(name) if name.isdigit() else _BASE_WORDS.get(name.lower(), 0)
    digits = re.sub(r"\s", "", match.group(1)).upper()
    if base == 0 or (base <= 10 and not re.fullmatch(r"-?[\d.]+", digits)):
        return None
    return digits, base


def same_time(gold: str, pred: str) -> bool | None:
    """Compare times of day; ``12:05`` is a time, ``5:8`` a ratio unless am or pm says otherwise.

    ``3:45`` is also a time, because a ratio would be reduced. If one side lacks am or pm, either
    half of the day agrees.
    """
    wanted, got = _TIME.fullmatch(plain(gold)), _TIME.fullmatch(plain(pred))
    if wanted is None or int(wanted.group(1)) > 24:
        return None
    marked = wanted.group(4) or (wanted.group(2) and got is not None and got.group(4))
    minutes = wanted.group(2) or ""
    reducible = bool(minutes) and math.gcd(int(wanted.group(1)), int(minutes)) > 1
    if not marked and not minutes.startswith("0") and not reducible:
        return None
    if got is None or not (got.group(2) or got.group(4)):
        return False
    if bool(wanted.group(4)) == bool(got.group(4)):
        return _seconds(wanted) == _seconds(got)
    if max(int(wanted.group(1)), int(got.group(1))) > 12:
        return _seconds(wanted) == _seconds(got)
    return _seconds(wanted) % HALF_DAY == _seconds(got) % HALF_DAY


def _seconds(match: re.Match[str]) -> int:
    hours, minutes, seconds, half = match.groups()
    hour = int(hours)
    if half:
        hour = hour % 12 + (12 if half[0] in "pP" else 0)
    return hour * 3600 + int(minutes or 0) * 60 + int(seconds or 0)


def words(text: str) -> str:
    """Reduce plain language to its words, without case, punctuation, markup and articles."""
    bare = _NOISE.sub(" ", text).casefold()
    bare = re.sub(r"\s+", " ", bare).strip()
    bare = _SUBJECT.sub("", bare)
    shorter = re.sub(r"\s+", " ", _ARTICLES.sub(" ", bare)).strip() or bare
    return _SAME_MEANING.get(shorter, shorter)


def number_in_words(text: str) -> Fraction | None:
    """Read a number spelled out: ``minus twenty-one``, ``two hundred five``, ``three quarters``."""
    names = [name for name in words(text).replace("-", " ").split() if name != "and"]
    if len(names) > 1 and names[0] in ("minus", "negative"):
        below_zero = number_in_words(" ".join(names[1:]))
        return None if below_zero is None else -below_zero
    below = PARTS.get(names[-1].rstrip("s") if names[-1] != "halves" else "half") if names else 0
    if below and len(names) > 1:
        above = number_in_words(" ".join(names[:-1]))
        return None if above is None else Fraction(above, below)
    if below and names == names[-1:]:
        return Fraction(1, below) if names == ["half"] else None
    total, group, room = 0, 0, 1000
    for name in names:
        if name in _THOUSANDS and group > 0 and _THOUSANDS[name] < (total or 10**12):
            total, group, room = total + group * _THOUSANDS[name], 0, 1000
        elif name == "hundred" and 0 < group < 10:
            group, room = group * 100, 100
        else:
            value = _UNITS.get(name, _TEENS.get(name, _TENS.get(name)))
            size = 10 if name in _UNITS else 100
            if value is None or size > room or (value == 0 and len(names) > 1):
                return None
            group, room = group + value, 10 if name in _TENS else 1
    return Fraction(total + group) if names else None


def same_enumeration(gold: str, pred: str) -> bool:
    """Compare two lists of names as multisets: ``Anna, Ben`` and ``Ben and Anna``."""
    lists = [
        sorted(words(part) for part in _ENUMERATION.split(plain(text)) if part.strip())
        for text in (gold, pred)
    ]
    return (
        len(lists[0]) > 1 and lists[0] == lists[1] and not any(map(str.isdigit, "".join(lists[0])))
    )


def same_words(gold: str, pred: str) -> bool:
    """Compare two texts word by word; a yes or no may be followed by its reason."""
    wanted, got = words(gold), words(pred)
    if not wanted or not got:
        return False
    if wanted == got:
        return True
    said = _PREDICATE.fullmatch(wanted)
    if said is not None and got == said.group(1) and not _NEGATION.search(wanted):
        return True
    if wanted in ("yes", "no", "true", "false"):
        first, _, rest = got.partition(" ")
        if DENIAL.search(rest.replace("not", "") if wanted in ("no", "false") else rest):
            return False
        return first == wanted and not re.search(r"\b(?:yes|no|true|or|and|but)\b|\d", rest)
    return _JOINTS.sub("", wanted) == _JOINTS.sub("", got)
