"""Pairs whose truth is known by construction; the benchmark draws many more of them."""

import pytest

from tests.reward.grammar import FAMILIES, measure, upper_bound


def test_a_sample_of_every_family_is_judged_right():
    counts, wrong = measure(20 * len(FAMILIES), seed=7)
    assert all(row[0] == row[2] == 10 for row in counts.values())
    assert wrong == []


def test_the_bound_is_wilsons():
    assert upper_bound(0, 1000) == pytest.approx(0.0027, abs=1e-4)
    assert upper_bound(50, 1000) == pytest.approx(0.0626, abs=1e-3)
