"""Losses and gradients stay numbers in float32, whatever the log-probabilities are."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from rlvr.objective.corrections import MaskOnly, MaskOutliers, TruncatedImportance
from rlvr.objective.loss_inputs import LossInputs, Step
from rlvr.objective.numerics import bounded_exp, k3
from rlvr.objective.policy_losses.sapo import Sapo
from rlvr.objective.policy_losses.vespo import Vespo
from rlvr.objective.reducers import Counts
from rlvr.objective.regularisers.kl import KL
from rlvr.objective.uncertainty import Uncertainty
from rlvr.objective.value_loss import ValueLoss
from rlvr.policy.token_stats import token_stats
from tests.objective.columns import columns, step_of
from tests.objective.test_every_part import TERMS, objective_of, parts

INF = math.inf
HELD = [0.0, -1e-6, -30.0, -87.0, -90.0, -800.0, -1e4, -INF]


def extreme(seed):
    """Columns of every pair of log-probabilities in HELD, padding full of junk, as float32."""
    pairs = list(itertools.product(HELD, HELD))
    now, before = (torch.tensor(side).view(8, 8) for side in zip(*pairs, strict=True))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed)).view(8, 8)
    now, before = now.flatten()[order], before.flatten()[order]
    mask = torch.ones(8, 8)
    mask[:, 6:] = 0
    advantages = torch.tensor([1.0, -1, 0, 2, -2, 0, 1, -1])[:, None].expand(8, 8)
    plain = columns(rows=8, width=8)
    return LossInputs(
        logprobs_BT=now.clone().requires_grad_(),
        old_logprobs_BT=before,
        advantages_BT=advantages * mask,
        mask_BT=mask,
        entropy_BT=torch.zeros(8, 8, requires_grad=True),
        reference_logprobs_BT=before.flip(0),
        rollout_logprobs_BT=before.flip(1),
        columns={
            **{name: value.detach().float() for name, value in plain.columns.items()},
            "kept": torch.ones(8, 8),
            "proxy_logprobs": before.flip(0).clamp_max(0.0),
        },
    )


@parts(TERMS)
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_of_every_part_are_finite(part, seed):
    objective, terms = objective_of(part), extreme(seed)
    terms = replace(terms, prepared=objective.prepare(step_of(terms)))
    loss, metrics = objective(terms, Counts.of(terms.mask_BT))
    assert bool(loss.isfinite())
    for name, value in metrics.items():
        if name != "lp_reg/threshold":
            assert math.isfinite(value), name
    leaves = (terms.logprobs_BT, terms.entropy_BT)
    if loss.requires_grad:
        for slope in torch.autograd.grad(loss, leaves, allow_unused=True):
            assert slope is None or bool(slope.isfinite().all())


def test_a_bounded_exponential_is_the_exponential_below_and_its_tangent_above():
    x = torch.tensor([-1e4, -3.0, 0.0, 5.0, 19.99, 20.0, 21.0, 90.0, 1e4]).double()
    x.requires_grad_()
    y = bounded_exp(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y[:6], x[:6].exp())
    assert torch.equal(slope[:5], x[:5].exp())
    e20 = math.exp(20)
    assert y[6:].tolist() == pytest.approx([e20 * 2, e20 * 71, e20 * 9981])
    assert slope[6:].tolist() == pytest.approx([e20] * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_pull_of_k3_is_finite_where_the_policy_has_left_the_reference_far_behind(dtype):
    """At d = 90 the gradient in float32 was minus infinity."""
    d = torch.tensor([0.0, 1.0, 19.0, 90.0, 1e4], dtype=dtype)
    logprobs = (-d).clone().requires_grad_()
    zeros = torch.zeros_like(d)
    terms = LossInputs(
        logprobs_BT=logprobs[None],
        old_logprobs_BT=zeros[None],
        advantages_BT=zeros[None],
        mask_BT=torch.ones_like(d)[None],
        reference_logprobs_BT=zeros[None],
    )
    loss = KL(coefficient=1.0)(terms).loss_BT
    (slope,) = torch.autograd.grad(loss.sum(), logprobs)
    exact = 1 - d.double().clamp_max(20).exp()
    assert torch.allclose(slope.double(), exact, rtol=1e-5)
    assert torch.allclose(k3(d[:3]), d[:3].exp() - d[:3] - 1)


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_impossible_tokens_leave_entropy_and_gradients_what_they_are_without_them(entropy, chunk):
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 4).double(), torch.randn(7, 4).double()
    bias = torch.randn(7).double()
    targets = torch.tensor([0, 1, 2, 0, 3])
    found = []
    for impossible in (False, True):
        h, w, b = (t.clone() for t in (hidden, weight, bias))
        if impossible:
            w, b = torch.cat([w, w[:2]]), torch.cat([b, torch.full((2,), -INF).double()])
        h.requires_grad_(), w.requires_grad_(), b.requires_grad_()
        stats = token_stats(h, w, targets, bias_V=b, entropy=entropy, chunk_tokens=chunk)
        loss = stats.logprobs_N.sum() + (stats.entropy_N.square().sum() if entropy else 0)
        slopes = torch.autograd.grad(loss, (h, w, b))
        found.append([loss.detach(), slopes[0], slopes[1][:7], slopes[2][:7]])
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-12)


@pytest.mark.parametrize("part", [Sapo(negative=1.1), Vespo(k_negative=0.1, lam_negative=0.7)])
def test_constants_are_as_exact_as_the_columns(part):
    """1.1 in float32 is off by 2e-8, which a float64 loss must not see."""
    logprobs = torch.tensor([[-1.3]], dtype=torch.float64)
    terms = LossInputs(
        logprobs_BT=logprobs,
        old_logprobs_BT=torch.tensor([[-1.0]]).double(),
        advantages_BT=torch.tensor([[-1.0]]).double(),
        mask_BT=torch.ones(1, 1).double(),
    )
    r = math.exp(-0.3)
    if isinstance(part, Sapo):
        expected = 4 / 1.1 / (1 + math.exp(-1.1 * (r - 1)))
    else:
        expected = r**0.1 * math.exp(0.7 * (1 - r)) * -1.3
    assert part(terms).loss_BT.item() == pytest.approx(expected, rel=1e-14)


def test_a_value_that_did_not_leave_its_bounds_is_not_counted_as_clipped():
    generator = torch.Generator().manual_seed(0)
    old, moves, returns = (torch.randn(1, 5000, generator=generator) for _ in range(3))
    values = old + 0.1 * moves.clamp(-4, 4)
    result = ValueLoss(clip=0.5)(values, old, returns)
    assert not result.metrics["critic/clip_fraction"].any()
    assert torch.equal(result.loss_BT, (values - returns).square() / 2)
    far = ValueLoss(clip=0.5)(old + 1.0, old, old)
    assert torch.allclose(far.loss_BT, torch.tensor(0.5))
    assert not far.metrics["critic/clip_fraction"].any()
    back = ValueLoss(clip=0.5)(old + 1.0, old, old + 2.0)
    assert back.metrics["critic/clip_fraction"].all()


def test_certain_rewards_beside_uncertain_ones_are_pushed_away_from_the_mean():
    """What the documentation says of the weights."""
    rewards, group = torch.tensor([1.0, 1.0, 0.0, 0.0]).double(), torch.zeros(4).long()
    uncertainty = torch.tensor([0.0, 1.0, 0.0, 1.0])
    moved = Uncertainty(temperature=0.5).shrunk(rewards, uncertainty, group)
    assert moved[0] > 1.0
    assert 0.5 < moved[1] < 1.0
    assert moved[2] < 0.0
    assert moved.mean() == pytest.approx(0.5)
    certain = Uncertainty().shrunk(rewards, torch.zeros(4), group)
    assert torch.equal(certain, rewards)


@pytest.mark.parametrize(
    "part", [MaskOnly(), MaskOutliers(level="sequence"), TruncatedImportance()]
)
def test_corrections_see_no_padding_and_no_overflow(part):
    log_rho = torch.tensor([[1e4, -1e4, INF, -INF], [0.0, 0.1, INF, math.nan]])
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0]])
    assert bool((part.weights(log_rho, mask) * mask).isfinite().all())


def test_a_step_ranks_impossible_tokens_last():
    step = Step(torch.tensor([[-INF, -1.0]]), torch.ones(1, 2), torch.ones(1, 2))
    assert step.logprobs_BT.tolist() == [[-1e4, -1.0]]
