r"""Read a cleaned answer as a structure: value, list, tuple, set, interval, matrix, relation, text.

The structure is given by the brackets, separators and relation signs at depth zero;
`reward.expression` parses the parts. Nothing is evaluated here.

    "1, 2 or 3"            BareList(("1", "2", "3"), "or")
    "(1, 2]"               Bracket("(", "]", (1, 2))
    "\{1, 2\}"             Bracket("\{", "\}", (1, 2))
    "(-\infty,1)\cup\{2\}" Union((Bracket, Bracket))
    "x = 2y = 4"           Relation((x, 2y, 4), ("=", "="))
    "25\%"                 Percent(25)
    "5 \text{ cm}^2"       Value(5, unit="cm^2")
"""

import re
from collections.abc import Callable

from reward.conditions import strip_condition
from reward.expression import Tree, parse
from reward.nodes import (
    BareList,
    Bracket,
    Builder,
    Matrix,
    Node,
    Percent,
    Relation,
    Text,
    Union,
    Value,
)
from reward.numeric import symbols
from reward.tokens import NotAnExpression
from reward.units import (
    split_known_unit,
    split_rate,
    split_roman_unit,
    split_unit,
)
from reward.word_answers import words

MAX_ITEMS = 200
MAX_NESTING = 12

_TOKENS = re.compile(
    r"\\begin\{[a-z]*matrix\*?\}|\\begin\{(?:array|cases|aligned|align\*?|gathered)\}"
    r"|\\end\{[a-z*]+\}|\\[{}]|\\[A-Za-z]+|\\.|(?<![\d)])!=|<=|>=|==|<|>|=|[()\[\]{},;|:/-]"
    r"|(?<![A-Za-z])(?:and|or)(?![A-Za-z])"
)
_SIGNS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=",
    "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\approx": "~", "\\in": "in",
}  # fmt: skip
_OPEN = {"(", "[", "{", "\\{"}
_CLOSE = {")", "]", "}", "\\}"}
_PARTNER = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
_ORDINAL = re.compile(
    r"(?<=\d)\s?(?:\^\s?\{\s?\\text\s?\{\s?(?:st|nd|rd|th)\s?\}\s?\}|\^\s?\\text\s?\{(?:st|nd|rd|th)\}"
    r"|\^\s?\{\s?(?:st|nd|rd|th)\s?\}|\\text\s?\{\s?(?:st|nd|rd|th)\s?\}|(?:st|nd|rd|th)(?![A-Za-z]))"
)
_MATRIX = re.compile(r"\\begin\{([a-zA-Z*]+)\}(.*)\\end\{\1\}", re.DOTALL)
_DOUBLE_SIGN = re.compile(r"\\(?:pm|mp)(?![a-z])|\+/?-")
_DOMAIN = re.compile(r"[A-Za-z]\s*+\\in\s*+(?:\\mathbb\s?\{?[ZNQRC]\}?|[ZN])\s*+(?:[_^].{0,12})?")
_DOMAIN_BEHIND = re.compile(rf"\(\s*+{_DOMAIN.pattern}\s*+\)\s*+\Z")
_EXCEPT = re.compile(
    r"(?:\\text\s?\{\s*+)?(?:all )?real (?:numbers|values)(?: x)? except(?: for)?(?:\s*+\})?"
    r"\s*+(?:[a-z]\s?=)?\s*+(?=[-\d\\])",
    re.IGNORECASE,
)
_SET_BODY = re.compile(r"\\\{(?:(?!\\[{}]).)*\\\}")
_ASSIGNED = re.compile(r"([A-Za-z](?:_\{?\w\}?)?)\s*=\s*([^=<>]+)")
_POINT = re.compile(r"[A-Z]'?\s?(?=\()")
_NUMBER = re.compile(r"\s*+-?\d++\s*+")
_DIGIT = re.compile(r"\s*\d\s*")
_LEADING_SIGN = re.compile(r"(?:\A|,|\b(?:and|or)\b)\s*+(?:=|\\approx)")  # of an item in brackets
_WHOLE_TEXT = re.compile(r"\\text\s*+\{([^{}\d]*+\d[^{}]*+)\}")


