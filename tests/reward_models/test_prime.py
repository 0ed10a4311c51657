"""PRIME's maths: leave-one-out sums, the two forms, normalisation, whitening, the filter."""

import math

import pytest
import torch

from rlvr.objective.advantages.rloo import LeaveOneOut
from rlvr.reward_models.prime import (
    ProcessReturns,
    batch_normalised,
    centred,
    detached_preference,
    group_passes,
    rivals,
)

K = 4


@pytest.fixture
def batch():
    """Two groups of four: token rewards, mask, groups, outcome advantages."""
    torch.manual_seed(0)
    lengths = torch.tensor([5, 2, 7, 3, 4, 4, 1, 6])
    mask = (torch.arange(7) < lengths[:, None]).double()
    rewards = torch.randn(8, 7, dtype=torch.float64) * mask
    groups = torch.arange(8) // K
    outcome = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1], dtype=torch.float64)
    advantages = LeaveOneOut()(outcome, groups)[:, None] * mask
    return rewards, mask, groups, advantages


def means(values, mask):
    return (values * mask).sum(-1) / mask.sum(-1)


def test_leave_one_out_of_outcomes_sums_to_zero_in_every_group(batch):
    _, _, groups, advantages = batch
    for group in range(2):
        assert float(advantages[groups == group, 0].sum()) == pytest.approx(0, abs=1e-12)
    assert not LeaveOneOut()(torch.ones(8), groups).any()


@pytest.mark.parametrize("form", ["paper", "released"])
def test_per_token_means_of_process_rewards_sum_to_zero_in_every_group(batch, form):
    rewards, mask, groups, _ = batch
    found = means(centred(rewards, mask, groups, "leave_one_out", form), mask)
    for group in range(2):
        assert float(found[groups == group].sum()) == pytest.approx(0, abs=1e-12)


def test_the_paper_form_subtracts_the_mean_of_the_others_token_means(batch):
    rewards, mask, groups, _ = batch
    found = centred(rewards, mask, groups, "leave_one_out", "paper")
    m = means(rewards, mask)
    for row in range(8):
        others = [j for j in range(8) if groups[j] == groups[row] and j != row]
        expected = (rewards[row] - m[others].mean()) * mask[row]
        assert torch.allclose(found[row], expected)


def test_released_and_paper_form_differ_by_the_deviation_from_the_own_mean(batch):
    rewards, mask, groups, _ = batch
    paper, released = (
        centred(rewards, mask, groups, "leave_one_out", form) for form in ("paper", "released")
    )
    expected = (rewards - means(rewards, mask)[:, None]) / (K - 1) * mask
    assert torch.allclose(released - paper, expected, atol=1e-12)


@pytest.mark.parametrize("baseline", ["leave_one_out", "group"])
def test_a_constant_on_every_token_of_a_group_changes_nothing(batch, baseline):
    rewards, mask, groups, _ = batch
    moved = rewards + torch.where(groups == 0, 3.0, -1.0)[:, None]
    for form in ("paper", "released"):
        plain, other = (centred(x, mask, groups, baseline, form) for x in (rewards, moved))
        assert torch.allclose(plain, other, atol=1e-9)
    plain, other = (centred(x, mask, groups, "none") for x in (rewards, moved))
    assert not torch.allclose(plain, other)


def test_equal_token_rewards_give_the_outcome_advantages_alone(batch):
    """At the start, the first step of PRIME is plain RLOO."""
    rewards, mask, groups, outcome = batch
    for baseline in ("leave_one_out", "group", "none"):
        found = ProcessReturns().advantages(rewards * 0, outcome, mask, groups, baseline)
        assert torch.equal(found, outcome * mask)


def test_process_returns_are_discounted_sums_to_the_end(batch):
    rewards, mask, groups, outcome = batch
    settings = ProcessReturns(gamma=0.9, process_coefficient=2.0, outcome_coefficient=0.5)
    found = settings.advantages(rewards, outcome, mask, groups, "leave_one_out")
    a = centred(rewards, mask, groups, "leave_one_out")
    row, t = 2, 3
    total = sum(0.9 ** (s - t) * a[row, s] for s in range(t, 7))
    assert float(found[row, t]) == pytest.approx(float(2 * total + 0.5 * outcome[row, t]))
    assert not found[mask == 0].any()


def test_batch_normalised_returns_to_go_are_at_most_one(batch):
    rewards, mask, *_ = batch
    for factor in (1.0, 1000.0):
        scaled = batch_normalised(factor * rewards, mask)
        returns = scaled.flip(-1).cumsum(-1).flip(-1) * mask
        assert float(returns.abs().max()) == pytest.approx(1, abs=1e-4)


