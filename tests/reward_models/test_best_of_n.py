"""Best of N: invariance of the choice, the vote and its limit, exact expectations."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.reward_models.best_of_n import (
    choose,
    expected_best,
    expected_vote,
    response_score,
    vote,
)

SCORES = st.lists(st.floats(-50, 50), min_size=1, max_size=8)


@given(st.lists(SCORES, min_size=1, max_size=6), st.floats(0.01, 100))
def test_the_choice_does_not_depend_on_a_positive_factor(steps, factor):
    rows = [torch.tensor(row, dtype=torch.float64) for row in steps]
    for values, aggregate in itertools.product(("diff", "cumulative"), ("min", "sum", "last")):
        plain = [response_score(row, values, aggregate) for row in rows]
        scaled = [response_score(factor * row, values, aggregate) for row in rows]
        assert scaled[choose(plain)] >= max(scaled) - 1e-9 * (1 + abs(max(scaled)))


@given(SCORES)
def test_the_sum_of_differences_is_the_last_cumulative_value(steps):
    row = torch.tensor(steps, dtype=torch.float64)
    total = response_score(row, "diff", "sum")
    assert total == pytest.approx(response_score(row, "cumulative", "last"), abs=1e-9)
    assert total == pytest.approx(float(row.sum()), abs=1e-9)


def test_of_equal_scores_the_first_wins():
    assert choose([1.0, 2.0, 2.0]) == 1


def test_the_weighted_vote_depends_on_its_coefficient():
    answers, scores = ["a", "a", "b"], [-30.0, -30.0, 30.0]
    assert vote(answers, scores, 0.001) == ["a"]
    assert vote(answers, scores, 0.05) == ["b"]


def test_known_weights_of_a_vote():
    assert 1 / (1 + math.exp(30 * 0.001)) == pytest.approx(0.4925, abs=1e-4)
    assert 1 / (1 + math.exp(30 * 0.05)) == pytest.approx(0.1824, abs=1e-4)
    # One vote of the weight above against a sum of others just below and just above it.
    lower, upper = (math.log(p / (1 - p)) / 0.05 for p in (0.1823, 0.1825))
    assert vote(["a", "b"], [-30.0, lower], 0.05) == ["a"]
    assert vote(["a", "b"], [-30.0, upper], 0.05) == ["b"]


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=8))
def test_without_a_coefficient_or_rewards_the_vote_is_the_majority(answers):
    votes = [answer for answer in answers if answer is not None]
    most = max((votes.count(answer) for answer in votes), default=0)
    winners = {answer for answer in votes if votes.count(answer) == most}
    scores = [float(17 * index % 5) for index in range(len(answers))]
    assert set(vote(answers, scores, 0.0)) == winners
    assert set(vote(answers, [0.0] * len(answers), 0.05)) == winners


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=6), st.data())
def test_the_expected_best_is_the_mean_over_all_draws(rows, data):
    n = data.draw(st.integers(1, len(rows)))
    correct, scores = [row[0] for row in rows], [float(row[1]) for row in rows]
    draws = list(itertools.combinations(range(len(rows)), n))
    best = [draw[choose([scores[i] for i in draw])] for draw in draws]
    mean = sum(correct[i] for i in best) / len(draws)
    assert expected_best(correct, scores, n) == pytest.approx(mean)


def test_one_of_one_is_chance_and_all_of_all_is_the_choice():
    correct, scores = [True, False, False, True], [0.1, 0.9, 0.2, 0.4]
    assert expected_best(correct, scores, 1) == 0.5
    assert expected_best(correct, scores, 4) == 0.0
    with pytest.raises(ValueError, match="n = 5 needs at least 5 responses"):
        expected_best(correct, scores, 5)


def test_the_expected_vote_approaches_the_mean_over_all_draws():
    answers, scores = ["a", "b", "b", None, "a"], [4.0, 1.0, 0.0, 9.0, -3.0]
    draws = list(itertools.combinations(range(5), 3))
    exact = 0.0
    for draw in draws:
        winners = vote([answers[i] for i in draw], [scores[i] for i in draw], 0.5)
        exact += ("a" in winners) / max(1, len(winners)) / len(draws)
    found = expected_vote(answers, scores, "a", 3, 0.5, draws=4000)
    assert found == pytest.approx(exact, abs=0.03)
    assert found == expected_vote(answers, scores, "a", 3, 0.5, draws=4000)


def test_a_response_without_tokens_is_refused():
    with pytest.raises(ValueError, match="without tokens"):
        response_score(torch.zeros(0))
