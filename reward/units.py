r"""Units and counted nouns after a value.

``5 \text{ cm}^2``, ``10 weeks``, ``3 \text{ solutions}`` are a value and a unit. A unit that only
one side of a comparison has is dropped; two known units must be the same; a noun that is not a unit
of measurement is ignored, but only if it is a known one or the reference has it (`has_reason`):
words that change a value are many, and none of them may be dropped. A single plain letter is a
variable, never a unit: ``2k`` is not 2.
"""

import re

from reward.denials import DENIAL
from reward.nouns import ADJECTIVES, CLOSING, CONNECTIVES, DESCRIBED, is_noun, singulars
from reward.word_answers import number_in_words

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
    "acre": "acre", "°": "degree deg", "hectare": "hectare ha", "dm": "dm decimeter decimetre",
    "um": "um micrometer micron", "nm": "nm nanometer nanometre", "ms": "ms millisecond",
    "us": "microsecond", "ns": "ns nanosecond", "decade": "decade", "century": "century centuries",
    "pt": "pt pint", "qt": "qt quart", "tbsp": "tbsp tablespoon", "tsp": "tsp teaspoon",
    "cal": "cal calorie", "kcal": "kcal kilocalorie", "kj": "kj kilojoule", "mj": "mj megajoule",
    "erg": "erg ergs", "kn": "kn kilonewton", "kpa": "kpa kilopascal", "mpa": "mpa megapascal",
    "atm": "atm atmosphere", "bar": "bar", "torr": "torr", "psi": "psi", "kw": "kw kilowatt",
    "mw": "mw megawatt", "kwh": "kwh", "hp": "hp horsepower", "khz": "khz kilohertz",
    "mhz": "mhz megahertz", "ghz": "ghz gigahertz", "a": "amp ampere", "ma": "ma milliampere",
    "ohm": "ohm", "coulomb": "coulomb", "farad": "farad", "tesla": "tesla", "henry": "henry",
    "celsius": "celsius", "fahrenheit": "fahrenheit", "byte": "byte", "kb": "kb kilobyte",
    "mb": "mb megabyte", "gb": "gb gigabyte", "rpm": "rpm", "knot": "knot", "parsec": "parsec pc",
    "ly": "ly lightyear", "rupee": "rupee", "yen": "yen", "peso": "peso", "franc": "franc",
    "revolution": "revolution rev", "kmol": "kmol", "mmol": "mmol", "amu": "amu",
    "db": "db decibel",
}  # fmt: skip
_KNOWN = {word: unit for unit, words in _SYNONYMS.items() for word in words.split()}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}

_UNIT_PIECE = re.compile(
    r"(?:\\text\s?\{[^{}]{0,60}\}|(?<=[\d)}\]\s/*.])[A-Za-z]{2,20}\.?(?![A-Za-z({])"
    r"|(?<=/)\s?[A-Za-z](?![A-Za-z]))(?:\s?\^\s?(?:\{\s?-?\d\s?\}|-?\d))?"
)
_BETWEEN_UNITS = re.compile(r"\s*+[/*.]?\s*+")
_GLUED = re.compile(
    r"(?:(?<=[\d})])|(?<=\\pi)|(?<=\\pi ))\s{0,2}"
    r"((?:mm|cm|km|kg|mg|ml|mL|ft|lbs?|oz|mph|hrs?|sec|mins?|inches|in|s|L)"
    r"(?:\s?\^\s?\{?\s?[23]\s?\}?)?)\Z"
)
_WORD = re.compile(r"([A-Za-z°]+)\.?(?:\s?\^\s?\{?\s?(-?\d)\s?\}?)?")
_NO_UNITS = {
    "pi", "sin", "cos", "tan", "log", "ln", "exp", "sqrt", "inf", "infinity",
    "or", "and", "more", "less", "fewer", "greater", "than", "not", "is", "least", "most", "but",
    "wrong", "if", "no", "never", "both", "either", "to", "between", "modulo", "mod", "plus",
    "minus", "times", "over", "million", "thousand", "billion", "hundred", "dozen", "half",
    "squared", "cubed", "doubled", "tripled", "halved", "factorial", "reciprocal", "inverse",
    "negative", "negated", "negatives", "opposite", "incorrect", "false", "invalid", "impossible",
    "unless", "except", "without", "instead", "rather", "maybe", "perhaps", "possibly", "probably",
    "almost", "nearly", "approximately", "roughly", "about", "around", "alternatively", "otherwise",
}  # fmt: skip


