"""Choosing tokens: percentiles, entropy ranking, covariance; the same however a step is split."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.objective.filters.clip_cov import ClipCov
from rlvr.objective.filters.top_entropy import TopEntropy
from rlvr.objective.loss_inputs import Step
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.ratio import Ratio
from rlvr.objective.reducers import TokenMean
from rlvr.objective.regularisers.adaptive_entropy import AdaptiveEntropy
from rlvr.objective.regularisers.entropy import Entropy
from rlvr.objective.regularisers.kl_cov import KlCov
from rlvr.objective.regularisers.lp_reg import LpReg
from rlvr.objective.selection import covariance, largest, low_threshold
from tests.objective.columns import assert_split_free, columns, gradients, prepared, step_of, whole


@given(
    values=st.lists(st.floats(-50, 0), min_size=1, max_size=60, unique=True),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_percentile_has_floor_of_the_share_below_it_in_any_order(values, fraction, seed):
    tokens = torch.tensor([values], dtype=torch.float64)
    padded = torch.cat([tokens, torch.full((1, 3), -99.0).double()], -1)
    mask = torch.cat([torch.ones_like(tokens), torch.zeros(1, 3).double()], -1)
    threshold = low_threshold(padded, mask, fraction)
    below = int((tokens < threshold).sum())
    assert below == math.floor(fraction * len(values) + 1e-9)
    shuffled = tokens[:, torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    assert low_threshold(shuffled, torch.ones_like(shuffled), fraction) == threshold


def test_the_share_below_grows_with_the_fraction():
    values = -torch.rand(1, 200)
    shares = [
        int((values < low_threshold(values, torch.ones_like(values), rho)).sum())
        for rho in (0, 0.005, 0.01, 0.1, 0.5, 1.0)
    ]
    assert shares == [0, 1, 2, 20, 100, 200]


def test_largest_counts_and_keeps_ties():
    values = torch.tensor([[3.0, 1.0, 2.0, 2.0, 9.0]])
    mask = torch.tensor([[1.0, 1, 1, 1, 0]])
    assert largest(values, mask, 1).tolist() == [[True, False, False, False, False]]
    assert largest(values, mask, 2).tolist() == [[True, False, True, True, False]]
    assert int(largest(values, mask, 99).sum()) == 4
    assert int(largest(values, mask, 0).sum()) == 0


def test_the_covariance_statistic_averages_to_the_covariance_and_flags_rare_bad_tokens():
    torch.manual_seed(0)
    logp, A = -torch.rand(3, 5).double() * 4, torch.randn(3, 5).double()
    mask = torch.ones(3, 5).double()
    mask[1, 2:] = 0
    c = covariance(logp, A, mask)
    inside = mask > 0
    stacked = torch.stack([logp[inside], A[inside]])
    assert (c.sum() / mask.sum()).item() == pytest.approx(
        torch.cov(stacked, correction=0)[0, 1].item()
    )
    assert bool((c[mask == 0] == 0).all())
    logp = torch.tensor([[-0.1, -0.1, -7.0, -7.0]])
    A = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    signs = covariance(logp, A, torch.ones(1, 4))[0].sign().tolist()
    assert signs == [1, -1, -1, 1], "likely and good, or rare and bad"


TOGETHER = Objective(
    Ratio(cap=10.0),
    (LpReg(rho=0.3), Entropy(coefficient=0.01), KlCov(fraction=0.1)),
    TokenMean(),
    filters=(TopEntropy(fraction=0.6), ClipCov(fraction=0.1, low=0, high=9)),
)


def test_parts_together_do_not_depend_on_the_split():
    assert_split_free(TOGETHER, columns())


@pytest.mark.parametrize("pool", ["step", "micro_batch"])
def test_only_the_tokens_of_highest_entropy_learn_and_they_alone_are_counted(pool):
    objective = Objective(Clip(), (), TokenMean(), filters=(TopEntropy(fraction=0.2, pool=pool),))
    case = columns(1)
    case = prepared(objective, case) if pool == "step" else case
    loss, metrics = whole(objective, case)
    (gradient,) = torch.autograd.grad(loss, case.logprobs_BT)
    tokens = int(case.mask_BT.sum())
    wanted = math.ceil(0.2 * tokens - 1e-9)
    chosen = largest(case.entropy_BT.detach(), case.mask_BT, wanted)
    assert int(chosen.sum()) == wanted
    assert bool((gradient[~chosen] == 0).all())
    per_token = Clip()(case).loss_BT
    assert loss.item() == pytest.approx(per_token[chosen].mean().item())
    assert metrics["filter/top_entropy"] == pytest.approx(wanted / tokens)


def test_clip_cov_leaves_out_tokens_within_its_band_alone_and_as_many_as_it_says():
    case = columns(2, rows=40)
    c = covariance(case.old_logprobs_BT, case.advantages_BT, case.mask_BT)
    inside = (c > 1) & (c < 5)
    assert 5 < int(inside.sum()) < int(case.mask_BT.sum()) / 2
    drawn = []
    for number in range(3):
        weights = ClipCov(fraction=0.03).prepare(step_of(case, number), {})
        out = weights == 0
        assert int(out.sum()) == math.floor(0.03 * int(case.mask_BT.sum()))
        assert bool((out <= inside).all())
        drawn.append(out)
    assert not torch.equal(drawn[0], drawn[1]), "another update, another draw"
    again = ClipCov(fraction=0.03).prepare(step_of(case, 0), {})
    assert torch.equal(again == 0, drawn[0]), "the same update, the same draw"
    everything = ClipCov(fraction=1.0).prepare(step_of(case), {}) == 0
    assert torch.equal(everything, inside)


def test_clip_cov_keeps_the_denominator():
    objective = Objective(
        Clip(low=1.0, high=1.0), (), TokenMean(), filters=(ClipCov(fraction=1.0),)
    )
    case = prepared(objective, columns(2))
    loss, _ = whole(objective, case)
    kept = case.prepared["clip_cov"] > 0
    plain = Clip(low=1.0, high=1.0)(case).loss_BT * case.mask_BT
    assert loss.item() == pytest.approx((plain[kept].sum() / case.mask_BT.sum()).item())


def test_kl_cov_pulls_the_chosen_tokens_towards_the_old_policy():
    objective = Objective(Ratio(), (KlCov(coefficient=0.5, fraction=0.2),), TokenMean())
    case = prepared(objective, columns(3))
    chosen = case.prepared["kl_cov"] > 0
    assert int(chosen.sum()) == math.floor(0.2 * int(case.mask_BT.sum()))
    plain, _ = whole(Objective(Ratio(), (), TokenMean()), case)
    loss, _ = whole(objective, case)
    (pull,) = torch.autograd.grad(loss - plain, case.logprobs_BT)
    side = (case.logprobs_BT - case.old_logprobs_BT).sign() * 0.5 / case.mask_BT.sum()
    assert torch.allclose(pull, torch.where(chosen, side, 0.0).double())


def test_on_policy_kl_cov_does_nothing():
    objective, case = Objective(Ratio(), (KlCov(fraction=0.5),), TokenMean()), columns(3)
    case = replace(case, old_logprobs_BT=case.logprobs_BT.detach())
    loss, metrics = whole(objective, prepared(objective, case))
    plain, _ = whole(replace(objective, regularisers=()), case)
    assert metrics["policy/kl_cov"] == 0.0
    assert torch.equal(*(gradients(value, case)[0] for value in (loss, plain)))


def test_the_entropy_weight_stays_within_its_bounds_and_is_off_above_the_target():
    objective = Objective(
        Clip(), (AdaptiveEntropy(target=0.5, step=0.04, limit=0.1, initial=0.02),), TokenMean()
    )
    mask = torch.ones(1, 2)
    weights, alphas = [], []
    for entropy in (0.4, 0.5, 0.1, 0.2, 0.9, 0.8, 0.8, 0.8, 0.3, 0.3):
        alphas.append(float(objective.prepare(Step(mask, mask, mask))["adaptive_entropy"][0, 0]))
        objective.finish({"policy/entropy": entropy})
        weights.append(objective.memory["adaptive_entropy"]["coefficient"])
    assert weights == pytest.approx([0.06, 0.1, 0.1, 0.1, 0.06, 0.02, 0.0, 0.0, 0.04, 0.08])
    assert alphas == pytest.approx([0.02, 0.06, 0.1, 0.1, 0.1, 0, 0, 0, 0, 0.04])


def test_the_controller_goes_on_from_its_saved_state():
    def fresh():
        return Objective(Clip(), (AdaptiveEntropy(target=0.5),), TokenMean())

    straight, first = fresh(), fresh()
    entropies = [0.1, 0.2, 0.7, 0.3, 0.6, 0.1]
    for entropy in entropies:
        straight.finish({"policy/entropy": entropy})
    for entropy in entropies[:3]:
        first.finish({"policy/entropy": entropy})
    second = fresh()
    second.load_state(first.state())
    for entropy in entropies[3:]:
        second.finish({"policy/entropy": entropy})
    assert second.state() == straight.state() != fresh().state()


def test_parts_that_are_off_are_left_out():
    assert TOGETHER.regularised
    off = Objective(Ratio(), (LpReg(beta=0.0), KlCov(coefficient=0.0)), TokenMean())
    assert off.parts == [off.policy_loss]
    assert not off.regularised
