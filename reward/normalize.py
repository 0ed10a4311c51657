r"""Write an answer in one spelling: convert Unicode and plain text to a small LaTeX, drop markup.

`clean` is the first step of every comparison. It never changes a value, only its spelling:
``½`` becomes ``\frac{1}{2}``, ``\dfrac`` becomes ``\frac``, ``\left(`` becomes ``(``, ``1{,}000``
becomes ``1000``, ``\text{ or }`` becomes `` or ``, and a final full stop is removed. Text that
remains text is written ``\text{...}``.

Every pattern here is linear in the length of the answer.
"""

import re

from reward.characters import plain_characters, repair
from reward.denials import DENIAL
from reward.extract import unwrap_boxes
from reward.word_answers import PARTS

_COMMANDS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac",
    "dbinom": "binom", "tbinom": "binom",
    "leqslant": "le", "leq": "le", "lt": "<", "geqslant": "ge", "geq": "ge", "gt": ">",
    "neq": "ne", "cdot": "*", "times": "*", "ast": "*", "bullet": "*", "div": "/", "colon": ":",
    "varnothing": "emptyset", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "langle": "(", "rangle": ")", "bmod": "mod",
    "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "backslash": "setminus",
    "cupdot": "cup", "sqcup": "cup", "arctg": "arctan", "tg": "tan", "ctg": "cot", "cosec": "csc",
    "textcirc": "circ", "degree": "circ", "degrees": "circ", "land": "and", "lor": "or",
    "wedge": "and", "vee": "or", "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta",
    "imath": "i", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots",
    "cr": "\\",
    "iff": "to", "implies": "to", "Rightarrow": "to", "rightarrow": "to", "longrightarrow": "to",
    "simeq": "approx", "sim": "sim", "thickapprox": "approx",
}  # fmt: skip
_PLAIN = {"<", ">", "*", "/", ":", "|", "[", "]", "(", ")"}
_MODULUS = re.compile(r"\(?\s?\\p?mod\s?(?:\{([^{}]{1,20})\}|(\d{1,6}|[a-z]))\s?\)?")
_OUTWARD = re.compile(
    r"(\s?(?:[A-Za-z]\s?\\in\s?)?)([\[\]])([^\[\](),;]+[,;][^\[\](),;]+)([\[\]])\s?"
)
_DROPPED = {
    "left", "right", "middle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr",
    "biggl", "biggr", "Biggl", "Biggr", "bigm", "displaystyle", "textstyle", "scriptstyle",
    "limits", "nolimits", "rm", "bf", "it", "boldmath", "normalsize", "large", "Large", "small",
    "hline", "protect", "allowbreak", "nobreak", "centering", "boldsymbol", "pmb", "tt", "sf", "sc",
    "sl", "em", "huge", "Huge", "LARGE", "tiny", "footnotesize", "therefore", "because", "hfill",
    "hfil", "blacksquare", "square", "Box", "qed", "checkmark", "strut", "mathstrut", "ensuremath",
    "noindent", "par", "bfseries", "itshape", "mathbin", "mathrel", "mathord", "smash",
}  # fmt: skip
_SPACES = {"quad", "qquad", "enspace", "thinspace", "medspace", "thickspace", "newline", "space",
           "nonumber", "notag", "smallskip", "bigskip", "negthinspace"}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?|\\(.)", re.DOTALL)