def split_unit(text: str) -> tuple[str, str]:
    """Split a cleaned answer into its value and the unit after it, which may be empty."""
    tail = text[-200:]
    start = _run_at_end(tail, _UNIT_PIECE, _BETWEEN_UNITS)
    core, unit = text[: len(text) - len(tail) + start].strip(), tail[start:]
    said = re.findall(r"[A-Za-z]+", unit)
    squared = any(word in ("squared", "cubed") for word in said[:1])
    if not core or not said or squared or any(_changes_value(word.lower()) for word in said):
        return text, ""
    glued = re.match(r"[A-Za-z]+", unit)
    spaced = text[len(text) - len(unit) - 1].isspace()
    if glued is not None and not spaced and _known(glued.group().lower()) is None:
        return text, ""  # "2ae" is not two of anything
    return core.rstrip("*/ "), re.sub(r"\\text|[{}]", " ", unit).strip() or "-"


def _changes_value(word: str) -> bool:
    return word in _NO_UNITS and word not in ("squared", "cubed")


def _run_at_end(text: str, piece: re.Pattern[str], between: re.Pattern[str]) -> int:
    """Return where the longest run of pieces that ends ``text`` begins (its length if none)."""
    start, end = len(text), -1
    for match in piece.finditer(text):
        if end < 0 or not between.fullmatch(text, end, match.start()):
            start = match.start()
        end = match.end()
    return start if end >= 0 and not text[end:].strip() else len(text)


_ROMAN = re.compile(r"\\text\s?\{\s*+[A-Za-z]{1,12}\s*+\}(?:\s?\^\s?\{?\s?-?\d\s?\}?)?")
_BETWEEN_ROMAN = re.compile(r"[\s/*.]*+")
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
    tail = text[-120:]
    start = _run_at_end(tail, _ROMAN, _BETWEEN_ROMAN)
    unit = re.sub(r"\\text|[{}]", " ", tail[start:])
    said = set(re.findall(r"[A-Za-z]+", unit))
    if not said or said & {"e", "i"} or any(_changes_value(word.lower()) for word in said):
        return text, ""
    return text[: len(text) - len(tail) + start].strip(), unit


def split_letter_unit(text: str) -> tuple[str, str]:
    """Split off one plain letter as a unit, only if the other side has a unit."""
    match = _LETTERS.search(text)
    return (text, "") if match is None else (text[: match.start(1)].strip(), match.group(1))


def split_rate(text: str) -> tuple[str, str]:
    """Split off a known unit per another ("km/h"), only from an answer to a plain number."""
    match = _RATE.search(text[-80:])
    if match is None or not all(_known(word.lower()) for word in match.group(1, 2)):
        return text, ""
    offset = max(0, len(text) - 80)
    unit = f"{match.group(1)}/{match.group(2)}{match.group(3) or ''}"
    return text[: offset + match.start()].strip(), unit


def split_plural(text: str) -> tuple[str, str]:
    """Split off a plural that could be a product ("25 ways"), only from answers to plain
    numbers."""
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
    """Compare two unit texts: the units of measurement in them, if both have any.

    With ``strict`` all words count. A noun does not stand for a unit of the reference.
    """
    if strict:
        return _measure(gold) == _measure(pred)
    wanted, got = (
        tuple((name, power) for name, power in _measure(unit) if name in _SYNONYMS)
        for unit in (gold, pred)
    )
    if wanted and not got:
        return not _measure(pred) or bool(_words(pred) & _words(gold))
    return not wanted or not got or wanted == got


