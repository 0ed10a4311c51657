r"""Units, counted nouns and side conditions behind a value.

``5 \text{ cm}^2``, ``10 weeks``, ``3 \text{ solutions}`` are a value and a unit. A unit that only
one side of a comparison has is dropped; two known units must be the same; a noun that is no unit
of measurement says nothing. A single plain letter is a variable, never a unit: ``2k`` is not 2.
"""

import re

_SYNONYMS = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre",
    "m": "m meter metre", "km": "km kilometer kilometre", "in": "in inch inches",
    "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile", "mg": "mg milligram",
    "g": "g gram", "kg": "kg kilogram", "lb": "lb lbs pound", "oz": "oz ounce", "t": "ton tonne",
    "ml": "ml milliliter millilitre", "l": "l liter litre", "s": "s sec second",
    "min": "min minute", "h": "h hr hour", "d": "d day", "week": "week", "month": "month",
    "year": "yr year", "n": "n newton", "j": "j joule", "w": "w watt",
    "v": "v volt", "hz": "hz hertz", "pa": "pa pascal", "ev": "ev", "k": "kelvin",
    "dollar": "dollar usd buck", "cent": "cent penny pennies", "euro": "euro eur",
    "yuan": "yuan rmb", "rad": "rad radian", "gal": "gal gallon", "mol": "mol mole",
    "acre": "acre", "°": "degree deg",
}  # fmt: skip
_KNOWN = {word: unit for unit, words in _SYNONYMS.items() for word in words.split()}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}
_FILLERS = {"per", "of", "a", "an", "the", "unit", "units", "each", "p"}

_UNIT_PIECE = re.compile(
    r"(?:\\text\s?\{[^{}]{0,60}\}|(?<=[\d)}\]\s/*.])[A-Za-z]{2,20}\.?(?![A-Za-z({])"
    r"|(?<=/)\s?[A-Za-z](?![A-Za-z]))(?:\s?\^\s?(?:\{\s?-?\d\s?\}|-?\d))?"
)
_TAIL = re.compile(rf"\s*(?:{_UNIT_PIECE.pattern})(?:\s*[/*.]?\s*(?:{_UNIT_PIECE.pattern}))*\s*\Z")
_GLUED = re.compile(
    r"(?:(?<=[\d})])|(?<=\\pi)|(?<=\\pi ))\s{0,2}"
    r"((?:mm|cm|km|kg|mg|ml|mL|ft|lbs?|oz|mph|hrs?|sec|mins?|inches|in|s|L)"
    r"(?:\s?\^\s?\{?\s?[23]\s?\}?)?)\Z"
)
_WORD = re.compile(r"([A-Za-z°]+)\.?(?:\s?\^\s?\{?\s?(-?\d)\s?\}?)?")
_CONDITION = re.compile(
    r"(?:\s|\\text\s?\{|\(|,)+(?:where|for (?:all|any|some|every|each)|such that|"
    r"\(?approx(?:imately|\.)?|or approximately|as required|respectively)(?![a-z])"
    r"|(?:\(\s*\\text\s?\{|\\text\s?\{\s*\()\s*(?:about|approx|rounded|to |in |since|because|i\.e)"
    r"|\\forall(?![a-z])",
    re.IGNORECASE,
)
_NO_UNITS = {
    "pi", "sin", "cos", "tan", "log", "ln", "exp", "sqrt", "inf", "infinity",
    "or", "and", "more", "less", "fewer", "greater", "than", "not", "is", "least", "most", "but",
    "wrong", "if", "no", "never", "both", "either", "to", "between", "modulo", "mod", "plus",
    "minus", "times", "over", "million", "thousand", "billion", "hundred", "dozen", "half",
}  # fmt: skip


def split_unit(text: str) -> tuple[str, str]:
    """Split a cleaned answer into its value and the unit behind it (may be empty)."""
    match = _TAIL.search(text[-200:])
    if match is None:
        return text, ""
    offset = max(0, len(text) - 200)
    core, unit = text[: offset + match.start()].strip(), match.group()
    if not core or any(word.lower() in _NO_UNITS for word in re.findall("[A-Za-z]+", unit)):
        return text, ""
    glued = re.match(r"[A-Za-z]+", unit)
    if glued is not None and _known(glued.group().lower()) is None:
        return text, ""  # "2ae" is no two of anything
    return core.rstrip("*/ "), re.sub(r"\\text|[{}]", " ", unit).strip() or "-"


_ROMAN = re.compile(
    r"\s*((?:\\text\s?\{\s*[A-Za-z]{1,12}\s*\}(?:\s?\^\s?\{?\s?-?\d\s?\}?)?[\s/*.]*)+)\Z"
)
_LETTERS = re.compile(
    r"(?<=[\d})])\s*([A-Za-z](?:\s?\^\s?\{?-?\d\}?)?(?:\s*/\s*[A-Za-z](?:\s?\^\s?\{?-?\d\}?)?)?)\Z"
)