def read(text: str, depth: int = 0) -> Node:
    """Read a cleaned answer (see `reward.normalize.clean`)."""
    text = _ORDINAL.sub("", text).strip() if depth == 0 else text.strip()
    whole = _WHOLE_TEXT.fullmatch(text)
    if whole:
        text = whole.group(1).strip()
    if depth > MAX_NESTING:
        return Text(text)
    if _is_open_ended(text):
        return Text(text)
    solutions = _solutions(text, depth)
    if solutions is not None:
        return solutions
    parts, joint = _split_list(text)
    if len(parts) == 1 and not _has_plus_minus(parts[0]):
        return _read_item(parts[0], depth)
    if len(parts) > MAX_ITEMS or any(map(_LEADING_SIGN.match, parts[1:])):
        return Text(text)
    items: list[Node] = []
    for part in parts:
        for variant in _plus_minus(part):
            node = _read_item(variant, depth + 1)
            items += node.items if isinstance(node, BareList) else (node,)
    return BareList(tuple(items), joint) if len(items) != 1 else items[0]


def _solutions(text: str, depth: int) -> Node | None:
    """Read "x = 1, y = 2 or x = 3, y = 4" as the points (1, 2) and (3, 4)."""
    tokens = _top_level(text)
    between = [item for item in tokens if item[2] in (";", "and", "or")]
    commas = sum(item[2] == "," for item in tokens)
    groups = [_split_list(group.strip(", "))[0] for group in _cut(text, between)]
    if not between or commas < len(groups) or len({len(group) for group in groups}) != 1:
        return None
    points: list[Node] = []
    names: set[str] = set()
    for group in groups:
        matches = [match for part in group if (match := _ASSIGNED.fullmatch(part))]
        named = {match.group(1): match.group(2) for match in matches}
        names = names or set(named)
        if len(named) != len(group) or len(named) < 2 or set(named) != names:
            return None
        values = tuple(_read_item(named[name], depth + 1) for name in sorted(names))
        points.append(Bracket("(", ")", values))
    return BareList(tuple(points))


def _has_plus_minus(text: str) -> bool:
    """Tell whether a plus-minus sign is outside every set (a set writes out its own)."""
    if not _DOUBLE_SIGN.search(text):
        return False
    for _ in range(4):
        text = _SET_BODY.sub("", text)
    return _DOUBLE_SIGN.search(text) is not None


def _plus_minus(text: str) -> list[str]:
    """Write out both signs; all signs of one expression go together."""
    if not _has_plus_minus(text):
        return [text]
    text = text.replace("+/-", "\\pm ").replace("+-", "\\pm ")
    upper = re.sub(r"\\mp(?![a-z])", "-", re.sub(r"\\pm(?![a-z])", "+", text))
    lower = re.sub(r"\\mp(?![a-z])", "+", re.sub(r"\\pm(?![a-z])", "-", text))
    return [upper, lower]


def _top_level(text: str) -> list[tuple[int, int, str]]:
    """List the tokens of ``text`` outside all brackets, as (start, end, token)."""
    found, level, quiet = [], 0, False
    for match in _TOKENS.finditer(text):
        token = match.group()
        if token in _OPEN or token.startswith("\\begin"):
            if level == 0 and not quiet:
                found.append((match.start(), match.end(), token))
            level += 1
        elif token in _CLOSE or token.startswith("\\end"):
            level = max(0, level - 1)
            if level == 0:
                found.append((match.start(), match.end(), token))
        elif token == "\\sqrt":
            quiet = False
        elif level == 0:
            found.append((match.start(), match.end(), token))
    return found