_FONT = re.compile(
    r"\\(text(?:bf|it|rm|sf|tt|normal|sc|up)?|mbox|hbox|emph|underline|operatorname\*?"
    r"|math(?:rm|bf|it|sf|tt|normal|cal|scr|frak)|bm|bold|mathop)[ ]{0,4}\{([^{}]*)\}"
)
# Commands whose argument is not part of the answer: blank space, a colour's name, a tag.
_WITH_ARGUMENT = re.compile(
    r"\\(?:vphantom|[vh]space\*?|kern|color|textcolor|tag\*?|label|fontsize)\s?\{[^{}]{0,80}\}"
)
_CHOOSE = re.compile(r"\{\s*+([^{}\\]{1,40})\\choose(?![A-Za-z])\s*+([^{}\\]{1,40})\}")
_NO_DELIMITER = re.compile(r"\\(?:left|right)\s?\.")
_OUTER_FONT = re.compile(
    r"\\(?:(?:math(?:bf|it|sf|tt|normal)|bm|bold|underline|emph|mathop)\s?\{(?=[^{}]{0,300}\{)"
    r"|(?:text[a-z]{0,6}|mathrm|mbox|hbox)\s?\{\s?(?=\\[a-z]))"
)
_LONE_SIGN = re.compile(r"(?<![\\^_A-Za-z}])\{\s?([-+=<>:])\s?\}")
_NO_CONTENT = re.compile(r"(?<![\\A-Za-z}\]^_])\{\s{0,4}\}")
_NESTED_TEXT = re.compile(r"\\text\{\{([^{}]*)\}\}")
_GROUPING = [
    (re.compile(r"(?<!\d{4})(?<=\d)(?:\{,\}|,)\s{0,4}\\!\s{0,4}(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\d)\{,\}(?=\d)"), ""),
    (re.compile(r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))"), ""),
]
_APOSTROPHES = re.compile(r"(?<![\d'])\d{1,3}(?:'\d{3})+(?![\d'])")
_DELIMITERS = re.compile(
    r"(?<!\\)\$+|(?<!\\)\\[()]|(?<!\\)\\[\[\]](?!\s*\d+(?:\.\d+)?(?:pt|ex|em))"
)
_DOLLAR = re.compile(r"(?<![A-Za-z\\])(?:USD?|HKD?|CAD?|AUD?)\$(?=\s?\d)|\$")
_UNCLOSED_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{")
_PERCENT = re.compile(
    r"\\%|(?<=[\d}) ])\s{0,4}(?:\\text\{\s{0,4})?(?:per ?cent(?:age)?|pct)(?:\s{0,4}\})?"
    r"\.?(?![a-z])"
)
_DEGREE = re.compile(
    r"(?<=[\d}) ])\s{0,4}(?:\\text\{\s{0,4}degrees?(?: [Cc]elsius| [Ff]ahrenheit)?\s{0,4}\}"
    r"|degrees?(?![a-zA-Z]))"
)
_MODULE = re.compile(r"(?<![A-Za-z\\])(?:np|numpy|math|sympy)\.(?=[a-z])")
_AND_OR = re.compile(r"\\text\{[\s,;]*(and|or|and/or|&|und|et|ou|oder|或|和)[\s,;]*\}")
_GLUED_OR = re.compile(r"(?<=[\d)}\]])(and|or)(?=[A-Z\d(\\\[-])")
_ELLIPSIS = re.compile(r"(?<=[,+ ])\.\.\.(?=[,+ ])")
_CIRCLE = re.compile(
    r"\^\s*+(?:\{\s*+)?\\circ(?![A-Za-z])\s*\}?|\^\s*+(?:\{\s*+o\s*+\}|o(?![A-Za-z]))"
    r"|\\circ(?![A-Za-z])"
)
_TEMPERATURE = re.compile(
    r"°\s*(?:\\text\s?\{\s*(?:[CF]|[Cc]elsius|[Ff]ahrenheit)\s*\}"
    r"|(?:[CF]|[Cc]elsius|[Ff]ahrenheit)(?![A-Za-z(]))"
)
_NUMERIC_TEXT = re.compile(r"\s*(?:[-+]?[\d.,/:]+|[-+=<>])\s*")
_LETTER_LIST = re.compile(r"\s*\(?[A-J]\)?(?:\s*(?:,|and|&|,\s*and)\s*\(?[A-J]\)?)+\s*")
_NEGATED = re.compile(r"\\not\s?(=|<|>|\\in(?![A-Za-z]))")
_NEGATIONS = {"=": r"\ne ", "<": r"\ge ", ">": r"\le ", r"\in": r"\notin "}
_AMPERSAND = re.compile(r"(?<=\d)\s?\\?&\s?(?=[-\d])")
_LABELLED_ROW = re.compile(r"\\\\\s*(?=[A-Za-z](?:_\{?\w\}?)?\s?=)")
_TYPED_POWER = re.compile(r"(?<=\d)\s?[xX]\s?(?=10\s?\^)")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(
    r"(?<=\d)\s{0,4}(\\text\{\s{0,4})?(hundred|thousand|million|billion|trillion|dozen)s?"
    r"(?![A-Za-z])\s{0,4}(\})?"
)
# "3 quarters": the word is the denominator.
_PART = re.compile(
    rf"(?<![\d.}}])(\d+)\s{{0,4}}(?:\\text\{{\s{{0,4}})?({'|'.join(PARTS)}|halve)s?\s{{0,4}}\}}?\s*\Z"
)
_TO = re.compile(r"(-?[\d.]+)\s?(?:\\text\{\s?to\s?\}|to)\s?(-?[\d.]+)")
_DOTTED = re.compile(r"\\dot\s?\{?(\d)\}?(\d{0,20})\\dot\s?\{?(\d)\}?")
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "arcsec",
    "arccsc", "sinh", "cosh", "tanh", "ln", "log", "lg", "exp", "sqrt", "gcd", "lcm", "min",
    "max", "sgn", "sign", "mod", "det", "tr", "Re", "Im", "arg",
}  # fmt: skip
_SPARE_SPACE = re.compile(r"(\\[A-Za-z]+) +(?![A-Za-z ])")
_LEADING = re.compile(
    r"(?:(?:so|thus|hence|therefore|then)[, ]+)?"
    r"(?:(?:the )?(?:final |correct )?(?:answer|result|value|solution|option|choice)s?"
    r"(?: is| are|:| =)[: ]*|it is |there (?:is|are) (?=\d)|only |exactly |approximately |about "
    r"|roughly |simply |i\.e\. )",
    re.IGNORECASE,
)
_LEADING_TEXT = re.compile(
    r"\\text\{\s*(?:only|exactly|approximately|about|"
    r"(?:the )?(?:final )?answer(?: is)?(?:\s*+:)?|[A-Za-z ]{1,40}:)\s*+\}",
    re.IGNORECASE,
)
_ANSWER_IS = re.compile(r".*\b(?:answer|réponse) (?:is|est)\b:?\s*", re.IGNORECASE | re.DOTALL)
_TEXT_IS = re.compile(
    r".*\\text\s?\{[^{}]*\b"
    r"(?:answer is\s*+:?\s*+\}\s*+|(?:is|are|equals)\s*+:?\s*+\}\s*+(?=[^{}\d]*+[\d{]))",
    re.DOTALL,
)
_FORMULA = re.compile(r"[\d=+|^_()\[\]]|(?<![\w'])[B-HJ-Zb-z](?!\w)|\\(?!text(?![A-Za-z]))")
_FACTOR = re.compile(
    r"\b(?:twice|thrice|half|halves|double|triple|minus|negative|plus|times|more|less|most|least"
    r"|almost|square|cube|reciprocal|opposite|inverse|percent|part|third|quarter|hundred|thousand"
    r"|million|billion|dozen|if|or|where|when)|[^\w\s,.:{}\\']|[^\s{](?=the (?:final )?answer)",
    re.IGNORECASE,
)
_DENIED = re.compile(rf"{DENIAL.pattern}|\bno\b", re.IGNORECASE)
_IS_ANSWER = re.compile(
    r" ?(?:\\text\{ ?)?(?<=[ {])is (?:the|our|my) (?:final |correct |right )?"
    r"(?:answer|solution|result|value) ?\}?\Z"
)
_NUMBERED = re.compile(r"(?<![A-Za-z\\{])[A-Z][a-z]{2,12} \d{1,2}:\s")
_LOOSE_SPACE = re.compile(r"\s+(?=\D)|(?<=\D)\s+")
_LOOSE_BRACES = re.compile(r"(?<=[\^_])\{([A-Za-z0-9])\}")


