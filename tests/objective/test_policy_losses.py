"""Where each policy loss has a gradient, and how large."""

import pytest
import torch

from rlvr.objective.filters.off_policy import OffPolicy
from rlvr.objective.loss_inputs import LossInputs
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.cispo import Cispo
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.gspo import Gspo
from rlvr.objective.policy_losses.none import NoPolicyLoss
from rlvr.objective.policy_losses.ratio import Ratio
from rlvr.objective.policy_losses.sapo import Sapo
from rlvr.objective.policy_losses.vespo import Vespo
from rlvr.objective.reducers import Counts, SequenceMean, TokenMean
from rlvr.settings import load_settings
from tests.objective.columns import row, slope

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


def test_sapo_fades_on_both_sides_of_one_and_faster_for_bad_tokens():
    good, bad = slope(Sapo(), row(RATIOS[:5], SIGNS[:5])), slope(Sapo(), row(RATIOS[5:], SIGNS[5:]))
    for ratio, up, down in zip(RATIOS, good, bad, strict=False):
        gate = torch.tensor(ratio - 1).double().sigmoid().item()
        assert up == pytest.approx(-ratio * 4 * gate * (1 - gate))
        assert (down == -up == 1.0) if ratio == 1 else 0 < down < -up
    assert -good[-1] < 0.01 * RATIOS[4], "at ratio 11 almost nothing is left"


@pytest.mark.parametrize(("sign", "k", "lam"), [(1.0, 2, 3), (-1.0, 3, 2)])
def test_vespo_weighs_a_completion_by_its_ratio_alone(sign, k, lam):
    def weight(*ratios):
        slopes = slope(Vespo(), row(ratios, [sign] * len(ratios)))
        assert slopes == pytest.approx([slopes[0]] * len(ratios))
        return -sign * slopes[0]

    assert weight(1.0, 1.0) == pytest.approx(1.0)
    assert weight(0.5, 1.4, 1.2) == pytest.approx(weight(0.84)), "no length in it"
    best, around = weight(k / lam), [weight(k / lam + off) for off in (-0.1, -0.01, 0.01, 0.1)]
    assert best > max(around)
    assert best == pytest.approx((k / lam) ** k * torch.tensor(float(lam - k)).exp().item())
    assert weight(1e-9) < 1e-12 > weight(1e9), "and no overflow"


def test_bad_completions_are_left_out_once_they_have_become_unlikely():
    def kept(ratio, advantage, **columns):
        return OffPolicy(limit=0.5).weights(row(ratio, advantage, **columns))[0].tolist()

    far, near = [0.5, 0.5, 0.9], [0.5, 0.7, 0.9]  # mean fall 0.50 and 0.38 nats
    assert kept([0.4, *far[1:]], [-1.0] * 3) == [0.0] * 3
    assert kept(near, [-1.0] * 3) == [1.0] * 3
    assert kept([0.4, *far[1:]], [1.0] * 3) == [1.0] * 3
    sampled = torch.full((1, 3), -2.0, dtype=torch.float64)
    assert kept(near, [-1.0] * 3, rollout_logprobs_BT=sampled + 0.2) == [0.0] * 3


def test_gspo_is_the_sequence_ratio_clipped():
    """The first form of the paper, by autograd through the mean of log-ratios."""
    torch.manual_seed(0)
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
    logprobs = (-torch.rand(3, 4).double() * mask).requires_grad_()
    old = -torch.rand(3, 4).double() * mask
    A = torch.tensor([[0.8], [0.5], [1.1]], dtype=torch.float64)
    loss = Gspo(low=0.05, high=0.1)
    terms = LossInputs(logprobs, old, A * mask, mask)
    ours, _ = Objective(loss, (), SequenceMean())(terms, Counts.of(mask))
    s = (((logprobs - old) * mask).sum(-1) / mask.sum(-1)).exp()
    direct = -torch.minimum(s * A[:, 0], s.clamp(0.95, 1.1) * A[:, 0]).mean()
    assert ours.item() == pytest.approx(direct.item())
    gradients = [torch.autograd.grad(value, logprobs)[0] for value in (ours, direct)]
    assert torch.allclose(*gradients, atol=1e-14)
    assert 0 < int((gradients[0] != 0).sum()) < int(mask.sum()), "some clipped, some not"


def test_a_sequence_of_advantage_zero_scales_a_token_mean_and_nothing_else():
    case = row([0.9, 1.1, 1.0], [0.7, 0.7, 0.7])
    alone, _ = Objective(Clip(), (), TokenMean())(case, Counts.of(case.mask_BT))
    both, _ = Objective(Clip(), (), TokenMean())(case, Counts(tokens=3 + 5, sequences=2))
    assert both.item() == pytest.approx(alone.item() * 3 / (3 + 5))
