"""MaxRL: the specified points, and by enumeration the truncated likelihood that it climbs."""

from itertools import product

import pytest
import torch

from rlvr.objective.advantages.maxrl import MaxRL

ONE = torch.zeros(4).long()


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 0], [3, -1, -1, -1]),
        ([1, 1, 0, 0], [1, 1, -1, -1]),
        ([1, 1, 1, 1], [0, 0, 0, 0]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0]),
    ],
)
def test_the_specified_points(rewards, expected):
    assert MaxRL()(torch.tensor(rewards).double(), ONE).tolist() == pytest.approx(expected)


def test_groups_do_not_see_each_other():
    rewards, groups = torch.tensor([1.0, 5, 0, 9, 4]), torch.tensor([0, 7, 0, 7, 3])
    assert MaxRL()(rewards, groups).tolist() == pytest.approx([1, -2 / 7, -1, 2 / 7, 0])


def test_a_negative_reward_is_refused():
    with pytest.raises(ValueError, match=r"a reward is -0\.5; keep rewards at 0 or above"):
        MaxRL()(torch.tensor([1.0, -0.5]), ONE[:2])


def test_the_expected_gradient_is_that_of_pass_at_k_summed_over_k():
    """All outcomes of four samples of a policy that is right with probability 0.3."""
    p, samples, total = 0.3, 4, 0.0
    for outcome in product([0.0, 1.0], repeat=samples):
        probability = torch.tensor([p if right else 1 - p for right in outcome]).prod().item()
        scores = torch.tensor([1 / p if right else -1 / (1 - p) for right in outcome])
        advantages = MaxRL()(torch.tensor(outcome), ONE)
        total += probability * float((advantages * scores).mean())
    # d/dp of sum_k (1 - (1 - p)^k) / k
    orders = {n: sum((1 - p) ** (k - 1) for k in range(1, n + 1)) for n in (3, 4)}
    assert orders == pytest.approx({3: 2.19, 4: 2.533})
    assert total == pytest.approx(orders[samples - 1], rel=1e-5)