def _cut(text: str, cuts: list[tuple[int, int, str]]) -> list[str]:
    pieces, position = [], 0
    for start, end, _ in cuts:
        pieces.append(text[position:start].strip())
        position = end
    return [*pieces, text[position:].strip()]


def _split_list(text: str) -> tuple[list[str], str]:
    """Split at commas, semicolons, "and" and "or" outside brackets."""
    cuts = [item for item in _top_level(text) if item[2] in (",", ";", "and", "or")]
    if not cuts:
        return [text], ","
    parts = [part for part in _cut(text, cuts) if part]
    if len(parts) > 1:  # "k\\pi, k \\in \\mathbb{Z}" says where k lives
        parts = [part for part in parts if not _DOMAIN.fullmatch(part)] or parts
    joint = "or" if any(token == "or" for _, _, token in cuts) else ","
    if any(token == "and" for _, _, token in cuts):
        joint = "and" if joint == "," else "mixed"
    return parts or [text], joint


def _is_open_ended(text: str, closed: bool = False) -> bool:
    """Tell whether an item of a list is missing; before "and" and "or" there may be a comma.

    At the end of a list that is not in brackets (``closed``) there may be a comma too.
    """
    cuts = [item for item in _top_level(text) if item[2] in (",", ";", "and", "or")]
    if not cuts:
        return False
    texts = _cut(text, cuts)
    missing = [
        not before and not (cut[2] in ("and", "or") and index)
        for index, (before, cut) in enumerate(zip(texts, cuts, strict=False))
    ]
    return any(missing) or (not texts[-1] and (closed or cuts[-1][2] in ("and", "or")))


def _read_item(text: str, depth: int) -> Node:
    text = strip_condition(_DOMAIN_BEHIND.sub("", text.strip()).strip())
    if depth > MAX_NESTING:
        return Text(text)
    if words(text) == "all real numbers":
        return Union((_bracket_of_all(),))
    exception = _EXCEPT.match(text)
    if exception is not None:
        holes, _ = _split_list(text[exception.end() :])
        out = tuple(_read_item(hole, depth + 1) for hole in holes)
        return Union((_bracket_of_all(),), (Bracket("\\{", "\\}", out),))
    for reader in (_read_matrix, _read_relation, _read_union, _read_ratio, _read_bracket):
        node = reader(text, depth)
        if node is not None:
            return node
    return _read_value(text)


def _read_matrix(text: str, depth: int) -> Node | None:
    if "\\begin" not in text:
        return None
    inner = text
    while (outer := _bracketed(inner)) is not None and outer[:2] in (("(", ")"), ("[", "]")):
        inner = outer[2].strip()
    match = _MATRIX.fullmatch(inner)
    if match is None:
        return None
    if "\\end{" + match.group(1) in match.group(2):
        return Text(text)  # a product of matrices, or a matrix of matrices
    environment, body = match.group(1), match.group(2)
    if environment == "array":
        body = re.sub(r"\A\s*\{[^{}]*\}", "", body)
    rows = [row for row in body.split("\\\\") if row.strip()]
    if environment in ("cases", "aligned", "align", "align*", "gathered"):
        lines = _lines(rows)
        items = tuple(read(line, depth + 1) for line in lines)
        return items[0] if len(items) == 1 else BareList(items, "and")
    if len(rows) > MAX_ITEMS:
        return Text(text)
    if _is_rendering(rows):
        return read(_rejoined(rows), depth + 1)
    if (
        len(rows) > 2
        and len(rows) % 2 == 0
        and all(map(_is_name_and_number, rows[::2], rows[1::2]))
    ):
        return read(",".join(rows[1::2]), depth + 1)  # a, 13, b, 14: each name above its value
    if environment == "matrix" and len(rows) > 2 and all(_DIGIT.fullmatch(row) for row in rows):
        return read("".join(row.strip() for row in rows), depth + 1)
    if environment == "array" and len(rows) == 1 and "&" not in rows[0]:
        return read(rows[0], depth + 1)
    cells = tuple(tuple(read(cell, depth + 1) for cell in row.split("&")) for row in rows)
    return Matrix(cells, environment)


