"""Losses of reward models against closed forms in float64, and at their limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import softplus

from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.reward_models.outcome_losses import (
    BradleyTerry,
    ListwiseLdr,
    PointwiseCrossEntropy,
    tie_loss,
    win_loss,
)

REWARD = st.floats(-8, 8)
SIZES = st.floats(0, 4)


def f64(*values, **options):
    return torch.tensor(*values, dtype=torch.float64, **options)


def pairs(differences, tie=False):
    rewards = f64([[d + 1.5, 1.5] for d in differences])
    labels = f64([[1, float(tie)]] * len(differences))
    return rewards, labels, torch.ones_like(rewards, dtype=torch.bool)


@given(st.lists(REWARD, min_size=1, max_size=5))
def test_without_ties_and_margin_it_is_bradley_terry(differences):
    found = BradleyTerry()(*pairs(differences))
    expected = [math.log1p(math.exp(-d)) for d in differences]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(found, BradleyTerry(form="released")(*pairs(differences)))


@given(REWARD, SIZES)
def test_a_margin_asks_for_more_and_smoothing_mixes_the_turned_pair_in(d, margin):
    found = float(BradleyTerry(margin=margin)(*pairs([d])))
    assert found == pytest.approx(float(softplus(f64(margin - d), threshold=50)), rel=1e-10)
    smoothed = float(BradleyTerry(margin=margin, smoothing=0.1)(*pairs([d])))
    turned = float(win_loss(f64([-d]), margin))
    assert smoothed == pytest.approx(0.9 * found + 0.1 * turned, rel=1e-10)


@given(SIZES)
def test_a_tie_at_no_difference_is_log_two_on_paper_and_two_softplus_as_released(margin):
    zero = f64([0.0])
    assert float(tie_loss(zero)) == pytest.approx(math.log(2))
    released = float(tie_loss(zero, margin, "released"))
    assert released == pytest.approx(2 * math.log1p(math.exp(margin)))


@given(REWARD, SIZES, st.sampled_from(["paper", "released"]))
def test_a_tie_is_even_and_lowest_at_no_difference(d, margin, form):
    here, turned = tie_loss(f64([d]), margin, form), tie_loss(f64([-d]), margin, form)
    assert float(here) == pytest.approx(float(turned), rel=1e-12)
    assert float(here) >= float(tie_loss(f64([0.0]), margin, form)) - 1e-12
    at_zero = f64([0.0], requires_grad=True)
    tie_loss(at_zero, margin, form).sum().backward()
    assert float(at_zero.grad.abs()) < 1e-15


@pytest.mark.parametrize(("margin", "curvature"), [(0.0, 0.5), (3.0, 0.0903)])
def test_a_margin_flattens_the_tie_term(margin, curvature):
    d = f64(0.0, requires_grad=True)
    slope = torch.autograd.grad(tie_loss(d, margin, "released"), d, create_graph=True)[0]
    found = float(torch.autograd.grad(slope, d)[0])
    sigmoid = 1 / (1 + math.exp(-margin))
    assert found == pytest.approx(2 * sigmoid * (1 - sigmoid), rel=1e-12)
    assert found == pytest.approx(curvature, abs=1e-4)


def test_the_released_tie_is_twice_the_papers_and_weights_are_of_their_kind():
    rewards, labels, mask = pairs([0.7, -1.1], tie=True)
    paper = BradleyTerry()(rewards, labels, mask)
    released = BradleyTerry(form="released")(rewards, labels, mask)
    assert torch.allclose(released, 2 * paper)
    both = f64([[1, 0], [1, 1]])
    weighted = BradleyTerry(win_weight=3, tie_weight=5)(rewards, both, mask)
    plain = BradleyTerry()(rewards, both, mask)
    assert (weighted / plain).tolist() == pytest.approx([3, 5])


def test_its_pointwise_part_is_the_mean_cross_entropy_of_both_sides():
    rewards, labels, mask = pairs([0.7])
    extra = BradleyTerry(pointwise_weight=0.5)(rewards, labels, mask)
    extra = extra - BradleyTerry()(rewards, labels, mask)
    expected = (math.log1p(math.exp(-2.2)) + math.log1p(math.exp(1.5))) / 2
    assert float(extra) == pytest.approx(0.5 * expected)
    assert BradleyTerry(pointwise_weight=0.5).absolute
    assert not BradleyTerry().absolute


@pytest.mark.parametrize("label", [[0.0, 0.0], [0.0, 1.0]])
def test_a_pair_of_two_failures_or_turned_round_is_refused(label):
    rewards = f64([[1.0, 0.0]])
    with pytest.raises(ValueError, match="begins with a wrong response"):
        BradleyTerry()(rewards, f64([label]), rewards > -9)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (BradleyTerry(), [[1, 0], [1, 1]]),
        (BradleyTerry(form="released", margin=3, tie_margin=3, smoothing=0.1), [[1, 0], [1, 1]]),
        (ListwiseLdr(), [[1, 0], [0, 1]]),
        (ListwiseLdr(temperature=7, margin=0), [[1, 0], [0, 1]]),
    ],
)
def test_a_constant_added_to_all_rewards_changes_nothing(loss, labels):
    rewards = f64([[0.3, -1.2], [2.0, 0.4]])
    values = [loss(rewards + c, f64(labels), rewards > -9) for c in (0.0, 11.0)]
    assert torch.allclose(*values, rtol=1e-12)
    assert not loss.absolute


@given(REWARD, st.floats(0, 1))
def test_cross_entropy_takes_soft_labels(reward, label):
    loss = PointwiseCrossEntropy()
    found = float(loss(f64([[reward]]), f64([[label]]), torch.ones(1, 1, dtype=torch.bool)))
    expected = label * math.log1p(math.exp(-reward)) + (1 - label) * math.log1p(math.exp(reward))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def ldr(rewards, right, **settings):
    rewards = f64([rewards])
    labels = torch.zeros_like(rewards)
    labels[0, right] = 1
    return float(ListwiseLdr(**settings)(rewards, labels, torch.ones_like(rewards).bool()))


LISTS = st.lists(st.floats(-5, 5), min_size=2, max_size=6)


@given(LISTS, st.floats(0.1, 10), st.floats(0, 2))
def test_ldr_is_its_equation(rewards, temperature, margin):
    own = rewards[0]
    terms = [math.exp((r - own + margin * (k > 0)) / temperature) for k, r in enumerate(rewards)]
    expected = temperature * math.log(sum(terms) / len(terms))
    found = ldr(rewards, 0, temperature=temperature, margin=margin)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(LISTS)
def test_limits_of_ldr(rewards):
    own, others = rewards[0], rewards[1:]
    hardest = max([0.0, *(r - own + 0.1 for r in others)])
    assert ldr(rewards, 0, temperature=1e-5) == pytest.approx(hardest, abs=1e-4)
    mean = sum(r - own + 0.1 for r in others) / len(rewards)
    assert ldr(rewards, 0, temperature=1e7) == pytest.approx(mean, abs=1e-4)
    log_p = float(f64(rewards).log_softmax(0)[0])
    expected = -log_p - math.log(len(rewards))
    assert ldr(rewards, 0, temperature=1.0, margin=0.0) == pytest.approx(expected, abs=1e-9)
    assert ldr([own] * len(rewards), 0, margin=0.0) == pytest.approx(0.0, abs=1e-12)


def test_right_ones_of_a_list_stand_each_against_the_wrong_ones_alone():
    rewards = f64([[2.0, 1.0, 0.0, -0.5]], requires_grad=True)
    labels = f64([[1.0, 1.0, 0.0, 0.0]])
    found = ListwiseLdr()(rewards, labels, torch.ones(1, 4, dtype=torch.bool))
    each = [ldr([own, 0.0, -0.5], 0) for own in (2.0, 1.0)]
    assert found.tolist() == pytest.approx([sum(each) / 2])
    found.sum().backward()
    assert (rewards.grad[0, :2] < 0).all()  # both are pulled up, neither pushed down
    assert (rewards.grad[0, 2:] > 0).all()


def test_lists_are_padded_and_what_teaches_nothing_is_zero():
    loss = ListwiseLdr()
    rewards = f64([[2.0, 0.0, 9.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    labels = f64([[1, 0, 0], [1, 1, 1], [0, 0, 0]])
    mask = torch.tensor([[True, True, False], [True] * 3, [True] * 3])
    found = loss(rewards, labels, mask)
    assert float(found[0]) == pytest.approx(ldr([2.0, 0.0], 0))
    assert found[1:].tolist() == [0, 0]
    found.sum().backward()
    assert torch.isfinite(rewards.grad).all()
    assert rewards.grad[1:].abs().sum() == 0
    assert rewards.grad[0, 2] == 0


def test_normalised_ldr_sees_ratios_and_no_longer_ignores_a_constant():
    values = [ldr([2.0, 1.0, -1.0], 0, normalise=True), ldr([20.0, 10.0, -10.0], 0, normalise=True)]
    assert values[0] == pytest.approx(values[1])
    assert ldr([3.0, 2.0, 0.0], 0, normalise=True) != pytest.approx(values[0])


def tabular(loss, pair_list, labels, steps=4000):
    """Rewards of responses that share nothing, trained on pairs."""
    rewards = torch.zeros(len(labels), dtype=torch.float64, requires_grad=True)
    index = torch.tensor(pair_list)
    paired = torch.tensor(labels, dtype=torch.float64)[index]
    optimizer = torch.optim.Adam([rewards], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(rewards[index], paired, torch.ones_like(paired).bool()).mean().backward()
        optimizer.step()
    return rewards.detach()


@pytest.fixture(scope="module")
def trained():
    """Four passes that met one to four failures each: by comparisons alone they drift apart."""
    labels = [1.0] * 4 + [0.0] * 4
    wins = [(w, 4 + k) for w in range(4) for k in range(w + 1)]
    ties = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    return {
        "bt": tabular(BradleyTerry(), wins, labels, 600),
        "win_tie": tabular(BradleyTerry(), wins + ties, labels, 600),
        "labels": labels,
    }


def test_ties_lower_the_variance_among_passes_at_equal_accuracy(trained):
    for name in ("bt", "win_tie"):
        rewards = trained[name]
        assert bool((rewards[:4, None] > rewards[None, 4:]).all())
    assert trained["win_tie"][:4].var() < 0.25 * trained["bt"][:4].var()


def test_ties_keep_the_order_of_advantages_and_shrink_the_largest(trained):
    advantages = {
        name: GroupAdvantage(scale="std")(trained[name].float(), torch.zeros(8, dtype=torch.long))
        for name in ("bt", "win_tie")
    }
    for values in advantages.values():
        assert values[:4].min() > values[4:].max()
    assert advantages["win_tie"][:4].max() < advantages["bt"][:4].max()


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.4, 2.0])
@pytest.mark.parametrize("label", [0.0, 0.3, 1.0])
def test_tau_bends_the_pointwise_loss(tau, label):
    rewards = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None].requires_grad_()
    labels, mask = torch.full_like(rewards, label), torch.ones_like(rewards, dtype=torch.bool)
    loss = PointwiseCrossEntropy(tau=tau)(rewards, labels, mask)
    p = rewards[:, 0].sigmoid()

    def member(q):
        return -q.log() if tau == 1 else (1 - q ** (tau - 1)) / (tau - 1)

    assert torch.allclose(loss, label * member(p) + (1 - label) * member(1 - p), atol=1e-9)
    (gradient,) = torch.autograd.grad(loss.sum(), rewards)
    if label == 1 and tau > 1:  # what is judged far against its label pulls less
        assert abs(float(gradient[0])) < abs(float(gradient[12]))
