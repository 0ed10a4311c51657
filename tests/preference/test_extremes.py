"""Preference losses and their gradients stay numbers in float32, whatever the log-probabilities."""

import itertools
import math

import pytest
import torch

from rlvr.preference.losses.base import PairLoss, PreferenceLoss, UnpairedLoss
from rlvr.preference.losses.difference import Discopop
from rlvr.preference.losses.terms import Labelled, Pairs, Side
from rlvr.preference.numerics import bounded_expm1

HELD = [0.0, -1e-6, -10.0, -90.0, -1000.0, -1e4, -math.inf]
MORE = {
    "comp_sum": [{"tau": 0.0}, {"tau": 2.0}],
    "cpo": [{"alpha": 0.25}, {"form": "hinge", "alpha": -1.0}],
    "cpo_ipo": [{"alpha": 0.25}],
    "discopop": [{"tau": 2.0}],
    "exo_pair": [{"beta": 1.0}],
    "logic": [{"structure": "CPO"}, {"structure": "DPO", "per": "sequence"}],
}
MORE = {
    **MORE,
    **{
        name: [*MORE.get(name, []), *({"divergence": d} for d in ("forward_kl", "js", "alpha"))]
        for name in ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
    },
}
EVERY = [
    kind(**{**kind.example, **settings})
    for kind in PreferenceLoss.registry().values()
    for settings in ({}, *MORE.get(kind.model_fields["name"].default, []))
    if issubclass(kind, PairLoss | UnpairedLoss) and kind.__module__.startswith("rlvr.preference.")
]


def given():
    """Every combination of four extreme log-probabilities, as float32 with gradients."""
    rows = torch.tensor(list(itertools.product(HELD, repeat=4)))
    return rows.clone().requires_grad_()


@pytest.mark.parametrize("loss", EVERY, ids=repr)
def test_loss_and_gradient_are_finite(loss):
    logps = given()
    won, lost, won_ref, lost_ref = logps.unbind(-1)
    lengths = torch.full_like(won.detach(), 3.0)
    scores = torch.linspace(0, 1, len(won))
    if isinstance(loss, PairLoss):
        sides = (
            Side(won, lengths, won_ref.detach(), scores_B=scores + 1),
            Side(lost, 2 * lengths, lost_ref.detach(), scores_B=scores),
        )
        value = loss(Pairs(*sides, 5.0, prompt_logps_B=0 * scores - 3, prompt_tokens_per_pair=2.0))
    else:
        value = loss(Labelled(won, won_ref.detach(), torch.arange(len(won)) % 2, baseline=0.5))
    assert bool(value.isfinite().all())
    (slope,) = torch.autograd.grad(value.mean(), logps)
    assert bool(slope.isfinite().all())


def test_discopop_beyond_the_exponentials_overflow():
    """-log sigmoid's part alone is left there: m exp(-z) is exp(z / tau - z), which is 0."""
    margin = torch.tensor([-1e3, -2e3, -4.0, 3.0, 900.0], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros_like(margin.detach())
    lengths = torch.ones_like(zeros)
    pairs = Pairs(Side(margin, lengths, zeros), Side(zeros, lengths, zeros), 1.0)
    loss = Discopop(beta=1.0)(pairs)
    (slope,) = torch.autograd.grad(loss.sum(), margin)
    assert loss[:2].tolist() == pytest.approx([1e3, 2e3])
    assert slope[:2].tolist() == pytest.approx([-1.0, -1.0])
    for z, value in zip(margin.tolist()[2:4], loss.tolist()[2:4], strict=True):
        m = 1 / (1 + math.exp(-z / 0.05))
        assert value == pytest.approx((1 - m) * math.log1p(math.exp(-z)) + m * math.exp(-z))


def test_a_bounded_exponential_is_expm1_below_and_its_tangent_above():
    x = torch.tensor([-1e4, -1e-9, 5.0, 20.0, 1e4], dtype=torch.float64, requires_grad=True)
    y = bounded_expm1(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y[:4], torch.expm1(x[:4]))
    assert slope.tolist()[-1] == pytest.approx(math.exp(20))
    assert bool(y.isfinite().all())
