"""Graders by name: each takes (response, gold, policy) and returns a `Grade`."""

from collections.abc import Callable
from difflib import get_close_matches

from reward.compatible import exact_match, math_verify_alone, one_shot_rlvr, qwen
from reward.grading import check_gold, equivalent, grade
from reward.verdict import Grade, Policy

__all__ = ["GRADERS", "check_gold", "grader_by_name", "pair_grader_by_name", "warm_up"]

Grader = Callable[[str, str, Policy], Grade]


GRADERS: dict[str, Grader] = {
    "rlvr": grade,
    "one_shot_rlvr": one_shot_rlvr,
    "qwen": qwen,
    "exact": exact_match,
    "math_verify": math_verify_alone,
}


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


def pair_grader_by_name(name: str) -> Grader:
    """Return a grader of bare answers: (pred, gold, policy).

    Raises:
        ValueError: for an unknown name.
    """
    grader = grader_by_name(name)
    if grader is grade:
        return equivalent

    def boxed(pred: str, gold: str, policy: Policy) -> Grade:
        return grader(f"\\boxed{{{pred}}}", gold, policy)

    return boxed


def warm_up() -> None:
    """Do every first-time import and table build, so that the first answer is not late."""
    for response, gold in (("\\boxed{x+1}", "1+x"), ("\\boxed{\\frac{1}{2}}", "\\sqrt{2}")):
        grade(response, gold)