def test_normalised_and_whitened_advantages_do_not_depend_on_beta_nor_on_a_common_factor(batch):
    rewards, mask, groups, outcome = batch
    both = ProcessReturns(batch_norm=True, whiten=True, form="released")
    plain = both.advantages(rewards, outcome, mask, groups, "leave_one_out")
    scaled = both.advantages(20 * rewards, outcome, mask, groups, "leave_one_out")
    assert torch.allclose(plain, scaled, atol=1e-5)
    fives = both.model_copy(update={"process_coefficient": 5.0, "outcome_coefficient": 5.0})
    again = fives.advantages(rewards, outcome, mask, groups, "leave_one_out")
    assert torch.allclose(plain, again, atol=1e-6)
    tokens = plain[mask > 0]
    assert float(tokens.mean()) == pytest.approx(0, abs=1e-6)
    assert float(tokens.std()) == pytest.approx(1, abs=1e-6)


def test_padding_contributes_nothing(batch):
    rewards, mask, groups, outcome = batch
    dirty = rewards + 99 * (1 - mask)
    for settings in (ProcessReturns(), ProcessReturns(batch_norm=True, whiten=True)):
        one, two = (
            settings.advantages(x * mask, outcome, mask, groups, "leave_one_out")
            for x in (rewards, dirty)
        )
        assert torch.equal(one, two)
    assert torch.allclose(
        centred(dirty, mask, groups, "leave_one_out"),
        centred(rewards, mask, groups, "leave_one_out"),
    )


def test_a_completion_without_tokens_takes_no_part_in_the_baseline(batch):
    rewards, mask, groups, _ = batch
    mask = mask.clone()
    mask[0] = 0
    found = centred(rewards * mask, mask, groups, "leave_one_out")
    m = means(rewards, mask.clamp_min(1e-9))
    assert torch.allclose(found[1], (rewards[1] - (m[2] + m[3]) / 2) * mask[1])
    assert not found[0].any()


def test_with_four_samples_the_filter_keeps_one_two_or_three_right_ones():
    kept = [c for c in range(5) if group_passes([i < c for i in range(4)], (0.2, 0.8))]
    assert kept == [1, 2, 3]
    assert group_passes([True] + [False] * 4, (0.2, 0.8))  # 1/5: bounds are included
    assert group_passes([True] * 4 + [False], (0.2, 0.8))


def test_a_completion_is_compared_with_those_that_came_out_otherwise():
    scores = torch.tensor([3.0, 1.0, -2.0, 9.0, 5.0, 4.0])
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    there = torch.tensor([True] * 6)
    found = rivals(scores, labels, groups, there)
    assert found[:, 0].tolist() == [-0.5, 3.0, 3.0, 0.0, 0.0, 0.0]
    assert found[:, 1].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], "others have no rival"
    there[2] = False
    assert rivals(scores, labels, groups, there)[:3].tolist() == [[1, 1], [3, 1], [0, 0]]


def test_weights_of_the_best_of_n_are_the_density_of_its_draw():
    """K P(<=)^(K-1): for distinct scores about what the largest of K equal draws would weigh."""
    scores, labels = torch.tensor([4.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    found = rivals(scores, labels, torch.zeros(4), torch.ones(4).bool(), weigh=True)
    expected = [4 * share**3 for share in (1.0, 0.25, 0.5, 0.75)]
    assert found[:, 1].tolist() == pytest.approx(expected)
    ties = rivals(torch.zeros(4), labels, torch.zeros(4), torch.ones(4).bool(), weigh=True)
    assert ties[:, 1].tolist() == [4.0] * 4


def test_the_detached_preference_pulls_right_up_and_wrong_down_and_leaves_rivals_alone():
    rewards = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    found = rivals(rewards.detach(), labels, torch.tensor([0, 0, 1, 2]), torch.ones(4).bool())
    loss = detached_preference(rewards, labels, *found.unbind(-1))
    assert loss.tolist() == pytest.approx([math.log(2), math.log(2), 0, 0])
    gradient = torch.autograd.grad(loss.sum(), rewards)[0]
    assert gradient.tolist() == pytest.approx([-0.5, 0.5, 0, 0])
    # Of a pair, both halves together have DPO's gradient: sigma(-(Q_w - Q_z)) each.
    moved = torch.tensor([1.5, -0.5], dtype=torch.float64, requires_grad=True)
    found = rivals(moved.detach(), labels[:2], torch.zeros(2), torch.ones(2).bool())
    pair = detached_preference(moved, labels[:2], *found.unbind(-1)).sum()
    dpo = -torch.nn.functional.logsigmoid(moved[0] - moved[1])
    ours, its = (torch.autograd.grad(value, moved)[0] for value in (pair, dpo))
    assert torch.allclose(ours, its)