def clean(text: str) -> str:
    """Return ``text`` in the common spelling. Values are unchanged."""
    if text.isascii() and text.isalnum():
        return text
    text = unwrap_boxes(plain_characters(repair(text)))
    text = _balance(_UNCLOSED_BOX.sub("", text))
    text = _delimiters(text)
    text = _NO_CONTENT.sub("", _LONE_SIGN.sub(r"\1", _markup(text)))
    text = _words(text)
    return _ends(text)


def _balance(text: str) -> str:
    """Drop one stray closing brace at the end; `clean` makes no larger repairs."""
    if not text.endswith("}") or text.endswith("\\}"):
        return text
    plain = text.replace("\\{", "").replace("\\}", "")
    return text[:-1] if plain.count("}") == plain.count("{") + 1 else text


def _delimiters(text: str) -> str:
    """Remove math delimiters, currency signs, Markdown, and digit grouping that is markup."""
    for pattern, replacement in _GROUPING:
        text = pattern.sub(replacement, text)
    if "'" in text:
        text = _APOSTROPHES.sub(lambda match: match.group().replace("'", ""), text)
    if "$" in text:
        text = _DOLLAR.sub(" ", text.replace("\\$", " "))
    text = _DELIMITERS.sub(" ", text)
    if "**" in text and text.count("**") == 2 and text.startswith("**"):
        text = text.replace("**", "")
    return text.replace("`", "") if text.startswith("`") else text


