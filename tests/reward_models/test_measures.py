"""Best of N and the spread of passes, on cases small enough to count."""

import pytest

from rlvr.reward_models.measures import best_and_spread

GROUPS = ["a"] * 4 + ["b"] * 3
LABELS = [True, True, False, False, True, False, False]


def test_they_are_those_of_counting():
    rewards = [3.0, 1.0, 2.0, 0.0, 1.0, 1.0, -1.0]
    found = best_and_spread(rewards, LABELS, GROUPS)
    assert found["best_of_n"] == (1 + 0.5) / 2
    assert found["pass_variance"] == 1.0
    gap = ((2.0 - 1.0) + (1.0 - 0.0)) / 2
    assert found["pass_spread"] == pytest.approx(1.0 / gap)


def test_the_spread_does_not_depend_on_scale_or_level():
    rewards = [3.0, 1.0, 2.0, 0.0, 1.0, 1.0, -1.0]
    scaled = best_and_spread([7 * r - 3 for r in rewards], LABELS, GROUPS)
    plain = best_and_spread(rewards, LABELS, GROUPS)
    assert scaled["pass_variance"] == pytest.approx(49 * plain["pass_variance"])
    assert scaled["pass_spread"] == pytest.approx(plain["pass_spread"])
    assert scaled["best_of_n"] == plain["best_of_n"]


def test_what_cannot_be_computed_is_left_out():
    assert best_and_spread([1.0, 2.0], [False, False], ["a", "a"]) == {}
    assert set(best_and_spread([1.0, 2.0], [True, True], ["a", "a"])) == {"pass_variance"}
    backwards = best_and_spread([0.0, 0.0, 5.0], [True, True, False], ["a"] * 3)
    assert "pass_spread" not in backwards
