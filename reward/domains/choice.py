"""Multiple choice, with or without the texts of the choices.

The reference is a letter, or ``{"answer": "B", "choices": ["red", "green"]}``; with choices, the
answer may be the text of one. ``choices`` may also be an object of letters and texts, and
``answer`` several letters ("AC", ["A", "C"]): then exactly these must be chosen.

A letter beside the text of another choice, or two letters where one is asked for, are no answer.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from reward.denials import DENIAL
from reward.domains.base import Domain, Judgement, as_object, read_json, right
from reward.grading import equivalent
from reward.verdict import GradingPolicy
from reward.word_answers import plain, words

_LETTER = re.compile(
    r"(?:(?:the )?(?:option|choice|answer|letter)(?: is)?\s*+:?\s*+)?+"
    r"(?:\(\s?([A-Za-z])\s?\)|\[\s?([A-Za-z])\s?\]|([A-Za-z])(?=[.:)]|\Z)|([A-Z])(?=\s+-\s))"
    r"\s*+[-.:)]*+\s*+(.*)",
    re.DOTALL | re.IGNORECASE,
)
_SEVERAL = re.compile(r"[A-Za-z](?:(?:\s*+[,;&]\s*+|\s*+,?\s*+\band\b\s*+|\s*+)[A-Za-z])*+")


@dataclass(frozen=True)
class ChoiceReference:
    """A reference: the right letters, and the texts of all choices where they are known."""

    answer: Any
    choices: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = self.choices
        if isinstance(choices, list):
            choices = dict(zip(ascii_uppercase, choices, strict=False))
        if not isinstance(choices, dict) or len(self.choices) > len(ascii_uppercase):
            raise ValueError("choices are a list, or an object of letters and texts, at most 26")
        choices = {str(letter).strip().upper(): str(text) for letter, text in choices.items()}
        letters = sorted({*_letters_of(self.answer, choices)})
        known = {*(choices or ascii_uppercase)}
        if not letters or any(letter not in known for letter in letters):
            raise ValueError(
                f"the reference {self.answer!r} is no letter of a choice"
                + (f"; the choices are {', '.join(choices)}" if choices else "")
            )
        object.__setattr__(self, "choices", choices)
        object.__setattr__(self, "answer", tuple(letters))


def _letters_of(answer: object, choices: dict[str, str]) -> Iterator[str]:
    """The letters that a reference names, or the letter of the choice whose text it is."""
    if isinstance(answer, list):
        for item in answer:
            yield from _letters_of(item, choices)
    elif isinstance(answer, bool) or not isinstance(answer, str | int):
        yield ""
    elif isinstance(answer, int):
        # A position, as data sets with lists of choices count them.
        yield ascii_uppercase[answer] if choices and 0 <= answer < len(choices) else ""
    else:
        if answer.startswith("["):
            with suppress(ValueError):
                yield from _letters_of(read_json(answer), choices)
                return
        bare = plain(answer).strip("().[]: ")
        by_text = [letter for letter, text in choices.items() if words(text) == words(answer)]
        if re.fullmatch(r"[A-Za-z]", bare):
            yield bare.upper()
        elif len(by_text) == 1:
            yield by_text[0]
        elif _SEVERAL.fullmatch(bare) and bare.upper() == bare.replace("and", ""):
            yield from re.findall(r"[A-Z]", bare)
        else:
            yield ""


class ChoiceDomain(Domain):
    """Letters of choices."""

    name = "choice"

    def reference(self, gold: str) -> ChoiceReference:
        """A letter, or an object."""
        return as_object(gold, ChoiceReference, plain="answer")

    def judge(self, text: str, reference: ChoiceReference, policy: GradingPolicy) -> Judgement:
        """Whether exactly the right letters were chosen."""
        chosen = _chosen(plain(text), reference, policy)
        if chosen is None:
            return right(False, "no one choice is named")
        wanted = ", ".join(reference.answer)
        return right(chosen == set(reference.answer), f"{', '.join(sorted(chosen))} for {wanted}")


def _chosen(said: str, reference: ChoiceReference, policy: GradingPolicy) -> set[str] | None:
    said = said.strip("$*_ ").removesuffix(".").strip("* ")
    several = len(reference.answer) > 1
    if several and _SEVERAL.fullmatch(said):
        joined = re.sub(r"\band\b|[\s,;&]", "", said)
        return set(joined) if joined.isupper() and len(set(joined)) == len(joined) else None
    known = {*(reference.choices or ascii_uppercase)}
    match = _LETTER.fullmatch(said)
    letter = next((found for found in match.groups()[:4] if found), "").upper() if match else ""
    if match and not match.group(5) and letter in known:
        return {letter}
    same = [x for x, text in reference.choices.items() if text.casefold() == said.casefold()]
    if same or not match:
        by_text = same[0] if len(same) == 1 else _by_text(said, reference, policy)
        return None if by_text is None else {by_text}
    if letter not in known:
        return None
    behind = match.group(5)
    if reference.choices:
        return {letter} if _by_text(behind, reference, policy) == letter else None
    # Without the choices' texts, what stands behind the letter may be its text, but not another
    # letter or a denial.
    other = re.search(r"(?<![A-Za-z'])(?:[B-Z]|A(?! [a-z]))(?![A-Za-z'])|\b(?:or|and)\b", behind)
    return None if other or DENIAL.search(behind) or _LETTER.match(behind) else {letter}


def _by_text(said: str, reference: ChoiceReference, policy: GradingPolicy) -> str | None:
    """The letter of the only choice whose text, or mathematical value, is what was said."""
    if not said or not reference.choices:
        return None
    same = [x for x, text in reference.choices.items() if words(text) == words(said)]
    if not same:
        same = [
            letter
            for letter, text in reference.choices.items()
            if re.search(r"\d|\\", text) and equivalent(said, text, policy).correct
        ]
    return same[0] if len(same) == 1 else None


DOMAINS = {"choice": ChoiceDomain()}
