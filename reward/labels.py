r"""Labels: a left side that only names what the right side says ("x = 3", "|AB| = 1").

A label may be missing from either answer. An equation whose left side is no label ("x + y = 1")
says something itself.
"""

import re

from reward.nodes import Bracket, Node, Relation, Value

_NAME = (
    r"(?:\\(?!frac|sqrt|sin|cos|tan|log|ln|begin|pm|binom)[A-Za-z]+|[A-Za-z]|[A-Z]{2,6}|\\text\{[^{}]*\}"
    r"|(?:area|volume|perimeter|length|width|height|ratio|sum|product|total|answer|value|min|max)"
    r"|\\(?:overline|vec|hat|bar|tilde|dot|widehat|overrightarrow|mathbb)\{[^{}]*\})"
)
_SUFFIX = (
    r"(?:'+|_\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|_[A-Za-z0-9]|_\\[a-z]+|\^\{?(?:\\prime|\*|-1)\}?)"
)
_QUANTITY = (
    rf"(?:\\(?:angle|triangle|text\{{[^{{}}]*\}})\s*|m\\angle\s*){{0,8}}{_NAME}(?:\s*{_SUFFIX})*"
)
_LABEL = re.compile(
    rf"\s*(?:{_QUANTITY}(?:\s*\([^()=<>]*\))?"
    rf"|\\(?:sin|cos|tan|cot)\s*\(?\s*{_QUANTITY}\s*\)?"
    rf"|\|\s*{_QUANTITY}\s*\||\[\s*[A-Z]{{3,6}}\s*\]"
    rf"|{_QUANTITY}\s*[:/]\s*{_QUANTITY}"
    rf"|\\frac\s*\{{\s*{_QUANTITY}\s*\}}\s*\{{\s*{_QUANTITY}\s*\}}"
    rf"|\(?\s*{_QUANTITY}(?:\s*,\s*{_QUANTITY})+\s*\)?)\s*"
)
# f(x), but not f(2) or P(A): those name one value each, which another label does not.
_FUNCTION = re.compile(rf"\s*(?:{_QUANTITY}\s*\((?=[^()]*[a-z])[^A-Z]*\)|y)\s*")
_NOT_LABEL = re.compile(r"\\(?:infty|mathbb|emptyset|pi)(?![a-zA-Z])")


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
    """Tell whether a left side only names what the right side says."""
    return _LABEL.fullmatch(text) is not None and _NOT_LABEL.search(text) is None


def stated_values(relation: Relation) -> list[Node] | None:
    """Return what a labelled relation says its label is, or ``None`` if there is no label."""
    if not set(relation.signs) <= {"=", "~"}:
        return None
    if is_label(relation.texts[0]):
        return before_approximation(relation, 1)
    if is_label(relation.texts[-1]) and len(relation.parts) == 2 and relation.signs[0] == "=":
        return [relation.parts[0]]
    return None


def before_approximation(relation: Relation, start: int) -> list[Node]:
    """Drop the members behind an approximation sign if exact ones stand before it."""
    members = [relation.parts[start]]
    for part, sign in zip(relation.parts[start + 1 :], relation.signs[start:], strict=True):
        if sign == "~":
            break
        members.append(part)
    return members


def one_by_one(relation: Relation) -> list[Node]:
    """Write ``(p, q) = (11, 7)`` as p = 11, q = 7 and ``A = B = 12`` as A = 12, B = 12.

    The list is empty for a relation of neither form.
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
