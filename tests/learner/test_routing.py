"""Router losses and replay in the update of a mixture of experts."""

import copy
from dataclasses import replace

import pytest
import torch

from rlvr.learner.learner import Learner
from rlvr.learner.methods.router import RouterHook, RouterSettings
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.none import NoPolicyLoss
from rlvr.objective.reducers import TokenMean
from rlvr.objective.router_loss import balance_terms, expert_counts, load_shares, z_terms
from rlvr.policy.batching import padded_inputs
from rlvr.policy.routers import RoutingRequest
from tests.learner.batches import make_batch
from tests.learner.test_learner import gradients

REWARDS = [1.0, 0, 0, 1, 0, 0, 0, 1]
PLAIN = Objective(Clip(), (), TokenMean())


def learner_of(policy, router=None, objective=PLAIN, **settings):
    model = copy.deepcopy(policy)
    settings = LearnerSettings(**{"lr": 1e-2, "max_grad_norm": None, **settings})
    hooks = [] if router is None else [RouterHook(model, router)]
    return Learner(model, objective, settings, temperature=0.9, hooks=hooks)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("budget", [1, 30, 60, 10_000])
def test_the_gradient_does_not_depend_on_the_split(mixture, layout, budget):
    batch, router = make_batch(REWARDS), RouterSettings(balance=0.5, z=0.1)
    whole = gradients(learner_of(mixture, router, tokens_per_micro_batch=10_000), batch)
    split = gradients(
        learner_of(mixture, router, layout=layout, tokens_per_micro_batch=budget), batch
    )
    for name, value in split.items():
        assert torch.allclose(value, whole[name], atol=1e-7, rtol=1e-4), name
    plain = gradients(learner_of(mixture), batch)
    gate = next(name for name in plain if name.endswith("gate.weight"))
    assert not torch.allclose(plain[gate], whole[gate], atol=1e-4), "the losses do something"


def test_the_gradient_is_that_of_the_losses_over_all_completion_tokens(mixture):
    """With advantages of zero, against the formulas on one padded batch, all rows included."""
    batch = make_batch(REWARDS)
    batch = replace(batch, advantages_BT=torch.zeros_like(batch.advantages_BT))
    found = gradients(learner_of(mixture, RouterSettings(balance=0.5, z=0.1)), batch)
    model = copy.deepcopy(mixture)
    model.watch_routers()
    inputs = padded_inputs(batch.prompt_ids, batch.completion_ids, range(8))
    read = model(inputs, routing=RoutingRequest()).routing
    share = load_shares(expert_counts(read.experts_NMK, 6))
    loss = (
        0.5 * balance_terms(read.logits_NME, share).mean() + 0.1 * z_terms(read.logits_NME).mean()
    )
    loss.backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert any("gate" in name for name in expected)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-7, rtol=1e-4), name


def test_watching_alone_changes_no_weight(mixture):
    batch = make_batch(REWARDS)
    models = []
    for router in (None, RouterSettings(balance=0, z=0)):
        learner = learner_of(mixture, router)
        metrics = learner.update(batch)
        models.append(learner.policy)
    assert all(
        torch.equal(a, b)
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)
    )
    assert metrics["router/load_max"] >= 1 >= metrics["router/load_min"]
    assert "router/balance" not in metrics
    assert 0 < metrics["router/entropy"] < 1.8


def test_balancing_evens_out_the_load(mixture):
    batch = make_batch(REWARDS * 2, seed=4)
    learner = learner_of(
        mixture,
        RouterSettings(balance=1.0, z=0),
        Objective(NoPolicyLoss(), (), TokenMean()),
        lr=3e-3,
    )
    found = [learner.update(batch) for _ in range(30)]
    assert found[-1]["router/balance"] < found[0]["router/balance"]
    assert found[-1]["router/load_max"] < found[0]["router/load_max"]


def test_replaying_the_old_policys_choices_holds_them_through_the_rollouts_updates(mixture):
    batch = make_batch(REWARDS * 2, seed=2)
    changed, ratios = [], []
    for replay in (False, True):
        learner = learner_of(
            mixture,
            RouterSettings(balance=0, z=0, against="old", replay=replay),
            updates_per_rollout=4,
            lr=2e-2,
            old_logprobs_from="learner",
        )
        metrics = learner.update(batch)
        changed.append(metrics["router/changed"])
        ratios.append(metrics["policy/ratio_max"])
    assert min(changed) > 0, "the routers themselves have moved"
    assert ratios[0] != ratios[1]


def test_replay_before_the_first_move_is_the_plain_gradient(mixture):
    batch = make_batch(REWARDS)
    plain = gradients(learner_of(mixture, updates_per_rollout=2), batch)
    replay = RouterSettings(balance=0, z=0, against="old", replay=True)
    again = gradients(learner_of(mixture, replay, updates_per_rollout=2), batch)
    assert all(torch.allclose(plain[n], again[n], atol=1e-7) for n in plain)


def test_the_load_of_a_replayed_step_is_known_without_a_pass(mixture):
    batch, settings = make_batch(REWARDS), {"updates_per_rollout": 2}
    counted = gradients(learner_of(mixture, RouterSettings(balance=0.5, z=0), **settings), batch)
    replay = RouterSettings(balance=0.5, z=0, against="old", replay=True)
    learner = learner_of(mixture, replay, **settings)
    passes = []
    forward = learner.store.forward
    learner.store.forward = lambda *a, **k: passes.append(1) or forward(*a, **k)
    known = gradients(learner, batch)
    assert all(torch.allclose(counted[n], known[n], atol=1e-7) for n in counted)
    assert len(passes) == 2, "the old policy's, and that of the first step"


def test_the_engines_choices_are_replayed_in_the_old_policys_pass_too(mixture):
    """So that the ratio is 1 before the first move, however the engine chose."""
    batch = make_batch([1.0, 0, 0, 1])
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for prompt, completion in zip(batch.prompt_ids, batch.completion_ids, strict=True):
        first = torch.randint(6, (len(prompt) + len(completion) - 1, 2, 1), generator=generator)
        chosen.append(torch.cat([first, (first + 1) % 6], -1).to(torch.int16))
    batch = batch.with_columns(experts=tuple(chosen))
    settings = {"balance": 0, "z": 0, "against": "engine"}
    found = {}
    for replay in (False, True):
        learner = learner_of(
            mixture, RouterSettings(**settings, replay=replay), updates_per_rollout=2
        )
        found[replay] = learner.update(batch)
        assert found[replay]["policy/ratio_max"] == pytest.approx(1, abs=1e-6)
        assert found[replay]["router/changed"] > 0.5
    assert found[True]["learner/grad_norm"] != found[False]["learner/grad_norm"]


def test_the_load_of_replayed_steps_is_that_of_where_tokens_went(mixture):
    batch = make_batch(REWARDS)
    settings = RouterSettings(balance=0, z=0, against="old", replay=True)
    learner = learner_of(mixture, settings, updates_per_rollout=2, lr=5e-2)
    hook = learner.hooks[0]
    seen, usual = [], hook.end_step
    hook.end_step = lambda ranks: seen.append(hook.counts_ME) or usual(ranks)
    assert learner.update(batch)["router/changed"] > 0, "the routers would choose others"
    model = copy.deepcopy(mixture)
    model.watch_routers()
    inputs = padded_inputs(batch.prompt_ids, batch.completion_ids, range(8))
    old = model(inputs, routing=RoutingRequest()).routing
    assert torch.equal(sum(seen), expert_counts(old.experts_NMK, 6))
