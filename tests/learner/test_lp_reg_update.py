"""Lp-Reg through the learner: the same gradient however a step is run, no extra pass on-policy."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.filters.top_entropy import TopEntropy
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.ratio import Ratio
from rlvr.objective.proxy import Proxy
from rlvr.objective.reducers import TokenMean
from rlvr.objective.regularisers.adaptive_entropy import AdaptiveEntropy
from rlvr.objective.regularisers.lp_reg import LpReg
from tests.learner.batches import make_batch
from tests.learner.test_learner import REWARDS, gradients

PROXY = Proxy(kappa=0.45)  # an untrained model is nearly uniform: a filter that drops something


def lp_reg(kl, **settings):
    return Objective(
        Ratio(cap=10.0), (LpReg(kl=kl, rho=0.7, proxy=PROXY, **settings),), TokenMean()
    )


def learner_of(policy, objective, **settings):
    model = copy.deepcopy(policy)
    defaults = {"lr": 1e-2, "max_grad_norm": None, **settings}
    return Learner(model, objective, LearnerSettings(**defaults), temperature=0.9)


@pytest.fixture
def batch(exact_policy):
    """A batch whose engine log-probabilities are the policy's."""
    batch = make_batch(REWARDS)
    logprobs = learner_of(exact_policy, lp_reg("full")).logprobs(batch)
    return replace(batch, rollout_logprobs_BT=logprobs)


def changed(gradient, other):
    return any(not torch.allclose(gradient[name], other[name], atol=1e-9) for name in gradient)


