"""Graders by name: each takes (response, gold, policy) and returns a `Grade`."""

from collections.abc import Callable
from difflib import get_close_matches

from reward.extract import extract
from reward.grade import check_gold, grade
from reward.verdict import Grade, Policy

__all__ = ["GRADERS", "check_gold", "grader_by_name", "warm_up"]

Grader = Callable[[str, str, Policy], Grade]


def exact(response: str, gold: str, policy: Policy) -> Grade:
    """Compare the last box with the gold answer character by character, outer space aside."""
    found = extract(response, policy.extraction, policy.join_boxes)
    if found.answer is None:
        return Grade(False, None, "text", "extract", found.reason, "no_answer")
    equal = found.answer.strip() == gold.strip()
    return Grade(equal, found.answer, "text", "string", "compared as text")


GRADERS: dict[str, Grader] = {"rlvr": grade, "exact": exact}


def grader_by_name(name: str) -> Grader:
    """Return a grader.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name not in GRADERS:
        near = get_close_matches(name, GRADERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"grader {name!r} is not one of {', '.join(GRADERS)}{hint}")
    return GRADERS[name]


def warm_up() -> None:
    """Do every first-time import and table build, so that the first answer is not late."""
    for response, gold in (("\\boxed{x+1}", "1+x"), ("\\boxed{\\frac{1}{2}}", "\\sqrt{2}")):
        grade(response, gold)
