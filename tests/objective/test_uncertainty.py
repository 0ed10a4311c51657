"""Uncertain rewards: a no-op where they are exact, and never more than a weight elsewhere."""

import math

import pytest
import torch

from rlvr.objective import GroupAdvantage, LeaveOneOut, ReinforcePlusPlus
from rlvr.objective.uncertainty import UncertaintyWeights, error_correlation

GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
REWARDS = torch.tensor([1.0, 0, 0.5, 0.25, 0, 1, 1, 0, 0.1, 0.7, 0.3])
UNSURE = torch.tensor([0.0, 0.2, 0.5, 0.1, 0.3, 0.3, 0.3, 0.3, 0.0, 0.9, 0.1])
ESTIMATORS = [GroupAdvantage(), GroupAdvantage(scale="none"), LeaveOneOut(), ReinforcePlusPlus()]
SETTINGS = [
    UncertaintyWeights(apply=apply, baseline=baseline)
    for apply in ("advantage", "shrink")
    for baseline in ("weighted", "plain")
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("level", [0.0, 0.37])
def test_equal_uncertainty_is_no_uncertainty(settings, estimator, level):
    found = settings.advantages(estimator, REWARDS, GROUPS, torch.full_like(REWARDS, level))
    assert torch.equal(found, estimator(REWARDS, GROUPS))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("estimator", ESTIMATORS[:3])
def test_a_group_of_equal_uncertainty_beside_others_is_left_alone(settings, estimator):
    if settings == UncertaintyWeights() and not isinstance(estimator, GroupAdvantage):
        pytest.skip("refused")
    found = settings.advantages(estimator, REWARDS, GROUPS, UNSURE)
    plain = estimator(REWARDS, GROUPS)
    assert torch.equal(found[4:8], plain[4:8])
    assert not torch.equal(found[:4], plain[:4])


def test_weights_are_in_the_unit_interval_before_they_get_mean_one():
    weights = UncertaintyWeights(temperature=0.3).weights(UNSURE, GROUPS)
    for group in range(3):
        own = weights[group == GROUPS]
        assert float(own.mean()) == pytest.approx(1)
        raw = own / own.max()
        assert bool(((raw > 0) & (raw <= 1)).all())
        unsure = UNSURE[group == GROUPS]
        expected = ((unsure.min() - unsure) / 0.3).exp()
        assert torch.allclose(raw, expected.double(), atol=1e-6)
    assert weights[4:8].tolist() == [1.0] * 4


@pytest.mark.parametrize("scale", ["std", "none"])
def test_with_the_weighted_baseline_a_groups_advantages_sum_to_zero(scale):
    settings = UncertaintyWeights()
    found = settings.advantages(GroupAdvantage(scale=scale), REWARDS, GROUPS, UNSURE)
    for group in range(3):
        assert float(found[group == GROUPS].double().sum()) == pytest.approx(0, abs=1e-6)
    plain = UncertaintyWeights(baseline="plain")
    other = plain.advantages(GroupAdvantage(scale=scale), REWARDS, GROUPS, UNSURE)
    assert abs(float(other[:4].sum())) > 0.01


@pytest.mark.parametrize("settings", SETTINGS)
def test_endless_uncertainty_removes_a_sample(settings):
    unsure = torch.zeros_like(REWARDS)
    unsure[1] = math.inf
    estimator = GroupAdvantage(scale="none")
    found = settings.advantages(estimator, REWARDS, GROUPS, unsure)
    assert bool(found.isfinite().all())
    if settings.apply == "advantage":
        assert found[1] == 0
        if settings.baseline == "weighted":
            without = [0, 2, 3]
            mean = REWARDS[without].mean()
            assert torch.allclose(found[without], 4 / 3 * (REWARDS[without] - mean))
    else:
        assert abs(float(found[1])) < abs(float(estimator(REWARDS, GROUPS)[1]))


def test_equal_rewards_stay_without_advantage():
    rewards = torch.full_like(REWARDS, 0.3)
    for settings in SETTINGS:
        found = settings.advantages(GroupAdvantage(), rewards, GROUPS, UNSURE)
        assert bool((found == 0).all())


def test_no_gradient_goes_through_the_weights():
    unsure = UNSURE.clone().requires_grad_()
    assert not UncertaintyWeights().weights(unsure, GROUPS).requires_grad


def test_spreads():
    scores = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.8]])
    assert UncertaintyWeights().of(scores).tolist() == pytest.approx([0.5, 0, 0.1])
    assert UncertaintyWeights(spread="range").of(scores).tolist() == pytest.approx([1, 0, 0.2])


def test_an_estimator_with_a_baseline_of_its_own_is_refused_the_weighted_one():
    with pytest.raises(ValueError, match="advantage 'rloo' does not subtract"):
        UncertaintyWeights().advantages(LeaveOneOut(), REWARDS, GROUPS, UNSURE)


def test_for_a_fixed_loss_the_best_log_variance_is_the_losss_logarithm():
    """Kendall and Gal's attenuation, which Ctrl-U's training loss is: exp(-s) l + s."""
    for loss in (0.2, 1.0, 5.0):
        s = torch.linspace(-5, 5, 100_001, dtype=torch.float64)
        value = (-s).exp() * loss + s
        assert float(s[value.argmin()]) == pytest.approx(math.log(loss), abs=1e-3)
        assert float(value.min()) == pytest.approx(1 + math.log(loss), abs=1e-6)


def test_correlation_with_the_error():
    error = torch.tensor([0.0, 1, 0, 1])
    assert error_correlation(error * 0.3, error) == pytest.approx(1)
    assert error_correlation(1 - error, error) == pytest.approx(-1)
    assert error_correlation(torch.zeros(4), error) is None
    assert error_correlation(error[:1], error[:1]) is None