@pytest.mark.parametrize("kl", ["full", "sampled"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_the_gradient_does_not_depend_on_the_split(exact_policy, batch, kl, layout, budget):
    whole = gradients(
        learner_of(exact_policy, lp_reg(kl), layout="padded", tokens_per_micro_batch=10_000), batch
    )
    plain = gradients(
        learner_of(exact_policy, replace(lp_reg(kl), regularisers=()), layout="padded"), batch
    )
    assert changed(whole, plain), "the term must act in this case"
    learner = learner_of(
        exact_policy, lp_reg(kl), layout=layout, tokens_per_micro_batch=budget, logits_chunk=3
    )
    order = [3, 1, 0, 2, 7, 4, 5, 6]
    for name, value in gradients(learner, batch.select(order)).items():
        assert torch.allclose(value, whole[name], atol=1e-12, rtol=1e-8), name


@pytest.mark.parametrize("kl", ["full", "sampled"])
def test_an_old_policy_that_has_not_moved_gives_the_on_policy_gradient(exact_policy, batch, kl):
    """The first of two updates, its proxy read in a pass before, against one update of its rows."""
    on = gradients(learner_of(exact_policy, lp_reg(kl)), batch.select(range(4)))
    for layout in ("padded", "packed"):
        learner = learner_of(exact_policy, lp_reg(kl), updates_per_rollout=2, layout=layout)
        for name, value in gradients(learner, batch).items():
            assert torch.allclose(value, on[name], atol=1e-11, rtol=1e-8), name


@pytest.mark.parametrize("kl", ["full", "sampled"])
def test_the_second_update_is_anchored_to_the_policy_before_the_first(exact_policy, batch, kl):
    learner = learner_of(exact_policy, lp_reg(kl), updates_per_rollout=2)
    with_columns = learner.with_statistics(batch)
    again = learner_of(exact_policy, lp_reg(kl))
    with torch.no_grad():
        for parameter in again.policy.parameters():
            parameter.mul_(1.3)
    old = gradients(again, with_columns)  # columns are there: they are taken
    on_policy = gradients(again, replace(with_columns, old_logprobs_BT=None, columns={}))
    assert changed(old, on_policy)
    metrics = learner.update(batch)
    assert metrics["policy/kl_old"] > 0
    assert 0 < metrics["lp_reg/low"] < 1


def test_on_policy_nothing_is_run_twice_and_rows_without_advantage_not_at_all(exact_policy):
    batch = make_batch([1.0, 0, 0, 1, 1, 1, 1, 1])
    batch = replace(
        batch, rollout_logprobs_BT=learner_of(exact_policy, lp_reg("full")).logprobs(batch)
    )
    for kl in ("full", "sampled"):
        learner = learner_of(exact_policy, lp_reg(kl))
        calls = count_calls(learner)
        metrics = learner.update(batch)
        assert calls == [4], "one pass, over the group with variance"
        assert metrics["learner/rows_run"] == 0.5
        assert metrics["lp_reg/threshold"] > 0


def count_calls(learner):
    calls, forward = [], learner.policy.forward

    def counted(inputs, **options):
        calls.append(len(inputs.rows))
        return forward(inputs, **options)

    learner.policy.forward = counted
    return calls


def test_the_metrics_are_those_of_plain_arithmetic(exact_policy, batch):
    learner = learner_of(exact_policy, lp_reg("full"))
    metrics = learner.update(batch)
    logp = batch.rollout_logprobs_BT[batch.mask_BT > 0]
    count = math.floor(0.7 * len(logp))
    threshold = float(logp.sort().values[count].exp())
    assert metrics["lp_reg/threshold"] == pytest.approx(threshold, rel=1e-6)
    assert metrics["lp_reg/low"] == pytest.approx(count / len(logp))
    assert 0 < metrics["lp_reg/passed"] < 1
    assert 0.3 < metrics["lp_reg/kept_mass"] < 1
    tenths = [metrics[f"lp_reg/kept_mass/tenth_{k}"] for k in range(10)]
    assert sum(tenths) == pytest.approx(1)
    middle = sum((k + 0.5) / 10 * share for k, share in enumerate(tenths))
    assert metrics["lp_reg/kept_mass"] == pytest.approx(middle, abs=0.05)
    assert 0 < metrics["lp_reg/regularised"] < metrics["lp_reg/low"]
    assert metrics["lp_reg/kl"] > 0


def test_entropies_of_the_whole_step_are_ranked_whatever_the_split(exact_policy, batch):
    objective = Objective(Clip(), (), TokenMean(), filters=(TopEntropy(),))
    results = [
        gradients(learner_of(exact_policy, objective, tokens_per_micro_batch=budget), batch)
        for budget in (1, 10_000)
    ]
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-12, rtol=1e-8), name
    split = Objective(Clip(), (), TokenMean(), filters=(TopEntropy(pool="micro_batch"),))
    local = gradients(learner_of(exact_policy, split, tokens_per_micro_batch=1), batch)
    assert changed(local, results[0])
    calls = count_calls(learner := learner_of(exact_policy, split))
    learner.update(batch)
    assert calls == [8], "the released pool spares the pass"


def test_the_entropy_controller_moves_once_an_update(exact_policy, batch):
    term = AdaptiveEntropy(target=100.0, step=0.01)
    learner = learner_of(
        exact_policy, Objective(Clip(), (term,), TokenMean()), tokens_per_micro_batch=1
    )
    weights = [learner.update(batch)["policy/entropy_coefficient"] for _ in range(3)]
    assert weights == pytest.approx([0.0, 0.01, 0.02])
    assert learner.objective.state()["adaptive_entropy"]["coefficient"] == pytest.approx(0.03)


@pytest.mark.parametrize("updates", [1, 2])
def test_what_is_ranked_over_a_stale_step_are_the_samplers_probabilities(
    exact_policy, batch, updates
):
    """Threshold and covariance: of the policy that sampled, which is not that of the updates."""
    sampled_BT = (batch.rollout_logprobs_BT - torch.rand(batch.mask_BT.shape)) * batch.mask_BT
    seen = []

    class Seen(LpReg):
        def prepare(self, step, memory):
            seen.append(step.logprobs_BT)
            return super().prepare(step, memory)

    term = Seen(kl="sampled", rho=0.7, proxy=PROXY)
    objective = Objective(Ratio(cap=10.0), (term,), TokenMean())
    for stale in (True, False):
        learner = learner_of(exact_policy, objective, updates_per_rollout=updates)
        learner.stale = stale
        learner.update(replace(batch, rollout_logprobs_BT=sampled_BT))
        found = torch.cat(seen)
        own_BT = sampled_BT if stale or updates == 1 else batch.rollout_logprobs_BT
        assert torch.allclose(found, own_BT, atol=1e-9)
        seen.clear()
