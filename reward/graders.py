"""Graders by name, of mathematics and other domains: (response, gold, policy) to a `Grade`."""

from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches

from reward.compatible import exact_match, math_verify_alone, one_shot_rlvr, qwen
from reward.domains import DOMAINS
from reward.grading import check_gold, equivalent, grade
from reward.library import math_verify
from reward.second_opinion import second_opinion
from reward.verdict import Grade, GradingPolicy

__all__ = [
    "GRADERS",
    "SECOND_OPINION",
    "checker_by_name",
    "graded_text",
    "grader_by_name",
    "pair_grader_by_name",
    "warm_up",
]

Grader = Callable[[str, str, GradingPolicy], Grade]


GRADERS: dict[str, Grader] = {
    "rlvr": grade,
    "one_shot_rlvr": one_shot_rlvr,
    "qwen": qwen,
    "exact": exact_match,
    "math_verify": math_verify_alone,
}
SECOND_OPINION = "second_opinion"
"""Name of the judge that is asked how often a grader of mathematics is wrong; no recipe trains on
it, as it says nothing of half of all notation."""
READS_THOUGHTS = frozenset({"rlvr", "exact", SECOND_OPINION, *DOMAINS})
"""Graders that look for an answer only after the thought; the others read a response as the
published code that they follow does."""


def graded_text(response: str, opened: str, grader: str = "rlvr") -> str:
    """What a grader reads: the response, behind the marker of a thought that its prompt left open.

    Args:
        response: what the model wrote.
        opened: the marker (`reward.thoughts.left_open`), or "".
        grader: name of the grader.
    """
    return opened + response if grader in READS_THOUGHTS else response


def grader_by_name(name: str) -> Grader:
    """Return a grader, of mathematics or of a domain (`reward.domains`).

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name in DOMAINS:
        return DOMAINS[name]
    if name == SECOND_OPINION:
        return second_opinion
    if name not in GRADERS:
        known = [*GRADERS, *DOMAINS]
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"grader {name!r} is not one of {', '.join(known)}{hint}")
    return GRADERS[name]


def checker_by_name(name: str) -> Callable[[str], str | None]:
    """Return what says why a reference is none for a grader, or None if it is one."""
    return DOMAINS[name].check if name in DOMAINS else check_gold


def pair_grader_by_name(name: str) -> Grader:
    """Return a grader of bare answers: (pred, gold, policy).

    Raises:
        ValueError: for an unknown name.
    """
    grader = grader_by_name(name)
    if name in DOMAINS:
        return DOMAINS[name].pair
    if grader is grade:
        return equivalent

    def boxed(pred: str, gold: str, policy: GradingPolicy) -> Grade:
        return grader(f"\\boxed{{{pred}}}", gold, policy)

    return boxed


def warm_up() -> None:
    """Do all first-time imports and build tables, so that the first answer is not slow."""
    with suppress(ImportError):  # said where an answer needs the package
        math_verify()
    for response, gold in (("\\boxed{x+1}", "1+x"), ("\\boxed{\\frac{1}{2}}", "\\sqrt{2}")):
        grade(response, gold)
