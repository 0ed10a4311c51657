"""Between a label for the bag and a label on every step: identities in float64."""

import itertools

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from rlvr.reward_models.bag import bag_loss

LOSSES = ["cross_entropy", "squared"]
RHOS = [0.0, 0.1, 0.3, 1.0]


def steps(responses=30, most=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rewards = 3 * torch.randn(responses, most, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, most + 1, (responses,), generator=generator)
    there = torch.arange(most) < sizes[:, None]
    labels = torch.randint(0, 2, (responses,), generator=generator).double()
    return rewards, there, labels


def single(rewards, label, loss):
    if loss == "squared":
        return (rewards.sigmoid() - label).square()
    return binary_cross_entropy_with_logits(rewards, label.expand_as(rewards), reduction="none")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_ends_are_the_label_of_the_bag_and_of_every_step(loss):
    rewards, there, labels = steps()
    whole, each = (bag_loss(rewards, there, labels, rho, loss) for rho in (0, 1))
    for row in range(len(labels)):
        own = rewards[row][there[row]]
        mean = own.sigmoid().mean().logit() if loss == "squared" else own.mean()
        assert float(whole[row]) == pytest.approx(float(single(mean, labels[row], loss)))
        assert float(each[row]) == pytest.approx(float(single(own, labels[row], loss).mean()))


@pytest.mark.parametrize("rho", RHOS)
def test_squared_error_is_the_bags_and_rho_times_the_variance_within_it(rho):
    rewards, there, labels = steps()
    found = bag_loss(rewards, there, labels, rho, "squared")
    bag = bag_loss(rewards, there, labels, 0, "squared")
    variance = torch.stack(
        [r[t].sigmoid().var(correction=0) for r, t in zip(rewards, there, strict=True)]
    )
    assert torch.allclose(found, bag + rho * variance, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_labels_on_every_step_cost_no_less(loss):
    rewards, there, labels = steps(seed=1)
    found = [bag_loss(rewards, there, labels, rho, loss) for rho in RHOS]
    for low, high in itertools.pairwise(found):
        assert bool((high >= low - 1e-12).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_response_of_one_step_is_the_same_at_every_rho(loss):
    rewards, _, labels = steps()
    there = torch.zeros_like(rewards, dtype=torch.bool)
    there[:, 0] = True
    found = [bag_loss(rewards, there, labels, rho, loss) for rho in RHOS]
    assert all(torch.allclose(found[0], other, atol=1e-12) for other in found)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rho", RHOS)
def test_padding_and_the_order_of_steps_change_nothing(loss, rho):
    rewards, there, labels = steps()
    expected = bag_loss(rewards, there, labels, rho, loss)
    padded = torch.where(there, rewards, torch.full_like(rewards, 1e3)).requires_grad_()
    found = bag_loss(padded, there, labels, rho, loss)
    assert torch.allclose(found, expected)
    gradient = torch.autograd.grad(found.sum(), padded)[0]
    assert bool((gradient[~there] == 0).all())
    order = torch.randperm(rewards.shape[1], generator=torch.manual_seed(3))
    assert torch.allclose(bag_loss(rewards[:, order], there[:, order], labels, rho, loss), expected)


def test_the_term_of_rho_pulls_at_nothing_where_all_steps_score_alike():
    rewards = torch.full((4, 3), 0.7, dtype=torch.float64, requires_grad=True)
    there, labels = torch.ones(4, 3, dtype=torch.bool), torch.tensor([0.0, 1, 0, 1])
    for loss in LOSSES:
        gradients = [
            torch.autograd.grad(bag_loss(rewards, there, labels, rho, loss).sum(), rewards)[0]
            for rho in (0, 1)
        ]
        assert torch.allclose(*gradients, atol=1e-12)


def test_with_rho_zero_only_the_mean_is_pulled():
    rewards, there, labels = steps()
    rewards.requires_grad_()
    gradient = torch.autograd.grad(bag_loss(rewards, there, labels, 0).sum(), rewards)[0]
    for row in range(len(labels)):
        own = gradient[row][there[row]]
        assert torch.allclose(own, own[:1].expand_as(own))


def test_a_response_without_steps_costs_nothing():
    rewards = torch.ones(2, 3)
    there = torch.tensor([[False] * 3, [True] * 3])
    assert bag_loss(rewards, there, torch.ones(2), 0.5)[0] == 0