def _is_name_and_number(name: str, number: str) -> bool:
    return (
        re.fullmatch(r"\s*+[a-z]\s*+", name) is not None and _NUMBER.fullmatch(number) is not None
    )


def _lines(rows: list[str]) -> list[str]:
    """Write rows as lines; one that begins with an equals sign goes on with the line before it."""
    lines: list[str] = []
    for row in map(_line, rows):
        if lines and row.lstrip().startswith("="):
            lines[-1] += row
        else:
            lines.append(row)
    return lines


def _line(row: str) -> str:
    r"""Write a row of ``cases`` as "value, condition" and of ``align`` as one equation."""
    row = re.sub(r"&\s*(?==|<|>|\\(?:le|ge|ne)(?![a-z]))", " ", row)
    return re.sub(
        r"(?<![,\s])[,\s]*+&\s*+(?:\\text\s?\{\s*+(?:if|when|for)\s*+\}|(?:if|when|for)\s)?",
        ", ",
        row,
    )


def _is_rendering(rows: list[str]) -> bool:
    """Tell whether a matrix is one expression that markup broke into rows.

    A row with unbalanced braces, or with a single sign, is not a cell.
    """
    return any(row.count("{") != row.count("}") or row.strip() in "+-*/=()" for row in rows)


def _rejoined(rows: list[str]) -> str:
    r"""Write the pieces of a broken-up expression in one line and complete its fractions."""
    text = re.sub(r"\s+", " ", " ".join(rows))
    text = re.sub(r"\}\s*\\frac\s*\{\s*\}\s*\{", "}{", text)
    text = re.sub(r"\}\s*\\frac\s*\{\s*\}\s*(\d+)\s*\Z", r"}{\1}", text)
    return re.sub(r"\\frac\s*(\{(?:[^{}]|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})*\})\s*/", r"\1/", text)


def _read_relation(text: str, depth: int) -> Node | None:
    cuts = [item for item in _top_level(text) if item[2] in _SIGNS]
    if not cuts:
        return None
    texts = _cut(text, cuts)
    signs = tuple(_SIGNS[token] for _, _, token in cuts)
    if not texts[0] and signs[0] in ("=", "~"):  # "= 5", "\approx 5"
        texts, signs = texts[1:], signs[1:]
        if not signs:
            return read(texts[0], depth + 1)
    if not all(texts) or any(strip_condition(part) != part for part in texts[:-1]):
        return Text(text)
    parts = tuple(read(part, depth + 1) for part in texts)
    if signs[0] == "in" and len(signs) == 1:
        return Union((_bracket_of_all(),)) if texts[1] == "R" else parts[1]
    return Relation(parts, signs, tuple(texts))


def _read_union(text: str, depth: int) -> Node | None:
    tokens = _top_level(text)
    cuts = [item for item in tokens if item[2] in ("\\cup", "\\setminus")]
    bare = re.sub(r"\s", "", text)
    if not cuts and (bare.startswith("\\mathbb{R}") or "\\}-\\{" in bare):
        cuts = [item for item in tokens if item[2] == "-"]
    if not cuts:
        if bare in ("\\mathbb{R}", "R", "\\R"):
            return Union((_bracket_of_all(),)) if bare != "R" else None
        return None
    parts = [read(part, depth + 1) for part in _cut(text, cuts) if part]
    if len(parts) != len(cuts) + 1:
        return None
    pieces: list[Node] = [parts[0]]
    without: list[Node] = []
    for (_, _, token), part in zip(cuts, parts[1:], strict=True):
        (pieces if token == "\\cup" else without).append(part)
    return Union(tuple(pieces), tuple(without))


