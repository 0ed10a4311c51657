"""Gates on the collected cases (they stand beside the checkout; skipped without them)."""

import pytest

from tests.reward.agreement import (
    category_of,
    decidable,
    extraction_verdict,
    load,
    measure,
    source_of,
)

OURS = "this verifier"


@pytest.fixture(scope="module")
def pairs(shared):
    return [row for row in load(shared, "grader_cases") if decidable(row)]


@pytest.fixture(scope="module")
def derived(shared):
    rows = [row for row in load(shared, "grader_cases_derived") if decidable(row)]
    return measure(rows, category_of)


def test_pairs_agree_on_96_percent_with_half_a_percent_of_false_accepts(pairs):
    total = measure(pairs, source_of).total(OURS)
    assert total.agree / total.rows >= 0.96
    assert total.false_accepts / total.rows <= 0.005


def test_recall_is_at_least_that_of_math_verify(pairs):
    agreement = measure(pairs, source_of)
    assert agreement.total(OURS).false_rejects <= agreement.total("math-verify").false_rejects


def test_no_mutated_or_degenerate_answer_is_accepted(derived):
    fooled = [name for name in derived.groups if name.startswith(("mutation", "degenerate"))]
    assert len(fooled) >= 4
    assert derived.total(OURS, fooled).false_accepts == 0


def test_every_reference_equals_itself(derived):
    identity = derived.groups["gold-identity"][OURS]
    assert identity.rows > 300
    assert identity.false_rejects == 0


def test_hand_probes_hold(derived):
    total = derived.total(OURS)
    assert total.false_accepts == 0
    assert total.agree / total.rows >= 0.99


def test_responses_are_extracted_and_judged_as_expected(shared):
    rows = [row for row in load(shared, "extraction_cases") if not row.get("disputed")]
    right = sum(extraction_verdict(row) for row in rows)
    assert right / len(rows) >= 0.98
