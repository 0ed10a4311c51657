"""Metrics against closed forms, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest

from eval.metrics import (
    Outcome,
    ProblemOutcomes,
    all_at_k,
    benchmark_metrics,
    headline_metric,
    maj_at_k,
    pass_at_k,
    shown_ks,
)


@pytest.mark.parametrize(
    ("n", "c", "k", "value"), [(8, 2, 4, 0.7857142857142857), (64, 1, 8, 0.125), (8, 0, 8, 0.0)]
)
def test_pass_at_k_gives_the_published_values(n, c, k, value):
    assert pass_at_k(n, c, k) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_pass_and_all_at_k_equal_enumeration(n):
    for c in range(n + 1):
        right = [index < c for index in range(n)]
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(right, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
            assert all_at_k(n, c, k) == pytest.approx(sum(map(all, subsets)) / len(subsets))


def test_pass_at_n_is_whether_any_sample_is_right():
    assert [pass_at_k(5, c, 5) for c in range(6)] == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("rate", "n", "k"), [(0.1, 8, 4), (0.3, 16, 8), (0.7, 5, 2)])
def test_pass_at_k_is_unbiased_in_the_mean(rate, n, k):
    """Its exact expectation under c ~ Binomial(n, rate) is 1 - (1 - rate)^k."""
    expected = sum(
        math.comb(n, c) * rate**c * (1 - rate) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
    )
    assert expected == pytest.approx(1 - (1 - rate) ** k, abs=1e-12)
    naive = sum(
        math.comb(n, c) * rate**c * (1 - rate) ** (n - c) * (1 - (1 - c / n) ** k)
        for c in range(n + 1)
    )
    assert abs(naive - (1 - (1 - rate) ** k)) > 1e-3, "the plug-in form is biased"


def enumerated_majority(votes, k):
    """Over all subsets: the reference's share of the classes with most votes."""
    scores = []
    for subset in itertools.combinations(range(len(votes)), k):
        cast = [votes[index] for index in subset if votes[index] is not None]
        if not cast:
            scores.append(0.0)
            continue
        counts = {vote: cast.count(vote) for vote in cast}
        winners = [vote for vote, count in counts.items() if count == max(counts.values())]
        scores.append((0 in winners) / len(winners))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(12))
def test_maj_at_k_equals_enumeration(seed):
    random = np.random.default_rng(seed)
    votes = [None if v == 4 else int(v) for v in random.integers(0, 5, size=7)]
    for k in range(1, 8):
        assert maj_at_k(votes, k) == pytest.approx(enumerated_majority(votes, k), abs=1e-12)


def test_maj_at_1_is_the_average_and_a_tie_is_shared():
    assert maj_at_k([0, 0, 1, None], 1) == pytest.approx(0.5)
    assert maj_at_k([0, 0, 1, 1], 4) == pytest.approx(0.5)
    assert maj_at_k([0, 1, 2], 3) == pytest.approx(1 / 3)
    assert maj_at_k([0, None, None], 3) == 1
    assert maj_at_k([None, None], 2) == 0


@pytest.mark.parametrize("function", [lambda: pass_at_k(1, 1, 8), lambda: maj_at_k([0], 8)])
def test_more_than_was_sampled_is_refused_with_both_numbers(function):
    with pytest.raises(ValueError, match=r"k = 8 needs at least 8 samples of a problem.*are 1"):
        function()


def problem(name, correct, n=4, greedy=None, tokens=10):
    sampled = tuple(
        Outcome(i < correct, i == n - 1, i != n - 2, tokens + i, 0 if i < correct else 1)
        for i in range(n)
    )
    own = None if greedy is None else Outcome(greedy, False, True, 5, 0 if greedy else 1)
    return ProblemOutcomes(name, sampled, own)


def test_a_summary_holds_every_metric_and_omits_what_it_cannot_know():
    found = benchmark_metrics([problem("a", 4, greedy=True), problem("b", 1, greedy=False)], "x")
    assert found["avg"].value == pytest.approx(5 / 8)
    assert found["greedy"].value == pytest.approx(0.5)
    assert list(found["pass"]) == [1, 2, 3, 4]
    assert found["pass"][4].value == 1
    assert found["all"][4].value == pytest.approx(0.5)
    assert list(found["maj"]) == [1, 2, 4]
    assert (found["truncated"], found["no_answer"]) == (0.25, 0.25)
    assert (found["tokens_mean"], found["tokens_median"]) == (11.5, 11.5)
    assert headline_metric(found)[0] == "avg@4"
    without = benchmark_metrics([problem("a", 4), problem("b", 1, greedy=True)], "x")
    assert "greedy" not in without
    only_greedy = benchmark_metrics(
        [ProblemOutcomes("a", (), Outcome(True, False, True, 3, 0))], "x"
    )
    assert "avg" not in only_greedy
    assert headline_metric(only_greedy)[0] == "greedy"


def test_asking_for_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="k = 8 needs at least 8 samples"):
        benchmark_metrics([problem("a", 1, n=1)], "x", ks=[8])


def test_tables_show_powers_of_two_and_n():
    assert shown_ks(1) == [1]
    assert shown_ks(6) == [1, 2, 4, 6]
    assert shown_ks(16) == [1, 2, 4, 8, 16]
