"""Leave-one-out, batch-normalised and critic-based advantages against their definitions."""

import pytest
import torch

from rlvr.objective.advantages.gae import Gae, token_rewards, whiten
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.advantages.reinforce_pp import ReinforcePlusPlus
from rlvr.objective.advantages.rloo import LeaveOneOut
from rlvr.objective.value_loss import ValueLoss, explained_variance

REWARDS = torch.tensor([1.0, 5, 0, 9, 2, 2, 7], dtype=torch.float64)
GROUPS = torch.tensor([0, 1, 0, 1, 0, 1, 2])


def test_leave_one_out_is_the_distance_to_the_mean_of_the_others():
    values = LeaveOneOut()(REWARDS, GROUPS)
    for index, (reward, group) in enumerate(zip(REWARDS, GROUPS, strict=True)):
        others = [r for i, r in enumerate(REWARDS) if GROUPS[i] == group and i != index]
        expected = reward - sum(others) / len(others) if others else 0.0
        assert values[index].item() == pytest.approx(float(expected))


def test_the_leave_one_out_gradient_is_unbiased_and_the_group_means_is_shrunk():
    """All pairs of completions of a three-token policy, by enumeration."""
    logits = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)
    reward = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
    (true,) = torch.autograd.grad((logp.exp() * reward).sum(), logits, retain_graph=True)

    def expected_gradient(advantage):
        total = torch.zeros_like(logits)
        for a in range(3):
            for b in range(3):
                A = advantage(reward[[a, b]], torch.zeros(2).long())
                surrogate = (A * logp[[a, b]]).mean()
                (gradient,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
                total += (logp[a] + logp[b]).exp().detach() * gradient
        return total

    assert torch.allclose(expected_gradient(LeaveOneOut()), true, atol=1e-12)
    assert torch.allclose(expected_gradient(GroupAdvantage(scale="none")), true / 2, atol=1e-12)


@pytest.mark.parametrize("baseline", ["none", "group"])
def test_batch_normalised_advantages_have_mean_zero_and_unit_spread(baseline):
    values = ReinforcePlusPlus(baseline=baseline)(REWARDS, GROUPS)
    assert values.mean().item() == pytest.approx(0, abs=1e-12)
    assert values.std(correction=1).item() == pytest.approx(1, rel=1e-5)
    if baseline == "group":  # one spread for all groups: differences keep their proportion
        centred = GroupAdvantage(scale="none")(REWARDS, GROUPS)
        centred = centred - centred.mean()
        assert torch.allclose(values * centred[3], centred * values[3])


MASK = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.float64)


def gae_by_definition(rewards, values, gamma, lam):
    """The sum over all later errors, token by token, of one completion."""
    length = len(rewards)
    deltas = [
        rewards[t] + gamma * (values[t + 1] if t + 1 < length else 0) - values[t]
        for t in range(length)
    ]
    return [
        sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, length)) for t in range(length)
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0), (0.95, 1.0)])
def test_gae_is_the_discounted_sum_of_errors(gamma, lam):
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 4).double() * MASK, torch.randn(2, 4).double()
    estimator = Gae(gamma=gamma, lam=lam, whiten=False)
    advantages, returns = estimator.estimate(rewards, values, MASK)
    for row, length in enumerate([4, 2]):
        expected = gae_by_definition(
            rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam
        )
        assert advantages[row, :length].tolist() == pytest.approx(expected)
        sums = advantages[row, :length] + values[row, :length]
        assert returns[row, :length].tolist() == pytest.approx(sums.tolist())
    assert bool((advantages[MASK == 0] == 0).all())
    assert bool((returns[MASK == 0] == 0).all()), "padding must not reach the critic"


def test_gae_at_its_limits_is_the_return_and_the_one_step_error():
    values = torch.tensor([[0.2, 0.5, 0.1, 0.7], [0.3, 0.4, 9.0, 9.0]], dtype=torch.float64)
    rewards = token_rewards(torch.tensor([1.0, -1.0], dtype=torch.float64), MASK)
    assert rewards.tolist() == [[0, 0, 0, 1], [0, -1, 0, 0]]
    full, _ = Gae(whiten=False).estimate(rewards, values, MASK)
    expected = (torch.tensor([[1.0], [-1.0]]) - values) * MASK
    assert torch.allclose(full, expected), "lambda 1: the outcome minus the value"
    step, _ = Gae(lam=0.0, whiten=False).estimate(rewards, values, MASK)
    assert step[0].tolist() == pytest.approx([0.3, -0.4, 0.6, 0.3])


def test_whitening_is_over_tokens_alone():
    values = torch.tensor([[1.0, 2, 4, 8], [5, 3, 100, 100]], dtype=torch.float64)
    white = whiten(values, MASK)
    inside = white[MASK > 0]
    assert inside.mean().item() == pytest.approx(0, abs=1e-12)
    assert inside.std().item() == pytest.approx(1, rel=1e-6)
    assert bool((white[MASK == 0] == 0).all())
    assert whiten(torch.full_like(values, 3.3), MASK).tolist() == torch.zeros(2, 4).tolist()


def test_the_value_loss_is_clipped_where_it_would_run_ahead_of_its_data():
    old = torch.zeros(1, 5, dtype=torch.float64)
    returns = torch.tensor([[1.0, 1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.3, 0.9, 2.0, 0.9, -0.9]], dtype=torch.float64, requires_grad=True)
    result = ValueLoss(clip=0.5)(values, old, returns)
    (slope,) = torch.autograd.grad(result.loss_BT.sum(), values)
    assert result.loss_BT[0].tolist() == pytest.approx([0.245, 0.125, 0.5, 1.805, 1.805])
    # within the clip: plain; past it towards the return: no push; away from it: the full push
    assert slope[0].tolist() == pytest.approx([-0.7, 0.0, 1.0, 1.9, -1.9])
    plain = ValueLoss(clip=None)(values, old, returns)
    assert torch.allclose(plain.loss_BT, (values - returns).square() / 2)


def test_explained_variance_is_one_for_the_truth_and_zero_for_a_constant():
    returns = torch.tensor([[1.0, 2, 4, 8], [5, 3, 0, 0]], dtype=torch.float64)
    assert explained_variance(returns + 5 * (1 - MASK), returns, MASK) == pytest.approx(1)
    assert explained_variance(torch.zeros_like(returns), returns, MASK) == pytest.approx(0)
    assert explained_variance(-returns, returns, MASK) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones_like(returns), MASK) == 0.0