def _read_ratio(text: str, depth: int) -> Node | None:
    """Read ``2:3:5``; a ratio of two terms is a quotient, which the expression parser reads."""
    cuts = [item for item in _top_level(text) if item[2] == ":"]
    if len(cuts) < 2:
        return None
    terms = tuple(_read_value(term) for term in _cut(text, cuts))
    plain = all(isinstance(term, Value) and not term.unit for term in terms)
    return Bracket(":", ":", terms) if plain else None


def _bracket_of_all() -> Bracket:
    infinity: Tree = ("const", "inf")
    return Bracket("(", ")", (Value(("neg", infinity), "-\\infty"), Value(infinity, "\\infty")))


def _bracketed(text: str) -> tuple[str, str, str] | None:
    """Return (opening, closing, inside) if one pair of brackets encloses all of ``text``."""
    tokens = [item for item in _top_level(text) if item[2] in _OPEN | _CLOSE]
    if len(tokens) != 2 or tokens[0][0] != 0 or tokens[1][1] != len(text):
        return None
    if tokens[0][2] not in _OPEN or tokens[1][2] not in _CLOSE:
        return None
    return tokens[0][2], tokens[1][2], text[tokens[0][1] : tokens[1][0]]


def _read_bracket(text: str, depth: int) -> Node | None:
    outer = _bracketed(text)
    if outer is None:
        if text == "\\emptyset":
            return Bracket("\\{", "\\}", ())
        point = _POINT.match(text)  # "P(4, -1)" names a point
        named = _read_bracket(text[point.end() :], depth) if point else None
        return named if isinstance(named, Bracket) else None
    opening, closing, inside = outer
    if (
        (opening == "\\{") != (closing == "\\}")
        or _is_open_ended(inside, closed=True)
        or _LEADING_SIGN.search(inside)
    ):
        return Text(text)
    if opening == "\\{" and closing == "\\}":
        return _read_set(inside, depth)
    if (opening, closing) == ("{", "}"):
        return read(inside, depth + 1)
    parts, joint = _split_list(inside)
    if len(parts) == 1 or joint != ",":
        if _PARTNER[opening] == closing and opening == "(":
            node = read(inside, depth + 1)
            return node if not isinstance(node, Value) else None
        return None
    if len(parts) > MAX_ITEMS:
        return Text(text)
    return Bracket(opening, closing, tuple(_read_item(part, depth + 1) for part in parts))


def _read_set(inside: str, depth: int) -> Node:
    bars = [item for item in _top_level(inside) if item[2] in ("|", ":")]
    if bars and len(bars) % 2 == 1 and bars[0][0] > 0:
        element = inside[: bars[0][0]].strip()
        if len(element) > 1 and _DOMAIN.fullmatch(inside[bars[0][1] :].strip()):
            # {2k | k in Z} stands for 2k, as "2k, k in Z" does
            return Bracket("\\{", "\\}", (read(element, depth + 1),))
        return Builder(read(inside[bars[0][1] :], depth + 1))
    parts, _ = _split_list(inside)
    items: list[Node] = []
    for part in parts if inside.strip() else []:
        items += [_read_item(variant, depth + 1) for variant in _plus_minus(part)]
    return Bracket("\\{", "\\}", tuple(items[: MAX_ITEMS + 1]))


def _read_value(text: str) -> Node:
    if text.endswith("%"):
        bare = text[:-1].strip()
        inner = Text(bare) if bare.endswith("%") else _read_value(bare)
        return Percent(inner) if isinstance(inner, Value) and not inner.unit else Text(text)
    for split in (split_known_unit, split_roman_unit):
        node = with_unit(text, split)
        if node is not None and not symbols(node.tree):
            return node
    try:
        return Value(parse(text), text)
    except NotAnExpression:
        return with_unit(text, split_unit) or with_unit(text, split_rate) or Text(text)


def with_unit(text: str, split: Callable[[str], tuple[str, str]]) -> Value | None:
    """Read a value and the unit that ``split`` finds after it, or ``None``."""
    core, unit = split(text)
    if not unit:
        return None
    try:
        return Value(parse(core), core, unit)
    except NotAnExpression:
        return None