def has_reason(gold: str, pred: str) -> bool:
    """Tell whether each word of an answer's unit is a unit, a known noun or in the reference's.

    An adjective or a connective needs a noun or a unit behind it; what a number of units or
    things is of ("3 cups of oat milk") may be anything.
    """
    said = re.findall(r"[a-z]+", gold.lower())
    theirs = {form for word in said for form in singulars(word)}
    if _ODD.search(re.sub(r"\^\s?\{?\s?-?\d\s?\}?", "", pred)):
        return False
    headless, described, measured = True, False, False
    pred = _THOUSANDS.sub("thousands", re.sub(r"\bK\b", "kelvin", pred))
    for word in re.findall(r"[a-z°]+", _spelled_out(pred).replace(".", "")):
        if word == "of" and not headless:
            behind = _spelled_out(pred).partition(" of ")[2].split()
            return bool(behind) and not any(
                _changes_value(one) or DENIAL.search(one) or number_in_words(one) for one in behind
            )
        if (
            _known(word)
            or is_noun(word)
            or (described and word in DESCRIBED)
            or word in CLOSING
            or singulars(word) & theirs
        ):
            headless = False
        elif word in ADJECTIVES or word in CONNECTIVES:
            headless = True
        elif word not in _POWERS or headless or not (measured or word in ("square", "cubic")):
            return False
        measured = _known(word) is not None
        described = word in ADJECTIVES
    return not headless


_THOUSANDS = re.compile(r"\b[kM]\b")  # not kelvin and metres
_ODD = re.compile(r"[^A-Za-z°/*.,\s\-]")


def _words(unit: str) -> set[str]:
    return set(re.findall(r"[a-z]{2,}", unit.lower()))


def is_measured_alike(gold: str, pred: str) -> bool:
    """Tell whether two units are the same power of the same unit of measurement."""
    return bool(_measure(gold)) and _measure(gold) == _measure(pred)


def _known(word: str) -> str | None:
    return _KNOWN.get(word) or _KNOWN.get(word.rstrip("s"))


def _measure(unit: str) -> tuple[tuple[str, int], ...]:
    """Return the unit as sorted (name, power) pairs."""
    powers: dict[str, int] = {}
    sign, pending = 1, 1
    for word, power in _WORD.findall(_spelled_out(unit)):
        if word in _POWERS:
            pending = _POWERS[word]
            if powers and word in ("squared", "cubed"):
                last = next(reversed(powers))
                powers[last], pending = powers[last] * pending, 1
            continue
        if word == "per":
            sign = -1
        if word in CONNECTIVES or word in CLOSING:
            continue
        name = _known(word) or word
        powers[name] = powers.get(name, 0) + sign * pending * int(power or 1)
        sign, pending = 1, 1
    return tuple(sorted(powers.items()))


def _spelled_out(unit: str) -> str:
    return unit.lower().replace("/", " per ").replace("mph", "mi per h")


_CURRENCIES = {
    "dollar": re.compile(r"\\\$|\b(?:dollars?|usd)\b", re.IGNORECASE),
    "cent": re.compile(r"\u00a2|\b(?:cents?|penny|pennies)\b", re.IGNORECASE),
    "euro": re.compile(r"\u20ac|\beuros?\b", re.IGNORECASE),
    "pound": re.compile(r"\u00a3"),  # the word is also a weight
    "yen or yuan": re.compile(r"\u00a5|\b(?:yen|yuan|rmb)\b", re.IGNORECASE),
    "rupee": re.compile(r"\u20b9|\brupees?\b", re.IGNORECASE),
}


def other_currency(gold: str, pred: str) -> bool:
    """Tell whether two answers, as written, name one currency each and these differ."""
    wanted, got = (
        {name for name, sign in _CURRENCIES.items() if sign.search(text)} for text in (gold, pred)
    )
    return len(wanted) == len(got) == 1 and wanted != got
