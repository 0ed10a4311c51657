r"""Labels: a left side that only names the value on the right side ("x = 3", "|AB| = 1").

A label may be missing from either answer. An equation whose left side is not a label ("x + y = 1")
is itself a statement.
"""

import re

from reward.denials import DENIAL
from reward.expression import nodes
from reward.nodes import Bracket, Node, Relation, Value
from reward.tokens import FUNCTIONS

_NAME = (
    r"(?:\\(?!frac|sqrt|sin|cos|tan|log|ln|begin|pm|binom)[A-Za-z]++|[A-Za-z]|[A-Z]{2,6}|\\text\{[^{}]*\}"
    r"|(?:area|volume|perimeter|length|width|height|ratio|sum|product|total|answer|value|min|max)"
    r"|\\(?:overline|vec|hat|bar|tilde|dot|widehat|overrightarrow|mathbb)\{[^{}]*\})"
)
_SUFFIX = (
    r"(?:'++|_\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\}|_[A-Za-z0-9]|_\\[a-z]++"
    r"|\^\{?(?:\\prime|\*|-1)\}?)"
)
_QUANTITY = (
    rf"(?:\\(?:angle|triangle|Delta|delta|text\{{[^{{}}]*\}})\s*+|m\\angle\s*+){{0,8}}"
    rf"{_NAME}(?:\s*+{_SUFFIX})*+"
)
_D = r"(?:d|\\partial)\s*+(?:\^\s*+\{?\s*+\d\s*+\}?\s*+)?"
_DERIVATIVE = (
    rf"(?:\\frac\s*+\{{\s*+{_D}(?:{_QUANTITY})?\s*+\}}\s*+\{{\s*+{_D}[^{{}}]{{1,20}}\}}"
    rf"|d\s*+[A-Za-z]\s*+/\s*+d\s*+[A-Za-z])"
)
_ARGUMENT = r"(?:\s*+(?:\([^()=<>]*+\)|\[[^][=<>]*+\]))?"
_LABEL = re.compile(
    rf"\s*+(?:{_QUANTITY}{_ARGUMENT}|{_DERIVATIVE}\s*+(?:{_QUANTITY})?{_ARGUMENT}"
    rf"|\\(?:sin|cos|tan|cot)\s*+\(?\s*+{_QUANTITY}\s*+\)?"
    rf"|\|\s*+{_QUANTITY}\s*+\||\[\s*+[A-Z]{{3,6}}\s*+\]"
    rf"|{_QUANTITY}\s*+[:/]\s*+{_QUANTITY}"
    rf"|\\frac\s*+\{{\s*+{_QUANTITY}\s*+\}}\s*+\{{\s*+{_QUANTITY}\s*+\}}"
    rf"|\(?\s*+{_QUANTITY}(?:\s*+,\s*+{_QUANTITY})+\s*+\)?)\s*+"
)
# f(x), but not f(2) or P(A), which name one specific value each.
_FUNCTION = re.compile(rf"\s*+(?:{_QUANTITY}\s*+\((?=[^()]*[a-z])[^A-Z]*\)|y)\s*+")
# A function's value is named only by what it is of: "\gcd(a, b) = 6", but not "\gcd(n, 6) = 6".
_OF_NAMES = r"[\s{(]*+(?:\\?[A-Za-z]++(?:_\{?\w\}?)?[\s,})]*+)*+"
_COMMAND = re.compile(rf"\s*+\\({'|'.join(sorted(FUNCTIONS))})(?![A-Za-z])(.*)", re.DOTALL)
_CALL = re.compile(r"\s*+([A-Za-z])\s*+(?:_\{?\w\}?)?\s*+\((.*)\)\s*+", re.DOTALL)
_NOT_LABEL = re.compile(
    r"\\(?:infty|mathbb|emptyset|pi|ldots|sim|approx|propto|neg|not|forall|exists|to|le|ge|ne|equiv"
    r"|pm|mp|cap|cup|in|notin|cancel|[lr](?:floor|ceil|angle|vert|brace|brack))(?![a-zA-Z])|[?!;]"
)


