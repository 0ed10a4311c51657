r"""Side conditions behind an answer: "where k is an integer", "for all real x", "(approx. 0.33)".

A condition is dropped if it states something that leaves the answer what it is. One that states
nothing ("where n(n+1)"), gives a name of the answer a value, has another answer in it, denies or
hedges, is left where it stands, so that the whole is no answer.
"""

import re

from reward.denials import DENIAL
from reward.word_answers import number_in_words

_CONDITION = re.compile(
    r"[\s{(,](?:(where|for (?:all|any|some|every|each)|such that)"
    r"|(respectively|as required)|(?:or )?(approx(?:imately|\.)?))(?![a-z])"
    r"|(?:\(\s*+\\text\s?\{|\\text\s?\{\s*+\()\s*+"
    r"(?:(about|approx|i\.e)|(rounded|to |in |since|because))"
    r"|(\\forall)(?![a-z])",
    re.IGNORECASE,
)
_OPENERS = re.compile(r"(?:\\text\s?\{|[\s{(,;])\Z")
# What a side condition never has: another answer, or a denial of the first one.
_HEDGE = re.compile(
    r"\b(?:otherwise|else|cases?|others?|or|but|sometimes|maybe|perhaps|instead|and\s*+-?\d)\b",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"\b(?:is|are|be|denotes?|represents?|means?|stands?|belongs?|ranges?|runs?|counts?|satisf\w+"
    r"|(?:if |when |as )?(?:applicable|defined|possible|necessary|needed|appropriate|required))\b"
)
_SIGN = re.compile(
    r"==?|[<>]=?|\\(?:in|notin|ne|neq|le|leq|ge|geq|mid|equiv|subset(?:eq)?)(?![A-Za-z])"
)
_PLAIN_WORDS = re.compile(r"[\w ,.'-]+")
_FORMULA = re.compile(r"[^\w\s,.'-]")
_BRACKET = re.compile(r"[\[\]]")
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")


def strip_condition(text: str) -> str:
    r"""Cut a side condition ("where ...", "for all ...") off an answer.

    An approximation behind a value becomes a chain: "1/3 (approximately 0.33)" reads
    ``1/3 \\approx 0.33``. Text with another answer in it ("5 where 6") is left as it is.
    """
    match = _CONDITION.search(text)
    if match is None or match.start() == 0:
        return text
    head, behind = text[: match.start()], text[match.end() :]
    while opener := _OPENERS.search(head):
        head = head[: opener.start()]
    rest = _COMMENT.sub("", re.sub(r"\\text|[{}()]", " ", behind)).strip(" .,")
    if not head or head.count("{") != head.count("}") or head.count("(") != head.count(")"):
        return text
    condition, closing, roughly, comment, _, forall = match.groups()
    if roughly or comment:
        sign = "=" if comment and comment.lower() == "i.e" else "\\approx"
        return f"{head} {sign} {_WORDS_BEHIND.sub(_as_text, rest)}" if rest else head
    if _assigns(head, rest) or (not closing and not condition and not forall and _figures(rest)):
        return text
    hedged = _CONDITION.search(behind) or _HEDGE.search(rest) or DENIAL.search(rest)
    says = condition or forall
    if hedged or (closing and rest) or (says and not _states(head, rest, says.lower())):
        return text
    return head


def _assigns(head: str, rest: str) -> bool:
    """Tell whether a condition gives a value to the answer: "5 where it is 6", "x where x = 6"."""
    if not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", head)):
        said = re.findall(r"(?:=|\b(?:is|equals|be)\b)\s*+([-\w]*+)", rest)
        return any(re.match(r"-?\d", one) or number_in_words(one) is not None for one in said)
    names = set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", head))
    return any(name in names for name in re.findall(r"([A-Za-z])\s*+(?:=|is)\s*+-?\d", rest))


def _figures(comment: str) -> bool:
    """Tell whether a comment has numbers, other than how many digits the answer has."""
    return bool(re.search(r"\d", _PLACES.sub("", comment)))


_PLACES = re.compile(
    r"\b(?:to )?\d{1,2} ?(?:decimal|digit|dp|d\.p|place|significant|figure|s\.f|sf)"
)


def _as_text(match: re.Match[str]) -> str:
    return f"\\text{{{match.group()}}}"


_COMMENT = re.compile(r"\A(?:imately|\.)?[\s,:]*+")
_WORDS_BEHIND = re.compile(r"(?<=\d)\s++[A-Za-z ]++\Z")
_NAMED = re.compile(r"\\?(?!(?:and|or|but)\b)[A-Za-z]")


def _states(head: str, condition: str, opener: str) -> bool:
    """Tell whether a condition says something, and nothing about what the answer is."""
    if not _NAMED.match(condition) or condition.count("|") % 2 or _BRACKET.search(condition):
        return False
    sides = _SIGN.split(condition)
    names = set(re.sub(r"\\[A-Za-z]+|[A-Za-z]{4,}|[^A-Za-z]", "", head))
    if len(sides) == 1:
        if opener.startswith("for") or opener == "\\forall":
            return _PLAIN_WORDS.fullmatch(condition) is not None
        verb = _VERB.search(condition)
        if verb is None or _FORMULA.search(condition, verb.end()):
            return False
        return len(verb.group()) > 7 or bool(condition[verb.end() :].strip())
    if not all(map(str.strip, sides)) or not _LETTER.search(condition):
        return False
    if "=" not in _SIGN.findall(condition) or opener.startswith("for"):
        return True
    left = set(_LETTER.findall(sides[0]))
    if _LETTER.fullmatch(sides[0].strip()):  # "where C = constant"
        return bool(left & names) and re.match(r"\s*+[a-z]{3}", sides[1]) is not None
    return len(left) > 1 and left <= names  # "where a + b = 1"
