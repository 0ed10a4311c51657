"""Measures of calibration against brute force and known cases, and CaPE's targets."""

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.reward_models.calibration import (
    BinTargets,
    Cape,
    KernelTargets,
    brier,
    calibration,
    divergences,
    ece,
    ks,
    mse_to,
    quantile_bins,
    width_bins,
)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def synthetic(count, seed=0):
    """True probabilities, and one outcome of each."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.rand(count, generator=generator, dtype=torch.float64)
    return true, torch.bernoulli(true, generator=generator)


ROWS = st.lists(st.tuples(st.floats(0.01, 0.99), st.booleans()), min_size=1, max_size=40)


def test_calibration_of_a_coin_that_says_so_is_perfect():
    found = calibration([0.0] * 4, [1, 0, 1, 0])
    assert (found.brier, found.ece) == (0.25, 0.0)
    assert [(b.count, b.probability, b.right) for b in found.bins] == [(4, 0.5, 0.5)]


def test_calibration_of_a_sure_model_that_errs():
    found = calibration([50.0, 50.0, -50.0, -50.0], [1, 0, 0, 0])
    assert found.brier == pytest.approx(0.25)
    assert found.ece == pytest.approx(0.25)
    assert sum(b.count for b in found.bins) == 4


@given(ROWS)
def test_variants_of_the_calibration_error_are_those_of_counting(rows):
    p, y = f64([row[0] for row in rows]), f64([float(row[1]) for row in rows])
    by_width = {}
    for probability, label in rows:
        by_width.setdefault(min(int(probability * 10), 9), []).append((probability, label))
    gaps = [
        (len(own), abs(sum(a for a, _ in own) - sum(b for _, b in own)) / len(own))
        for own in by_width.values()
    ]
    expected = sum(n * gap for n, gap in gaps) / len(rows)
    assert ece(p, y) == pytest.approx(expected, abs=1e-12)
    bins = quantile_bins(p, y)
    assert sum(b.count for b in bins) == len(rows)
    assert max(b.count for b in bins) - min(b.count for b in bins) <= 1
    assert len(bins) == min(15, len(rows))
    weighted = sum(b.count * abs(b.probability - b.right) for b in bins) / len(rows)
    assert ece(p, y, "quantile_weighted") == pytest.approx(weighted, abs=1e-12)
    plain = sum(abs(b.probability - b.right) for b in bins) / len(bins)
    assert ece(p, y, "quantile") == pytest.approx(plain, abs=1e-12)
    measured = calibration(p.logit().tolist(), y.tolist())
    assert measured.mce >= measured.ece_quantile - 1e-12
    assert measured.mce >= measured.ece_quantile_weighted - 1e-12


def test_variants_differ_and_weighting_is_what_differs():
    p = f64([0.1] * 1 + [0.5] * 16)
    y = f64([1.0] * 1 + [0.0, 1.0] * 8)
    assert ece(p, y) == pytest.approx(0.9 / 17)
    assert ece(p, y, "quantile_weighted") != pytest.approx(ece(p, y, "quantile"))


@given(ROWS)
def test_the_constant_base_rate_has_no_calibration_error(rows):
    y = f64([float(row[1]) for row in rows])
    p = torch.full_like(y, float(y.mean()))
    for variant in ("width", "quantile", "quantile_weighted"):
        assert ece(p, y, variant) == pytest.approx(0.0, abs=1e-12)
    assert ks(p, y) == pytest.approx(0.0, abs=1e-12)


@given(ROWS)
def test_ks_is_zero_where_probabilities_are_the_outcomes_and_else_that_of_counting(rows):
    y = f64([float(row[1]) for row in rows])
    assert ks(y, y) == 0.0
    p = f64([row[0] for row in rows])
    found = [
        abs(sum(q - float(z) for q, z in rows if q <= limit)) / len(rows) for limit in p.tolist()
    ]
    assert ks(p, y) == pytest.approx(max(found), abs=1e-12)


def test_measures_do_not_depend_on_the_order_of_the_data():
    generator = random.Random(0)
    rows = [(generator.choice([0.2, 0.5, 0.8]), generator.random() < 0.5) for _ in range(50)]
    found = []
    for _ in range(3):
        generator.shuffle(rows)
        p, y = f64([row[0] for row in rows]), f64([float(row[1]) for row in rows])
        found.append([ks(p, y), *(ece(p, y, v) for v in ("width", "quantile"))])
    assert found[0] == pytest.approx(found[1], abs=1e-12)
    assert found[0] == pytest.approx(found[2], abs=1e-12)


def test_the_expected_brier_score_is_the_error_plus_what_no_model_can_know():
    true, outcomes = synthetic(200_000)
    p = (true + 0.1).clamp_max(0.95)
    unknowable = float((true * (1 - true)).mean())
    assert brier(p, outcomes) == pytest.approx(mse_to(p, true) + unknowable, abs=2e-3)


def test_divergences_are_zero_at_the_truth_and_never_below():
    true, _ = synthetic(100)
    assert divergences(true, true) == pytest.approx((0.0, 0.0))
    forward, backward = divergences(f64([0.25]), f64([0.5]))
    assert forward == pytest.approx(0.5 * float(f64(2.0).log() + f64(2 / 3).log()))
    assert backward > 0
    assert divergences(f64([0.0]), f64([0.5]))[0] == float("inf")


@given(ROWS, st.integers(1, 50))
def test_bin_targets_keep_the_base_rate_and_are_probabilities(rows, bins):
    p, y = f64([row[0] for row in rows]), f64([float(row[1]) for row in rows])
    targets = BinTargets(bins=bins)(p, y)
    assert float(targets.mean()) == pytest.approx(float(y.mean()), abs=1e-12)
    assert bool(((targets >= 0) & (targets <= 1)).all())
    assert torch.equal(targets, BinTargets(bins=bins)(p, y))


def test_one_bin_is_the_base_rate_and_as_many_as_responses_are_the_labels():
    true, outcomes = synthetic(60)
    assert torch.allclose(BinTargets(bins=1)(true, outcomes), outcomes.mean().expand(60))
    assert torch.equal(BinTargets(bins=60)(true, outcomes), outcomes)
    assert torch.equal(BinTargets(bins=99)(true, outcomes), outcomes)


def test_targets_of_a_calibrated_model_are_its_own_mean_probability_in_each_bin():
    p = f64([0.2] * 10 + [0.6] * 10)
    y = f64([1.0] * 2 + [0.0] * 8 + [1.0] * 6 + [0.0] * 4)
    assert torch.allclose(BinTargets(bins=2)(p, y), p)
    many, outcomes = synthetic(40_000)
    targets = BinTargets()(many, outcomes)
    for found in width_bins(many, targets):
        assert found.right == pytest.approx(found.probability, abs=0.03)


@pytest.mark.parametrize("targets", [BinTargets(), KernelTargets(window=20)])
def test_targets_belong_to_their_response_whatever_the_order(targets):
    true, outcomes = synthetic(200, seed=3)
    found = targets(true, outcomes)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(targets(true[order], outcomes[order]), found[order])
    logits = true.logit().requires_grad_()
    assert not targets(logits.sigmoid(), outcomes).requires_grad


def test_a_kernel_weighs_neighbours_by_their_distance_in_probability():
    p, y = f64([0.1, 0.2, 0.9]), f64([0.0, 1.0, 1.0])
    found = KernelTargets(window=1, width=0.1)(p, y)
    near, far = (float(f64(-0.5 * (d / 0.1) ** 2).exp()) for d in (0.1, 0.7))
    assert found.tolist() == pytest.approx([near / (1 + near), (1 + far) / (1 + near + far), 1.0])
    wide = KernelTargets(window=3, width=1e6)(p, y)
    assert wide.tolist() == pytest.approx([2 / 3] * 3)
    assert torch.allclose(KernelTargets(window=3, width=1e-6)(p, y), y)


@given(st.integers(0, 7))
def test_one_epoch_on_targets_is_followed_by_c_on_labels(hard):
    soft = [epoch for epoch in range(40) if Cape(hard_epochs=hard).is_soft(epoch)]
    assert soft[0] == 0
    assert {b - a for a, b in itertools.pairwise(soft)} == {hard + 1}
