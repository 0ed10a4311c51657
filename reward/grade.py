"""Decide whether an answer equals the gold answer."""

import re
from fractions import Fraction

from reward.extract import extract, unwrap_boxes
from reward.limits import MAX_ANSWER_CHARACTERS
from reward.symbolic import symbolic_equal
from reward.verdict import DEFAULT, Grade, Policy

_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:/\d+)?")


def grade(response: str, gold: str, policy: Policy = DEFAULT) -> Grade:
    """Extract the answer of ``response`` and compare it with ``gold``."""
    found = extract(response, policy.extraction, policy.join_boxes)
    if found.answer is None:
        return Grade(False, None, "unknown", "extract", found.reason, "no_answer")
    return equivalent(found.answer, gold, policy)


def equivalent(pred: str, gold: str, policy: Policy = DEFAULT) -> Grade:
    """Compare two bare answers."""
    wanted, got = unwrap_boxes(gold).strip().strip("$").strip(), pred.strip().strip("$").strip()
    reason = check_gold(gold)
    if reason is not None:
        return Grade(False, pred, "unknown", "gold", reason, "unparsable_gold")
    kind = "integer" if wanted.lstrip("+-").isdecimal() else "expression"
    if wanted == got:
        return Grade(True, pred, kind, "string", "the same text")
    if _NUMBER.fullmatch(wanted) and _NUMBER.fullmatch(got):
        try:
            equal = Fraction(wanted) == Fraction(got)
        except ZeroDivisionError:
            equal = False
        return Grade(equal, pred, kind, "number", "compared as exact numbers")
    if len(got) > MAX_ANSWER_CHARACTERS:
        return Grade(False, pred[:200], kind, "limit", "the answer is too long", "unparsable_pred")
    equal = symbolic_equal(got, wanted)
    return Grade(equal, pred, kind, "symbolic", "compared by math-verify")


def check_gold(gold: str) -> str | None:
    """Say why nothing could be compared with ``gold``, or ``None`` if it is fine."""
    return None if unwrap_boxes(gold).strip().strip("$").strip() else "the gold answer is empty"