_PLURAL = re.compile(r"(.*[\d)}])\s([a-z]{2,16}s)")
_RATE = re.compile(
    r"(?<=[\d)}\]\s])\s?(?:\\frac\s?\{\s?)?(?:\\text\s?\{\s?)?([A-Za-z]{1,12})\s?(?:\}\s?){0,2}"
    r"(?:/|(?<=\})\{)\s?(?:\\text\s?\{\s?)?([A-Za-z]{1,12})\s?\}?\s?(\^\s?\{?\s?2\s?\}?)?\s?\}?\Z"
)


def split_roman_unit(text: str) -> tuple[str, str]:
    r"""Split off units set in roman type (``9.8 \text{m} \text{s}^{-2}``), single letters too."""
    match = _ROMAN.search(text[-120:])
    if match is None or re.search(r"\{\s*[ei]\s*\}", match.group()):
        return text, ""
    offset = max(0, len(text) - 120)
    return text[: offset + match.start()].strip(), re.sub(r"\\text|[{}]", " ", match.group(1))


def split_letter_unit(text: str) -> tuple[str, str]:
    """Split off one plain letter as a unit: only where the other side shows that one is due."""
    match = _LETTERS.search(text)
    return (text, "") if match is None else (text[: match.start(1)].strip(), match.group(1))


def split_rate(text: str) -> tuple[str, str]:
    """Split off one known unit per another ("km/h"): only from an answer to a plain number."""
    match = _RATE.search(text[-80:])
    if match is None or not all(_known(word.lower()) for word in match.group(1, 2)):
        return text, ""
    offset = max(0, len(text) - 80)
    unit = f"{match.group(1)}/{match.group(2)}{match.group(3) or ''}"
    return text[: offset + match.start()].strip(), unit


def split_plural(text: str) -> tuple[str, str]:
    """Split off a plural that could be a product ("25 ways"): only in answers to plain numbers."""
    match = _PLURAL.fullmatch(text[:200])
    return (match.group(1), match.group(2)) if match else (text, "")


def split_known_unit(text: str) -> tuple[str, str]:
    """Split off an abbreviation that is glued to its number ("1cm"), which would read as 1*c*m."""
    match = _GLUED.search(text[-40:])
    if match is None:
        return text, ""
    offset = max(0, len(text) - 40)
    return text[: offset + match.start(1)].strip(), match.group(1)


def same_unit(gold: str, pred: str, strict: bool) -> bool:
    """Compare two unit texts; an absent or unknown one agrees unless ``strict``."""
    if strict:
        return _measure(gold) == _measure(pred)
    wanted, got = _measure(gold), _measure(pred)
    known = set(_SYNONYMS)
    if not wanted or not got:
        return True
    if set(dict(wanted)) <= known and set(dict(got)) <= known:
        return wanted == got
    return True


def _known(word: str) -> str | None:
    return _KNOWN.get(word) or _KNOWN.get(word.rstrip("s"))


def _measure(unit: str) -> tuple[tuple[str, int], ...]:
    """Return the unit as sorted (name, power) pairs."""
    powers: dict[str, int] = {}
    sign, pending = 1, 1
    spaced = unit.lower().replace("/", " per ").replace("mph", "mi per h")
    for word, power in _WORD.findall(spaced):
        if word in _POWERS:
            pending = _POWERS[word]
            if powers and word in ("squared", "cubed"):
                last = next(reversed(powers))
                powers[last], pending = powers[last] * pending, 1
            continue
        if word == "per":
            sign = -1
        if word in _FILLERS:
            continue
        name = _known(word) or word
        powers[name] = powers.get(name, 0) + sign * pending * int(power or 1)
        sign, pending = 1, 1
    return tuple(sorted(powers.items()))


def strip_condition(text: str) -> str:
    """Cut a side condition ("where ...", "for all ...", "(approximately ...)") off an answer."""
    match = _CONDITION.search(text)
    if match is None or match.start() == 0:
        return text
    head = text[: match.start()].strip().rstrip(",;").strip()
    if not head or head.count("{") != head.count("}") or head.count("(") != head.count(")"):
        return text
    return head


_CURRENCIES = {
    "dollar": re.compile(r"\\\$|\b(?:dollars?|usd)\b", re.IGNORECASE),
    "cent": re.compile(r"\u00a2|\b(?:cents?|penny|pennies)\b", re.IGNORECASE),
    "euro": re.compile(r"\u20ac|\beuros?\b", re.IGNORECASE),
    "pound": re.compile(r"\u00a3"),  # the word is a weight as well
    "yen or yuan": re.compile(r"\u00a5|\b(?:yen|yuan|rmb)\b", re.IGNORECASE),
    "rupee": re.compile(r"\u20b9|\brupees?\b", re.IGNORECASE),
}


def other_currency(gold: str, pred: str) -> bool:
    """Tell whether two answers, as written, name one currency each, and not the same."""
    wanted, got = (
        {name for name, sign in _CURRENCIES.items() if sign.search(text)} for text in (gold, pred)
    )
    return len(wanted) == len(got) == 1 and wanted != got
