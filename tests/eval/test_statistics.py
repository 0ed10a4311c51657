"""Errors and tests: against closed forms, enumeration and coverage in simulation."""

import itertools
import math

import numpy as np
import pytest

from eval.statistics import (
    Bootstrap,
    Estimate,
    holm,
    macro_average,
    mcnemar,
    paired_bootstrap,
    wilson,
)


def test_the_standard_error_is_that_of_problem_means():
    values = np.random.default_rng(0).beta(1, 2, 400)
    found = Bootstrap(400, "x", 20_000).estimate(values)
    assert found.value == pytest.approx(values.mean())
    assert found.se == pytest.approx(values.std() / math.sqrt(400), rel=0.02)


def test_more_samples_of_the_same_problems_do_not_narrow_the_interval():
    """Problems that are always or never solved say nothing more when asked 16 times."""
    values = [1.0] * 12 + [0.0] * 18
    once = Bootstrap(30, "x").estimate(values)
    assert once.se == pytest.approx(math.sqrt(0.4 * 0.6 / 30), rel=0.05)


def test_wilson_gives_the_published_intervals():
    assert wilson(5 / 30, 30) == pytest.approx((0.073, 0.336), abs=5e-4)
    assert wilson(0, 30) == pytest.approx((0, 0.114), abs=1e-3)
    assert wilson(412 / 500, 500) == pytest.approx((0.788, 0.855), abs=5e-4)


def test_problems_that_are_all_alike_get_wilsons_interval():
    found = Bootstrap(30, "x").estimate([0.0] * 30)
    assert found.interval == "wilson"
    assert (found.low, found.high) == pytest.approx((0, 0.114), abs=1e-3)


@pytest.mark.parametrize(("problems", "samples", "lowest"), [(30, 8, 0.90), (100, 4, 0.92)])
def test_intervals_cover_at_about_the_stated_rate(problems, samples, lowest):
    """New problems and new samples each time; the truth is the mean over all problems there are.

    600 repetitions: the standard error of a coverage of 0.95 is 0.009.
    """
    random = np.random.default_rng(problems)
    covered = 0
    for _ in range(600):
        rates = random.beta(0.5, 1.5, problems)
        values = random.binomial(samples, rates) / samples
        found = Bootstrap(problems, "coverage", 600).estimate(values)
        covered += found.low <= 0.25 <= found.high
    assert lowest <= covered / 600 <= 0.98


def test_random_numbers_depend_on_the_label_alone():
    values = np.linspace(0, 1, 20)
    first, again, other = (Bootstrap(20, label).estimate(values) for label in ("a", "a", "b"))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 9), (7, 7), (3, 0), (20, 8)])
def test_mcnemar_equals_enumeration_of_coin_flips(first, second):
    n, seen = first + second, abs(first - second)
    distribution = [math.comb(n, heads) / 2**n for heads in range(n + 1)]
    expected = sum(p for heads, p in enumerate(distribution) if abs(2 * heads - n) >= seen)
    assert mcnemar(first, second) == pytest.approx(min(1, expected))


def test_a_paired_difference_agrees_with_all_resamples():
    first, second = [0.0, 0.25, 0.5, 1.0], [0.5, 0.25, 1.0, 0.75]
    differences = np.array(second) - np.array(first)
    means = np.array([np.mean(c) for c in itertools.product(differences, repeat=4)])
    found = paired_bootstrap(first, second, "x", 40_000)
    assert found.difference == pytest.approx(differences.mean())
    assert found.se == pytest.approx(means.std(), rel=0.02)
    exact = (np.abs(means - differences.mean()) >= abs(differences.mean()) - 1e-12).mean()
    assert found.p == pytest.approx(exact, abs=0.01)


def test_equal_models_do_not_differ():
    assert paired_bootstrap([0.5, 1, 0], [0.5, 1, 0], "x").p == 1


def test_a_paired_test_keeps_its_level():
    random = np.random.default_rng(5)
    rejected = 0
    for _ in range(300):
        rates = random.beta(0.5, 1.5, 80)
        pair = [random.binomial(4, rates) / 4 for _ in range(2)]
        rejected += paired_bootstrap(*pair, "level", 1000).p < 0.05
    assert rejected / 300 < 0.09


def test_holm_adjusts_as_published():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_macro_average_adds_variances():
    parts = [Estimate(0.2, 0.03, 0, 1), Estimate(0.6, 0.04, 0, 1)]
    found = macro_average(parts)
    assert found.value == pytest.approx(0.4)
    assert found.se == pytest.approx(0.025)
    hopeless = Bootstrap(30, "x").estimate([0.0] * 30)
    assert macro_average([hopeless]) == hopeless
    assert macro_average([hopeless]).high > 0.05, "no problem solved is not certainty"