def _markup(text: str) -> str:
    """Write every command in one spelling; drop sizes and spaces; write text as ``\\text``."""
    if "\\" not in text:
        return text.replace("~", " ")
    if "\\choose" in text:
        text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    text = _NO_DELIMITER.sub(" ", _WITH_ARGUMENT.sub(" ", text))
    text = _NESTED_TEXT.sub(r"\\text{\1}", text)
    for _ in range(4):
        text, count = _FONT.subn(_font, text)
        if not count:
            break
    text = _OUTER_FONT.sub("{", text).replace("\x00", "\\text")
    text = _NEGATED.sub(lambda match: _NEGATIONS[match.group(1)], text)
    text = _SPARE_SPACE.sub(r"\1", _COMMAND.sub(_command, text))
    return _DOTTED.sub(r"\\overline{\1\2\3}", text.replace("~", " "))


def _font(match: re.Match[str]) -> str:
    """Unwrap fonts around numbers and formulas; words become ``\\text{words}``."""
    content = match.group(2).replace("~", " ")
    if content.strip() in _FUNCTIONS:
        return f" \\{content.strip()} "
    if match.group(1) in ("mathbf", "mathit", "bm", "bold", "emph", "underline"):
        return " " + content + " "
    if _NUMERIC_TEXT.fullmatch(content) or "\\" in content or _LETTER_LIST.fullmatch(content):
        return " " + content + " "
    return f"\x00{{{content}}}" if content.strip() else " "


def _command(match: re.Match[str]) -> str:
    name, other = match.group(1), match.group(2)
    if other is not None:
        if other in ",;:!> ~\n\t":
            return " "
        return match.group()
    if name in _DROPPED:
        return " "
    if name in _SPACES:
        return " "
    name = _COMMANDS.get(name, name)
    if name in _PLAIN:
        return name
    if name in "{}":
        return "\\" + name
    if name in ("and", "or"):
        return f" {name} "
    return f"\\{name} "


