"""What makes a verdict certain: the weakest evidence on which an accepted answer rests.

`reward.values`, `reward.identity` and `reward.grading` note each piece of evidence as they accept
a part of an answer; `collect` gathers what was noted for one answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Evidence = Literal["exact", "field", "digits", "points", "rounding", "library"]

# Strongest first.
MEANING: dict[Evidence, str] = {
    "exact": "the same text, words or exact values",
    "field": "the same rational function, but for a probability below 2^-200",
    "digits": "the same constant in over 60 digits more than its numbers need",
    "points": "the same value at every point tried, of all signs, sizes and parities",
    "rounding": "a decimal within the policy's rounding",
    "library": "equal by math-verify",
}
LEVELS = tuple(MEANING)

_noted: ContextVar[list[Evidence] | None] = ContextVar("noted", default=None)


def note(evidence: Evidence) -> bool:
    """Note a piece of evidence and return True, the verdict that goes with it."""
    noted = _noted.get()
    if noted is not None:
        noted.append(evidence)
    return True


@contextmanager
def collect() -> Iterator[list[Evidence]]:
    """Gather the evidence noted within the block."""
    noted: list[Evidence] = []
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def weakest(noted: list[Evidence]) -> Evidence:
    """Return the weakest piece of evidence; without any, the answer was the same as text."""
    return max(noted, key=LEVELS.index, default="exact")