def label_of(relation: Relation) -> str:
    """Return the label of a labelled relation, as written."""
    return relation.texts[0] if is_label(relation.texts[0]) else relation.texts[-1]


def is_function_label(text: str) -> bool:
    """Tell whether a left side names a function (``f(x)`` or ``y``), whose name does not matter."""
    return _FUNCTION.fullmatch(text) is not None


def label_letters(text: str) -> str:
    """Reduce a label to its letters, for comparing two."""
    return re.sub(r"\\(?:angle|text|overline|left|right)|[\s{}()|]", "", text)


def is_label(text: str) -> bool:
    """Tell whether a left side only names the value on the right side."""
    if _NOT_LABEL.search(text) or DENIAL.search(text) or text.count("(") != text.count(")"):
        return False
    command, call = _COMMAND.fullmatch(text), _CALL.fullmatch(text)
    if command is not None and command[1] not in _ANGLES:
        if re.fullmatch(_OF_NAMES, command[2]) is None:
            return False
    elif call is not None and (call[1] in re.findall(r"[A-Za-z]", call[2]) or "|" in call[2]):
        return False  # "n(n + 1)" is a product
    return _LABEL.fullmatch(text) is not None


_ANGLES = {"sin", "cos", "tan", "cot"}  # as `_LABEL` has them


def stated_values(relation: Relation) -> list[Node] | None:
    """Return the values that a labelled relation gives its label, or ``None`` without a label.

    A name that is in one of the values too is no label: ``x = 4 - x`` is an equation.
    """
    if not set(relation.signs) <= {"=", "~"}:
        return None
    if is_label(relation.texts[0]):
        members, label = before_approximation(relation, 1), relation.parts[0]
    elif (
        is_label(relation.texts[-1])
        and relation.texts[-1].strip() not in ("e", "i")
        and (len(relation.parts) == 2 and relation.signs[0] == "=")
    ):
        members, label = [relation.parts[0]], relation.parts[-1]
    else:
        return None
    compound = isinstance(label, Value) and re.search(r"[(/]|\\frac", label.text)
    own = set() if compound else _names(label)  # f(x) = x + 1, dy/dx = 2x
    return None if any(own & _names(member) for member in members) else members


def _names(node: Node) -> set[str]:
    """The names of a value, with i and e, which may be labels."""
    if not isinstance(node, Value):
        return set()
    return {
        part[1]
        for part in nodes(node.tree)
        if part[0] == "sym" or (part[0] == "const" and part[1] in ("i", "e"))
    }


def before_approximation(relation: Relation, start: int) -> list[Node]:
    """Drop the members after an approximation sign if there are exact ones before it."""
    members = [relation.parts[start]]
    for part, sign in zip(relation.parts[start + 1 :], relation.signs[start:], strict=True):
        if sign == "~":
            break
        members.append(part)
    return members


def approximations(relation: Relation) -> list[tuple[Node, str]]:
    """Return the members after an approximation sign, each with how it was written."""
    late = "~" in relation.signs and relation.signs.index("~") + 1
    return list(zip(relation.parts, relation.texts, strict=True))[late:] if late else []


def one_by_one(relation: Relation) -> list[Node]:
    """Write ``(p, q) = (11, 7)`` as p = 11, q = 7, and ``A = B = 12`` as A = 12, B = 12.

    The list is empty for a relation of any other form.
    """
    if set(relation.signs) != {"="}:
        return []
    if len(relation.parts) > 2:
        *names, value = zip(relation.parts, relation.texts, strict=True)
        if not all(is_label(text) for _, text in names) or len({text for _, text in names}) == 1:
            return []
        return [Relation((part, value[0]), ("=",), (text, value[1])) for part, text in names]
    left, right = relation.parts
    if not (isinstance(left, Bracket) and isinstance(right, Bracket)):
        return []
    pairs = list(zip(left.items, right.items, strict=False))
    if len(left.items) != len(right.items):
        return []
    texts = [name.text if isinstance(name, Value) else "" for name in left.items]
    if not all(map(is_label, texts)):
        return []
    return [
        Relation((name, value), ("=",), (text, ""))
        for (name, value), text in zip(pairs, texts, strict=True)
    ]
