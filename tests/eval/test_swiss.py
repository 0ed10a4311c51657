"""Swiss tournaments: the invariants of the method."""

import math
from collections import Counter

import numpy as np
import pytest

from eval.swiss import expected_scores, play, ranks, standings, win_tensor


def random_results(models, rounds, seed=0):
    return np.random.default_rng(seed).random((models, rounds))


def one_order(models, rounds):
    """The same strict order in every round; model 0 is the best."""
    return np.repeat(np.arange(models, 0, -1.0)[:, None], rounds, axis=1)


def doubled(results):
    return np.rint(2 * win_tensor(results)).astype(np.int64)


def test_of_two_models_one_wins_or_both_get_half():
    wins = win_tensor(np.round(random_results(7, 4), 1))
    away = np.swapaxes(wins, 0, 1)
    assert np.array_equal(wins + away, np.ones_like(wins))
    assert 0.5 in wins


def test_a_round_hands_out_one_point_per_pair():
    results = random_results(9, 3)
    before = Counter({0: 9})
    for rounds in (1, 2, 3):
        random = np.random.Generator(np.random.Philox(key=4))
        (scores,) = play(doubled(results[:, :rounds]), 1, random, 0) / 2
        random = np.random.Generator(np.random.Philox(key=4))
        (last,) = play(doubled(results[:, : rounds - 1]), 1, random, 0) / 2
        pairs = sum(count // 2 for count in before.values())
        assert scores.sum() - last.sum() == pairs
        before = Counter(scores.tolist())


@pytest.mark.parametrize(("models", "rounds"), [(8, 3), (16, 4)])
def test_a_transitive_order_gives_binomial_scores(models, rounds):
    random = np.random.Generator(np.random.Philox(key=1))
    finals = play(doubled(one_order(models, rounds)), 500, random, 0) // 2
    assert (finals[:, 0] == rounds).all()
    assert (finals[:, -1] == 0).all()
    for final in finals[:50]:
        counts = Counter(final.tolist())
        assert counts == {s: math.comb(rounds, s) for s in range(rounds + 1)}
    assert (finals.sum(1) == rounds * models // 2).all()
    assert (finals[:, 1] == rounds - 1).all(), "the second loses to the first alone"
    assert (finals[:, -2] == 1).all()
    assert list(ranks(finals.mean(0))) == list(range(1, models + 1))


@pytest.mark.parametrize("models", [6, 7])
def test_one_round_gives_the_win_rate_less_the_byes(models):
    results = random_results(models, 1, seed=3)
    found = expected_scores(win_tensor(results), 40_000, 0)
    rates = (results > results.T).sum(1) / (models - 1)
    share = 1 if models % 2 == 0 else (models - 1) / models
    assert found == pytest.approx(rates * share, abs=0.012)


def test_relabelling_models_permutes_scores():
    results = random_results(6, 4)
    order = np.array([3, 0, 5, 1, 4, 2])
    scores = expected_scores(win_tensor(results), 20_000, 0)
    moved = expected_scores(win_tensor(results[order]), 20_000, 1)
    assert moved == pytest.approx(scores[order], abs=0.05)


def test_the_same_seed_repeats_and_monotone_changes_of_results_change_nothing():
    results = random_results(6, 4)
    first = expected_scores(win_tensor(results), 3000, 7)
    assert np.array_equal(first, expected_scores(win_tensor(results), 3000, 7))
    assert np.array_equal(first, expected_scores(win_tensor(np.exp(5 * results)), 3000, 7))
    assert not np.array_equal(first, expected_scores(win_tensor(results), 3000, 8))


def test_the_order_of_benchmarks_matters():
    results = one_order(4, 2)
    results[:, 1] = [1, 4, 3, 2]
    forth = expected_scores(win_tensor(results), 20_000, 0)
    back = expected_scores(win_tensor(results[:, ::-1]), 20_000, 0)
    assert np.abs(forth - back).max() > 0.1


def test_elimination_costs_points_and_leaves_two():
    wins = win_tensor(random_results(10, 5))
    totals = [expected_scores(wins, 2000, 0, t).sum() for t in (0, 1, 2, 9)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > totals[1]
    assert totals[-1] >= 5, "two models still play after the first round"


def test_equal_models_share_every_rank():
    found = standings(np.full((4, 3), 0.5), tournaments=2000)
    assert {item.rank for item in found} == {2.5}


def test_a_clear_winner_keeps_its_rank_under_resampling_and_equals_do_not():
    def resample(random):
        return np.stack([random.binomial(100, p, 4) / 100 for p in (0.9, 0.5, 0.5, 0.5, 0.5, 0.1)])

    results = np.array([[p] * 4 for p in (0.9, 0.5, 0.51, 0.49, 0.52, 0.1)])
    found = standings(results, tournaments=2000, resample=resample, resamples=40)
    assert (found[0].low, found[0].high) == (1, 1)
    assert found[1].high - found[1].low >= 1
    assert found[5].high == 6
