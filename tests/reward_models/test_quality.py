"""Measures of a reward model against brute force and known cases."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.reward_models.quality import auc, first_error, location, ranking, tuned_threshold

ROWS = st.lists(
    st.tuples(st.integers(-3, 3), st.booleans(), st.sampled_from("ab")), min_size=1, max_size=14
)


def brute(rows):
    wins = [
        (a > b) + 0.5 * (a == b)
        for (a, x), (b, y) in itertools.permutations(rows, 2)
        if x and not y
    ]
    return (sum(wins) / len(wins), len(wins)) if wins else (None, 0)


@given(ROWS)
def test_areas_and_pairs_are_those_of_counting(rows):
    scores, labels = [float(row[0]) for row in rows], [row[1] for row in rows]
    found = ranking(scores, labels, [row[2] for row in rows])
    assert found.auc == pytest.approx(brute([(s, x) for s, x, _ in rows])[0])
    own = [brute([(s, x) for s, x, g in rows if g == group]) for group in "ab"]
    own = [(area, count) for area, count in own if count]
    if not own:
        assert found.auc_within is None
        assert found.pairs is None
        return
    assert found.auc_within == pytest.approx(sum(a for a, _ in own) / len(own))
    pooled = sum(a * n for a, n in own) / sum(n for _, n in own)
    assert found.pairs == pytest.approx(pooled)


def test_a_constant_per_prompt_changes_the_global_area_and_not_the_one_within():
    labels, groups = [True, False, True, False], ["a", "a", "b", "b"]
    plain, moved = [2.0, 1.0, 2.0, 1.0], [2.0, 1.0, -7.0, -8.0]
    assert ranking(moved, labels, groups).auc_within == 1.0
    assert ranking(plain, labels, groups).auc == 1.0
    assert ranking(moved, labels, groups).auc < 1.0
    assert auc([1.0], [True]) is None


def test_the_first_error_is_the_first_value_below_the_threshold():
    steps = torch.tensor([1.0, -3.0, 5.0, -20.0])
    assert first_error(steps, 0.5, 1.0) == 1
    assert first_error(steps, 0.001, 1.0) == 3
    assert first_error(steps.abs(), 0.5, 1.0) == -1


def test_a_tuned_threshold_separates_what_can_be_separated():
    steps = [torch.tensor(row) for row in ([1.0, 1.0], [1.0, -9.0], [-9.0, 1.0], [0.5, 0.1])]
    truth = [-1, 1, 0, -1]
    threshold = tuned_threshold(steps, truth, 0.1)
    found = location([first_error(s, threshold, 0.1) for s in steps], truth)
    assert (found.erroneous, found.correct, found.f1) == (1.0, 1.0, 1.0)
    assert location([-1, -1], [0, -1]).f1 == 0.0
    with pytest.raises(ValueError, match="with and without an error"):
        location([0], [0])
