r"""Split an expression into tokens, and read numbers exactly.

A token is a number, a command, a bracket, a sign or a single letter. A run of letters is split into
known names (``12pi``, ``sinx``) and symbols, and refused if it looks like an English word.
"""

import re
from fractions import Fraction

MAX_TOKENS = 1200
MAX_DIGITS = 400

GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
    "Gamma", "Delta", "Theta", "Lambda", "Xi", "Sigma", "Phi", "Psi", "Omega", "hbar", "ell",
}  # fmt: skip
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh",
    "cosh", "tanh", "ln", "log", "lg", "exp", "sgn", "sign", "gcd", "lcm", "min", "max", "Re",
    "Im", "arcsec", "arccsc",
}  # fmt: skip
ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "sign": "sgn"}
_PLAIN_WORDS = sorted(
    [*(name for name in FUNCTIONS if name.islower()), *ALIASES, "sqrt", "pi", "infinity",
     "infty", "inf", "abs", "floor", "ceil", "theta", "alpha", "beta", "gamma", "delta", "lambda",
     "sigma", "omega", "phi"],
    key=len,
    reverse=True,
)  # fmt: skip
_PLAIN_WORD = re.compile("|".join(_PLAIN_WORDS))
_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.\\overline\{\d+\}|\d*\.\d*\\(?:overline|dot|bar)\{\d+\}"
    r"|\d+\.\d*\(\d+\)|\d+(?:\.\d+)?[eE][+-]?\d+(?![\d.])|\d+\.\d+|\.\d+|\d+\.?))"
    r"|(?P<text>\\text\{[^{}]*\})"
    r"|(?P<accent>\\(?:overline|vec|hat|bar|tilde|dot|ddot|widehat|overrightarrow)\{[^{}]*\})"
    r"|(?P<command>\\[A-Za-z]+|\\.)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<other>\*\*|''|[-+*/^_=<>:!|(){}\[\],;'°%.])"
    r"|(?P<space>\s+)"
)


class NotAnExpression(ValueError):
    """The text is not an expression that this parser reads."""


def number(text: str) -> Fraction | None:
    """Read a plain number: digits, decimal point, exponent, repeating decimals; else ``None``."""
    stripped = text.strip().lstrip("+")
    negative = stripped.startswith("-")
    match = _TOKEN.fullmatch(stripped[1:] if negative else stripped)
    if match is None or match.lastgroup != "number":
        return None
    try:
        value = read_number(match.group())[1]
    except NotAnExpression:
        return None
    return -value if negative else value


_READ = "|".join(
    sorted([*GREEK, *FUNCTIONS, "frac", "binom", "sqrt", "pi", "infty", "lfloor", "rfloor", "lceil",
            "rceil", "overline", "vec", "hat", "bar", "text", "prime", "approx", "le", "ge", "ne",
            "in", "cup", "mathbb", "emptyset", "setminus", "pm", "mp"])
)  # fmt: skip
UNREAD = re.compile(rf"\\(?!(?:{_READ})(?![A-Za-z]))[A-Za-z]+")
# Commands that weaken or deny, or that a library skips though they say something.
HEDGES = re.compile(r"\\(?:neg|not|sim|propto|cancel|forall|exists)(?![A-Za-z])")
# Notation of a calculation that has only known commands: 5C2, P(X = 2), \mathbb{P}.
_NAMED = re.compile(r"\\(?:mathbb|text|overline|vec|hat|bar|cup|setminus)(?![A-Za-z])")
_CHOSEN = re.compile(r"[_^{}\s\d]*+[CPA]\s?(?:[_^]?\s?\{?\d{1,4}\}?\s?){1,2}")
_VALUE_OF = re.compile(r"\s*+[A-Za-z]{1,4}\s?\([^()]*+(?:\([^()]*+\)[^()]*+)*+\)\s*+")


def is_malformed(text: str) -> bool:
    """Tell whether a text that is no expression is broken, and not notation that is not read."""
    level = 0
    for token in re.findall(r"\\.|[{}]", text, re.DOTALL):
        level += (token == "{") - (token == "}")
        if level < 0:
            return True
    open_ended = text.count("(") != text.count(")") and not re.search(r"[\[\]]", text)
    if level or open_ended or HEDGES.search(text) or text.strip() == "\\ldots":
        return True
    if UNREAD.search(text) or _NAMED.search(text):
        return False
    return not (_CHOSEN.fullmatch(text) or _VALUE_OF.fullmatch(text))


def tokenize(text: str) -> list[str]:
    """Split a cleaned expression into tokens; runs of spaces become one space token.

    Raises:
        NotAnExpression: for an unreadable character, a word, or too many tokens.
    """
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotAnExpression(f"unreadable character {text[position]!r}")
        kind, token, position = match.lastgroup, match.group(), match.end()
        if kind == "space":
            if tokens and tokens[-1] != " ":
                tokens.append(" ")
        elif kind == "letters":
            tokens += _split_letters(token)
        elif kind == "text":
            tokens += _split_text(token[6:-1].strip())
        else:
            tokens.append(token)
        if len(tokens) > MAX_TOKENS:
            raise NotAnExpression("too long")
    return tokens


def _split_letters(run: str) -> list[str]:
    """Split a run of letters into known names and single symbols; refuse an English word."""
    if len(run) > 2 and run.isupper():
        return [run]  # a figure's name: ABCD is not ABDC
    tokens: list[str] = []
    position = 0
    while position < len(run):
        match = _PLAIN_WORD.match(run, position)
        if match:
            tokens.append("\\" + match.group())
            position = match.end()
        else:
            tokens.append(run[position])
            position += 1
    symbols = [token for token in tokens if len(token) == 1]
    vowels = sum(letter in "aeiouEIOU" for letter in symbols)
    if (len(symbols) > 2 and vowels > symbols.count("a")) or (len(run) > 3 and vowels > 1):
        raise NotAnExpression(f"the word {run!r}")
    if len(symbols) > 5 or run in (
        "no",
        "on",
        "or",
        "if",
        "is",
        "it",
        "to",
        "of",
        "No",
        "NO",
        "minus",
        "plus",
    ):
        raise NotAnExpression(f"the word {run!r}")
    return tokens


def _split_text(content: str) -> list[str]:
    if content.isalpha() and (len(content) == 1 or (content.isupper() and len(content) < 7)):
        return [content]
    raise NotAnExpression(f"the text {content!r}")


def read_number(token: str) -> tuple[str, Fraction, bool]:
    """Read one number token exactly; repeating decimals become fractions."""
    if len(token) > MAX_DIGITS:
        raise NotAnExpression("too many digits")
    repeating = re.fullmatch(r"(\d*)\.(\d*)(?:\\[a-z]+\{(\d+)\}|\((\d+)\))", token)
    if repeating:
        whole, fixed = repeating.group(1) or "0", repeating.group(2)
        cycle = repeating.group(3) or repeating.group(4)
        scale = 10 ** len(fixed)
        value = Fraction(int(whole + fixed), scale)
        value += Fraction(int(cycle), scale * (10 ** len(cycle) - 1))
        return ("num", value, False)
    mantissa, _, exponent = token.lower().partition("e")
    if exponent and abs(int(exponent)) > 5000:
        raise NotAnExpression("exponent out of range")
    return ("num", Fraction(mantissa.rstrip(".")) * _power_of_ten(exponent), "." in mantissa[:-1])


def _power_of_ten(exponent: str) -> Fraction:
    return Fraction(10) ** int(exponent) if exponent else Fraction(1)