def _words(text: str) -> str:
    """Read the words that are notation: percent, degrees, and, or."""
    text = _MODULE.sub("", text)
    if "\\text" in text:
        text = _AND_OR.sub(_and_or, text)
    text = _ELLIPSIS.sub(r"\\ldots ", _GLUED_OR.sub(r" \1 ", text))
    if "\\begin" not in text:
        text = _LABELLED_ROW.sub(", ", _AMPERSAND.sub(" and ", text))
    text = _SCALE.sub(_scaled, _TYPED_POWER.sub("*", text))
    text = text.replace("hundred and ", "hundred ")
    text = _PART.sub(
        lambda match: f"\\frac{{{match.group(1)}}}{{{PARTS.get(match.group(2), 2)}}}", text
    )
    ratio = _TO.fullmatch(text.strip())
    if ratio is not None:
        text = f"{ratio.group(1)}:{ratio.group(2)}"
    if "mod" in text:
        text = _MODULUS.sub(lambda match: f" \\mod {match.group(1) or match.group(2)}", text)
    text = _PERCENT.sub("%", text)
    text = _DEGREE.sub(r"^\\circ ", text)
    if "circ" in text or "^" in text:
        text = _CIRCLE.sub("° ", text)
    return _TEMPERATURE.sub("°", text) if "°" in text else text


def _scaled(match: re.Match[str]) -> str:
    opened, name, closed = match.groups()
    factor = "*12" if name == "dozen" else f"*10^{{{_SCALES[name]}}}"
    return factor + ("\\text{" if opened and not closed else "}" if closed and not opened else " ")


def _and_or(match: re.Match[str]) -> str:
    return " or " if match.group(1) in ("or", "ou", "oder", "或") else " and "


def squeeze(text: str) -> str:
    """Drop spaces and braces that change nothing, for comparing two cleaned answers as text."""
    text = _LOOSE_SPACE.sub("", text)
    return _LOOSE_BRACES.sub(r"\1", text)


def _ends(text: str) -> str:
    """Remove what surrounds the answer: filler words, outer space, a final full stop."""
    text = text.strip().removeprefix(":").strip()
    if len(text) > 2 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    if ": " in text:
        text = _NUMBERED.sub("", text)
    said = _TEXT_IS.match(text) if "\\text" in text and "is" in text else None
    if said is None and (" is" in text or " est" in text):
        said = _ANSWER_IS.match(text)
    if said is not None and said.end() < len(text) and _is_talk(said.group()):
        text = text[said.end() :]
    text = _without_stop(text) if not text.endswith("...") else text
    lead = _LEADING.match(text.replace("\\text{", "").lstrip()) if text[:1].isalpha() else None
    if lead is None and text.startswith("\\text{"):
        word = _LEADING_TEXT.match(text)
        text = text[word.end() :] if word and not _DENIED.search(word.group()) else text
    elif lead is not None and lead.end() < len(text):
        text = text[lead.end() :]
    text = _IS_ANSWER.sub("", re.sub(r"\s+", " ", text)).strip()
    return " \\cup ".join(map(_inward, text.split("\\cup"))) if text[-1:] in "[]" else text


def _is_talk(said: str) -> bool:
    """Tell whether what stands before "the answer is" gives no answer and denies none."""
    return not (DENIAL.search(said) or _FORMULA.search(said) or _FACTOR.search(said))


def _without_stop(text: str) -> str:
    """Drop punctuation, space and lone backslashes at the end, but no ellipsis."""
    end = len(text)
    while end and (
        text[end - 1] in ",;:\u3002\\"
        or text[end - 1].isspace()
        or (text[end - 1] == "." and text[end - 2 : end - 1] != ".")
    ):
        end -= 1
    return text[:end]


def _inward(interval: str) -> str:
    """Write ``]0, 1[`` as the open interval (0, 1)."""
    outward = _OUTWARD.fullmatch(interval)
    if outward is None:
        return interval
    member, opening, ends, closing = outward.groups()
    left, right = "(" if opening == "]" else "[", ")" if closing == "[" else "]"
    return f"{member}{left}{ends}{right}"
