"""Lp-Reg: gates, gradients, equilibria; the two forms beside each other."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from rlvr.objective.loss_inputs import LossInputs
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.ratio import Ratio
from rlvr.objective.proxy import Proxy
from rlvr.objective.reducers import Counts, TokenMean
from rlvr.objective.regularisers.lp_reg import LpReg
from rlvr.settings import load_settings
from tests.objective.columns import prepared, whole

SURROGATE = Ratio(cap=10.0)


def tokens(logprobs, advantages, kept, mass=0.9, mask=None, old=None):
    logprobs = torch.tensor([logprobs], dtype=torch.float64)
    old = logprobs if old is None else torch.tensor([old], dtype=torch.float64)
    return LossInputs(
        logprobs_BT=logprobs.clone().requires_grad_(),
        old_logprobs_BT=old,
        advantages_BT=torch.tensor([advantages], dtype=torch.float64),
        mask_BT=torch.ones_like(logprobs)
        if mask is None
        else torch.tensor([mask], dtype=torch.float64),
        columns={
            "proxy_logprobs": old - math.log(mass),
            "log_kept_mass": torch.full_like(logprobs, math.log(mass)),
            "kept": torch.tensor([kept], dtype=torch.float64),
            "proxy_kl": torch.full_like(logprobs, 0.25).requires_grad_(),
        },
    )


def pull(term, terms):
    """What the term adds to the gradient, per token, and its metrics."""
    objective = Objective(SURROGATE, (term,), TokenMean())
    terms = prepared(objective, terms)
    result = term(terms)
    leaves = (terms.logprobs_BT, terms.columns["proxy_kl"])
    gradients = torch.autograd.grad(result.loss_BT.sum(), leaves, allow_unused=True)
    return [g if g is not None else torch.zeros(1) for g in gradients], result


@pytest.mark.parametrize("kl", ["full", "sampled"])
def test_the_gates_truth_table(kl):
    """Low or not, kept or noise, advantage below, at or above zero, token or padding."""
    cases = list(itertools.product([True, False], [1, 0], [-1.0, 0.0, 1.0], [1, 0]))
    low, kept, advantages, mask = zip(*cases, strict=True)
    rising = itertools.count()  # distinct values, the low half well below the rest
    logprobs = [(-5.0 if is_low else -0.5) - 1e-3 * next(rising) for is_low in low]
    term = LpReg(rho=0.5, kl=kl)
    case = tokens(logprobs, advantages, kept, mask=mask)
    (by_logprob, by_kl), result = pull(term, case)
    expected = [
        is_low and bool(k) and a < 0 and bool(m)
        for is_low, k, a, m in zip(low, kept, advantages, mask, strict=True)
    ]
    assert sum(expected) == 1
    reached = by_kl if kl == "full" else by_logprob
    assert (reached[0] != 0).tolist() == expected
    assert (result.loss_BT[0] != 0).tolist() == expected
    assert result.metrics["lp_reg/regularised"][0].tolist() == expected


@pytest.mark.parametrize("kl", ["full", "sampled"])
def test_tokens_of_nonnegative_advantage_and_beta_zero_are_as_without(kl):
    torch.manual_seed(0)
    advantages = torch.randn(50).double()
    case = tokens((-5 * torch.rand(50)).tolist(), advantages.tolist(), [1.0] * 50)
    gradients = {}
    for name, terms in {"without": (), "with": (LpReg(rho=0.4, kl=kl),)}.items():
        objective = Objective(SURROGATE, terms, TokenMean())
        loss, _ = whole(objective, prepared(objective, case))
        leaves = (case.logprobs_BT, case.columns["proxy_kl"])
        gradients[name] = torch.autograd.grad(loss, leaves, allow_unused=True)
    differs = gradients["with"][0] != gradients["without"][0]
    if kl == "full":
        differs = gradients["with"][1] != 0
    assert int(differs.sum()) > 3
    assert not bool(differs[0, advantages >= 0].any())
    assert not LpReg(beta=0.0, kl=kl).active


def test_the_sampled_form_has_its_closed_gradient_and_value():
    old, new = [-4.0, -4.0, -4.0, -1.0], [-4.0, -4.5, -3.7, -1.0]
    case = tokens(new, [-1.0] * 4, [1.0] * 4, mass=0.8, old=old)
    (by_logprob, _), result = pull(LpReg(rho=0.75, beta=2.0, kl="sampled"), case)
    for index in range(3):
        ratio = math.exp(old[index]) / 0.8 / math.exp(new[index])  # proxy over policy
        assert by_logprob[0, index].item() == pytest.approx(2 * (1 - ratio))
        value = ratio - 1 - math.log(ratio)
        assert result.loss_BT[0, index].item() == pytest.approx(2 * value)
    assert by_logprob[0, 3].item() == 0
    on_policy = result.loss_BT[0, 0].item() / 2
    assert on_policy == pytest.approx(1 / 0.8 - 1 - math.log(1 / 0.8))


def test_the_released_noise_gate_lets_go_above_the_proxy():
    rise = math.log(1 / 0.8)
    old, new = [-4.0, -4.0, -4.0, -0.1], [-4.0, -4.0 + 0.9 * rise, -4.0 + 1.1 * rise, -0.1]
    case = tokens(new, [-1.0] * 4, [1.0] * 4, mass=0.8, old=old)
    for gate, expected in (("kept", [1, 1, 1, 0]), ("below_proxy", [1, 1, 0, 0])):
        term = LpReg(kl="sampled", noise_gate=gate, rho=0.75)
        case_low = replace(case, old_logprobs_BT=case.old_logprobs_BT)
        objective = Objective(SURROGATE, (term,), TokenMean())
        ready = replace(case_low, prepared={"lp_reg": torch.full((1, 4), -3.0).double()})
        assert objective.terms[1](ready).metrics["lp_reg/regularised"][0].tolist() == expected


def test_the_released_pool_is_the_negative_tokens_of_the_micro_batch():
    count = 400
    logprobs = [-0.01 * (index + 1) for index in range(count)]
    advantages = [-1.0 if index % 2 else 1.0 for index in range(count)]
    term = LpReg(kl="sampled", pool="micro_batch", rho=0.01)
    case = tokens(logprobs, advantages, [1.0] * count)
    low = term(case).metrics["lp_reg/low"][0]
    assert low.nonzero()[:, 0].tolist() == [397, 399], "the two smallest of 200 negative ones"
    few = tokens(logprobs[:390], advantages[:390], [1.0] * 390)
    assert term(few).metrics["lp_reg/low"].sum() == 0, "195 x 1 % < 2: the term is dropped"
    step = LpReg(kl="sampled", rho=0.01)
    ready = prepared(Objective(SURROGATE, (step,), TokenMean()), case)
    assert step(ready).metrics["lp_reg/low"][0].nonzero()[:, 0].tolist() == [396, 397, 398, 399]


@pytest.mark.parametrize("clamp", [10.0, None])
def test_the_clamp_cuts_the_gradient_at_its_edge(clamp):
    """x - ln x - 1 = 10 at x = 13.611."""
    edge = 13.611
    for factor, alive in ((0.999, True), (1.001, clamp is None)):
        case = tokens(
            [-3.0 - math.log(edge * factor), 0.0], [-1.0, 0.0], [1.0, 1.0], 1.0, old=[-3.0, 0.0]
        )
        (by_logprob, _), _ = pull(LpReg(rho=0.5, kl="sampled", clamp=clamp), case)
        assert bool(by_logprob[0, 0] != 0) == alive


def test_noise_is_pushed_down_exactly_as_without():
    """A dropped token whose proxy log-probability is minus infinity leaves no trace, no NaN."""
    case = tokens([-6.0, -0.1], [-1.0, -1.0], [0.0, 1.0])
    nothing = torch.full((1, 2), -math.inf).double()
    columns = {"log_kept_mass": nothing, "proxy_logprobs": -nothing}
    case = replace(case, columns={**case.columns, **columns})
    for kl in ("full", "sampled"):
        objective = Objective(SURROGATE, (LpReg(rho=0.5, kl=kl),), TokenMean())
        loss, metrics = whole(objective, prepared(objective, case))
        (gradient,) = torch.autograd.grad(loss, case.logprobs_BT, retain_graph=True)
        assert gradient[0].tolist() == pytest.approx([0.5, 0.5])
        finished = objective.finish(metrics)
        assert finished["lp_reg/passed"] == 0.0
        assert finished["lp_reg/low"] == 0.5


def test_metrics_are_over_the_tokens_they_are_about():
    case = tokens([-5.0, -4.0, -3.0, -0.1], [-1.0, -1.0, 1.0, -1.0], [1, 0, 1, 1], mass=0.7)
    term = LpReg(rho=0.75, kl="full")
    objective = Objective(SURROGATE, (term,), TokenMean())
    _, metrics = whole(objective, prepared(objective, case))
    finished = objective.finish(metrics)
    assert finished["lp_reg/threshold"] == pytest.approx(math.exp(-0.1))
    assert finished["lp_reg/low"] == 0.75
    assert finished["lp_reg/passed"] == pytest.approx(2 / 3)
    assert finished["lp_reg/kept_mass"] == pytest.approx(0.7)
    tenths = [finished[f"lp_reg/kept_mass/tenth_{k}"] for k in range(10)]
    assert tenths == pytest.approx([0] * 7 + [1] + [0] * 2)
    assert finished["lp_reg/regularised"] == 0.25
    assert finished["lp_reg/kl"] == pytest.approx(0.25)


def settle(advantage, mass, old, slope, steps, rate):
    """Where log pi of one token comes to rest under policy loss and term, r = pi / pi_old."""
    log_x = torch.zeros((), dtype=torch.float64)
    for _ in range(steps):
        change = slope(log_x, advantage, mass, old)
        log_x = log_x - rate * change
        if abs(float(change)) < 1e-10:
            break
    return float(log_x.exp())


def sampled_slope(log_x, advantage, mass, old):
    """The gradient by log pi of a token, from the loss itself."""
    logprobs = (math.log(old) + log_x).reshape(1, 1).requires_grad_()
    anchor = torch.full((1, 1), math.log(old), dtype=torch.float64)
    terms = LossInputs(
        logprobs,
        anchor,
        torch.full((1, 1), advantage, dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
        columns={
            "log_kept_mass": torch.full((1, 1), math.log(mass), dtype=torch.float64),
            "proxy_logprobs": anchor - math.log(mass),
            "kept": torch.ones(1, 1),
        },
        prepared={"lp_reg": torch.zeros(1, 1)},
    )
    loss, _ = Objective(SURROGATE, (LpReg(kl="sampled"),), TokenMean())(
        terms, Counts.of(terms.mask_BT)
    )
    return torch.autograd.grad(loss, logprobs)[0][0, 0]


@pytest.mark.parametrize(
    ("advantage", "mass", "expected"),
    [(-1.0, 1.0, 0.618), (-0.354, 0.885, 0.8650), (-1.0, 0.885, 0.6747), (-2.475, 0.885, 0.5032)],
)
def test_a_lone_bad_token_comes_to_rest_where_the_quadratic_says(advantage, mass, expected):
    A = abs(advantage)
    root = (-1 + math.sqrt(1 + 4 * A / mass)) / (2 * A)
    assert root == pytest.approx(expected, abs=1e-4 if expected != 0.618 else 1e-3)
    found = settle(advantage, mass, 0.02, sampled_slope, steps=1500, rate=2e-2)
    assert found == pytest.approx(root, abs=1e-4)


def test_the_policy_loss_alone_extinguishes_and_grpo_stops_at_its_clip():
    def alone(loss):
        def slope(log_x, advantage, mass, old):
            terms = LossInputs(
                log_x.reshape(1, 1).requires_grad_(),
                torch.zeros(1, 1, dtype=torch.float64),
                torch.full((1, 1), advantage, dtype=torch.float64),
                torch.ones(1, 1, dtype=torch.float64),
            )
            total, _ = Objective(loss, (), TokenMean())(terms, Counts.of(terms.mask_BT))
            return torch.autograd.grad(total, terms.logprobs_BT)[0][0, 0]

        return slope

    assert settle(-1.0, 1.0, 0.02, alone(Clip()), 1500, 2e-2) == pytest.approx(0.8, abs=2e-2)
    assert settle(-1.0, 1.0, 0.02, alone(SURROGATE), 1500, 2e-2) < 0.05


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="kappa"):
        load_settings(LpReg, {"proxy": {"kappa": 1.0}})
    with pytest.raises(ValueError, match="rho"):
        load_settings(LpReg, {"rho": 1.5})
    assert load_settings(LpReg, {}).proxy == Proxy(threshold="min_p", kappa=0.02)
