"""Replace Unicode with ASCII and LaTeX, and repair escapes and HTML left by careless code.

This is the first half of `reward.normalize.clean`: characters come before commands.
"""

# ruff: noqa: RUF001  (the tables below are about look-alike characters)

import re
import unicodedata

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₖₘ", "0123456789+-()nkm", strict=True))
_FRACTIONS = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5",
    "⅗": "3/5", "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8",
    "⅞": "7/8", "⅐": "1/7", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_CHARACTERS = {
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ",
    "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≦": r"\le ", "≧": r"\ge ",
    "≮": r"\ge ", "≯": r"\le ", "≰": ">", "≱": "<",
    "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∼": r"\sim ",
    "±": r"\pm ", "∓": r"\mp ", "×": "*", "÷": "/", "·": "*", "⋅": "*", "∙": "*", "∗": "*",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ",
    "δ": r"\delta ", "ε": r"\epsilon ", "λ": r"\lambda ", "μ": r"\mu ", "ρ": r"\rho ",
    "σ": r"\sigma ", "τ": r"\tau ", "φ": r"\phi ", "ω": r"\omega ", "ψ": r"\psi ",
    "Δ": r"\Delta ", "Ω": r"\Omega ", "Σ": r"\Sigma ", "ℓ": r"\ell ", "ħ": r"\hbar ",
    "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ", "℃": r"^\circ ", "′": "'", "’": "'",
    "″": "''", "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "⁄": "/", "∕": "/",
    "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∅": r"\emptyset ", "⌀": r"\emptyset ", "∖": r"\setminus ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}", "∀": r"\forall ", "∃": r"\exists ", "→": r"\to ", "⇒": r"\to ",
    "∠": r"\angle ", "△": r"\triangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "…": r"\ldots ", "∣": r"\mid ", "、": ",", "，": ",", "。": ".", "；": ";",
    "€": "", "£": "", "¥": "", "₹": "", "“": '"', "”": '"', "‘": "'",
}  # fmt: skip

_UNSEEN = {"\u034f", *map(chr, range(0xFE00, 0xFE10))}
_ACCENTS = {
    "\u0304": "overline", "\u0305": "overline", "\u0302": "hat", "\u0303": "tilde",
    "\u0307": "dot", "\u20d7": "vec",
}  # fmt: skip
_ACCENTED = re.compile("|".join(f"(?:[A-Za-z0-9]{mark})+" for mark in _ACCENTS))

# An escape lost in a careless JSON or Python string: "\text" read as TAB + "ext".
_EATEN = [
    (re.compile("\t(?=ext|imes|heta|an\\b|frac|o\\b|au\\b|riangle)"), "\\\\t"),
    (re.compile("\x0c(?=rac)"), "\\\\f"),
    (re.compile("\x08(?=egin|inom|oxed|eta|ar\\b|ig)"), "\\\\b"),
    (re.compile("\r(?=ight|ho\\b|angle|ceil|floor)"), "\\\\r"),
    (re.compile("\x07(?=lpha|pprox|ngle)"), "\\\\a"),
    (re.compile("(?<![A-Za-z\\\\])(?=rac\\{)"), "\\\\f"),
]
_DOUBLED = re.compile(
    r"(?<!\\)\\\\(?=(?:[dt]?frac|left|right|sqrt|pi|text|mathrm|leq?|geq?|neq?|in|infty|cup|cdot"
    r"|times|boxed|pm|circ|theta|sin|cos|tan|log|ln|binom|approx|mathbb|emptyset|begin|end"
    r"|textrm)(?![a-zA-Z]))"
)
_BACKSLASHES = re.compile(r"\\+")
_HTML = [
    (re.compile(r"<sup>([^<>]{0,200})</sup>"), r"^{\1}"),
    (re.compile(r"<sub>([^<>]{0,200})</sub>"), r"_{\1}"),
    (re.compile(r"</?(?:b|i|p|em|strong|br|span|div) ?/?>"), " "),
    (re.compile(r"&lt;"), "<"),
    (re.compile(r"&gt;"), ">"),
    (re.compile(r"&amp;"), "&"),
    (re.compile(r"&nbsp;"), " "),
]
_SUPER = re.compile("[" + "".join(_SUPERSCRIPTS) + "]+")
_SUB = re.compile("[" + "".join(_SUBSCRIPTS) + "]+")


def repair(text: str) -> str:
    """Undo wrong escaping of LaTeX, and HTML escapes; for answers, not for responses."""
    if any(mark in text for mark in "\t\x0c\x08\r\x07") or "rac{" in text:
        for pattern, replacement in _EATEN:
            text = pattern.sub(replacement, text)
    if "\\\\" in text and _DOUBLED.search(text):
        if all(len(run) % 2 == 0 for run in _BACKSLASHES.findall(text)):
            text = text.replace("\\\\", "\\").replace("\\n", "\n")
        text = _DOUBLED.sub(r"\\", text)
    if "<" in text or "&" in text:
        for pattern, replacement in _HTML:
            text = pattern.sub(replacement, text)
    return text


def plain_characters(text: str) -> str:
    """Replace Unicode with ASCII and LaTeX; drop invisible and direction characters."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFC", text)
    text = _ACCENTED.sub(_accent, text)
    text = _SUPER.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m.group()) + "}", text)
    text = _SUB.sub(lambda m: "_{" + "".join(_SUBSCRIPTS[c] for c in m.group()) + "}", text)
    return "".join(map(_character, text))


def _accent(match: re.Match[str]) -> str:
    """Write letters or digits with an accent as the command: an overlined 3 repeats."""
    return f"\\{_ACCENTS[match.group()[-1]]}{{{match.group()[::2]}}}"


def _character(character: str) -> str:
    if character.isascii():
        return character
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    if character in _FRACTIONS:
        numerator, denominator = _FRACTIONS[character].split("/")
        return f" \\frac{{{numerator}}}{{{denominator}}}"
    category = unicodedata.category(character)
    if category in ("Cf", "Cc", "Cs", "Co", "Cn") or character in _UNSEEN:
        return ""  # a mark is kept: it may strike out or negate what is under it
    if category == "Zs":
        return " "
    if category == "Nd":
        return str(unicodedata.decimal(character))
    compatible = unicodedata.normalize("NFKC", character)
    return compatible if compatible.isascii() else character
