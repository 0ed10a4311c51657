"""Texts that match a regular expression (or do not).

The reference is a pattern that the whole answer has to match, or an object such as
``{"pattern": ..., "match": "search", "on": "response", "absent": true, "flags": "im"}``. ``on``
says what is read: the announced answer, or all that follows the thought. ``absent`` asks that
nothing matches. Patterns are Python's; a slow one ends with the time limit and counts as a timeout.
"""

import re
from dataclasses import dataclass
from typing import Literal

from reward.domains.base import Domain, Judgement, Part, as_object, right
from reward.verdict import GradingPolicy

_FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL}


@dataclass(frozen=True)
class Pattern:
    """A reference."""

    pattern: str
    match: Literal["full", "search"] = "full"
    on: Part = "answer"
    absent: bool = False
    flags: str = ""

    def __post_init__(self) -> None:
        if self.match not in ("full", "search") or self.on not in ("answer", "response"):
            raise ValueError(
                'a pattern has match "full" or "search", and on "answer" or "response"'
            )
        if not isinstance(self.absent, bool) or not set(self.flags) <= set(_FLAGS):
            raise ValueError("a pattern has absent true or false, and flags of i, m and s")
        if not isinstance(self.pattern, str) or not self.pattern:
            raise ValueError(f"the pattern {self.pattern!r} is no text")
        try:
            self.compiled()
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"the pattern {self.pattern[:80]!r}: {error}") from None

    def compiled(self) -> re.Pattern[str]:
        """The pattern with its flags."""
        flags = re.RegexFlag(0)
        for letter in self.flags:
            flags |= _FLAGS[letter]
        return re.compile(self.pattern, flags)


class PatternDomain(Domain):
    """Regular expressions."""

    name = "pattern"

    def reference(self, gold: str) -> Pattern:
        """A pattern, or an object."""
        return as_object(gold, Pattern, plain="pattern")

    def part(self, reference: Pattern) -> Part:
        """As the reference says."""
        return reference.on

    def judge(self, text: str, reference: Pattern, policy: GradingPolicy) -> Judgement:
        """Whether the text matches, or does not where nothing should."""
        compiled = reference.compiled()
        find = compiled.fullmatch if reference.match == "full" else compiled.search
        matched = find(text.strip()) is not None
        return right(matched != reference.absent, "it matches" if matched else "it does not match")


DOMAINS = {"pattern": PatternDomain()}
