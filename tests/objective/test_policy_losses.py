"""Where each policy loss has a gradient, and how large."""

import pytest
import torch

from rlvr.objective import (
    Cispo,
    Clip,
    Counts,
    Gspo,
    KlCov,
    NoPolicyLoss,
    Objective,
    Ratio,
    Reinforce,
    SequenceMean,
    Terms,
    TokenMean,
)
from rlvr.settings import load_settings
from tests.objective.columns import prepared, row, slope

RATIOS = [0.01, 0.5, 1.0, 1.5, 11.0, 0.01, 0.5, 1.0, 1.5, 11.0]
SIGNS = [1.0] * 5 + [-1.0] * 5


def expected_slopes(alive):
    return [
        -r * a if keep else 0.0
        for r, a, keep in zip(RATIOS, SIGNS, map(int, alive.replace(" ", "")), strict=True)
    ]


@pytest.mark.parametrize(
    ("loss", "alive"),
    [
        (Clip(), "11100 00111"),
        (Clip(high=0.6), "11110 00111"),
        (Clip(dual=3.0), "11100 00110"),
        (Clip(low=1.0, high=9.0), "11110 11111"),  # Lp-Reg's released surrogate
        (Ratio(cap=10.0), "11110 11110"),  # Lp-Reg's Eq. 6
        (Ratio(), "11111 11111"),
        (NoPolicyLoss(), "00000 00000"),
    ],
    ids=str,
)
def test_the_gradient_is_the_plain_one_or_exactly_zero(loss, alive):
    case = row(RATIOS, SIGNS)
    result = loss(case)
    if isinstance(loss, NoPolicyLoss):
        assert result.loss_BT.tolist() == [[0.0] * 10]
        assert not result.loss_BT.requires_grad
        return
    expected = expected_slopes(alive)
    assert slope(loss, case) == pytest.approx(expected)
    cut = [value == 0 for value in expected]
    if "policy/clip_fraction" in result.metrics:
        assert result.metrics["policy/clip_fraction"][0].tolist() == cut


def test_the_dual_clip_bounds_the_loss_of_a_negative_advantage():
    assert Clip(dual=3.0)(row([11.0], [-2.0])).loss_BT.item() == pytest.approx(6.0)
    assert Clip()(row([11.0], [-2.0])).loss_BT.item() == pytest.approx(22.0)
    with pytest.raises(ValueError, match="must be above"):
        load_settings(Clip, {"high": 0.5, "dual": 1.2})


def test_cispo_keeps_a_gradient_at_every_token_of_nonzero_advantage():
    loss = Cispo(low=0.9, high=4.0)
    weights = [min(max(r, 0.1), 5.0) for r in RATIOS]
    assert slope(loss, row(RATIOS, SIGNS)) == pytest.approx(
        [-w * a for w, a in zip(weights, SIGNS, strict=True)]
    )
    assert slope(loss, row([3.0, 99.0], [0.0, 0.0])) == [0.0, 0.0]


@pytest.mark.parametrize(
    "loss",
    [Clip(), Clip(high=0.28), Clip(dual=3.0), Ratio(), Ratio(cap=10.0), Cispo(), Reinforce()],
)
def test_on_policy_every_ratio_loss_has_the_plain_gradient(loss):
    assert slope(loss, row([1.0, 1.0, 1.0], [0.7, -1.3, 0.0])) == pytest.approx([-0.7, 1.3, 0.0])


def test_on_policy_gspo_and_kl_cov_have_it_too():
    case = row([1.0, 1.0, 1.0], [0.7, 0.7, 0.7])
    assert slope(Gspo(), case) == pytest.approx([-0.7] * 3)
    objective = Objective(Ratio(), (KlCov(fraction=0.5),), TokenMean())
    ready = prepared(objective, case)
    loss, metrics = objective(ready, Counts.of(case.mask_BT))
    (gradient,) = torch.autograd.grad(loss, case.logprobs_BT)
    assert gradient[0].tolist() == pytest.approx([-0.7 / 3] * 3)
    assert metrics["policy/kl_cov"] == 0.0


def test_gspo_is_the_sequence_ratio_clipped():
    """The first form of the paper, by autograd through the mean of log-ratios."""
    torch.manual_seed(0)
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
    logprobs = (-torch.rand(3, 4).double() * mask).requires_grad_()
    old = -torch.rand(3, 4).double() * mask
    A = torch.tensor([[0.8], [0.5], [1.1]], dtype=torch.float64)
    loss = Gspo(low=0.05, high=0.1)
    terms = Terms(logprobs, old, A * mask, mask)
    ours, _ = Objective(loss, (), SequenceMean())(terms, Counts.of(mask))
    s = (((logprobs - old) * mask).sum(-1) / mask.sum(-1)).exp()
    direct = -torch.minimum(s * A[:, 0], s.clamp(0.95, 1.1) * A[:, 0]).mean()
    assert ours.item() == pytest.approx(direct.item())
    gradients = [torch.autograd.grad(value, logprobs)[0] for value in (ours, direct)]
    assert torch.allclose(*gradients, atol=1e-14)
    assert 0 < int((gradients[0] != 0).sum()) < int(mask.sum()), "some clipped, some not"


def test_padding_adds_nothing_whatever_it_holds():
    mask = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    for loss in (Clip(), Ratio(cap=10.0), Gspo(), Cispo()):
        values = []
        for junk in (0.0, 50.0):
            logprobs = torch.tensor([[-1.0, -2.0, junk]], dtype=torch.float64).requires_grad_()
            terms = Terms(logprobs, torch.full_like(mask, -1.5), 0.7 * mask, mask)
            total, _ = Objective(loss, (), TokenMean())(terms, Counts.of(mask))
            (gradient,) = torch.autograd.grad(total, logprobs)
            assert gradient[0, 2] == 0
            values.append((total.item(), gradient.tolist()))
        assert values[0] == values[1]


def test_a_sequence_of_advantage_zero_scales_a_token_mean_and_nothing_else():
    case = row([0.9, 1.1, 1.0], [0.7, 0.7, 0.7])
    alone, _ = Objective(Clip(), (), TokenMean())(case, Counts.of(case.mask_BT))
    both, _ = Objective(Clip(), (), TokenMean())(case, Counts(tokens=3 + 5, sequences=2))
    assert both.item() == pytest.approx(alone.item() * 3 / (3 + 5))
