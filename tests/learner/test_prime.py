"""PRIME in the update: when the reward model learns, what it scores, what moves."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from rlvr.learner.learner import Learner
from rlvr.learner.methods.critic import CriticHook, CriticSettings
from rlvr.learner.methods.prime import PrimeHook, PrimeSettings
from rlvr.learner.models import LogprobModel
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.advantages.gae import Gae
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.advantages.rloo import LeaveOneOut
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.policy.value_head import Critic
from rlvr.reward_models.implicit import token_rewards
from tests.learner.batches import make_batch

REWARDS = [1.0, 0, 0, 1, 0, 0, 1, 1]


def batch_of(seed=0, dtype=torch.float64):
    batch = make_batch(REWARDS, seed=seed, dtype=dtype)
    advantages = LeaveOneOut()(batch.rewards_B, batch.group_index_B)
    batch = replace(batch, advantages_BT=advantages[:, None] * batch.mask_BT)
    return batch.with_columns(labels=batch.rewards_B)


def learner_of(policy, prime=None, *, scale=0.0, advantage=None, critic=False, **settings):
    """A learner whose reward model is off its reference by noise of this scale."""
    torch.manual_seed(0)
    model = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)
    options = PrimeSettings(**{"lr": 1e-3, "max_grad_norm": None, **(prime or {})})
    hooks = [
        PrimeHook(LogprobModel(model), copy.deepcopy(policy), options, advantage or LeaveOneOut())
    ]
    if critic:
        value_model = Critic(copy.deepcopy(policy))
        hooks.insert(0, CriticHook(value_model, CriticSettings(lr=1e-3), advantage))
    return Learner(
        copy.deepcopy(policy),
        Objective(Clip(), (), TokenMean()),
        LearnerSettings(**{"lr": 1e-3, "max_grad_norm": None, **settings}),
        hooks=hooks,
    )


def prime_of(learner):
    return learner.hooks[-1]


def state_of(learner):
    modules = {"policy": learner.policy, "prm": prime_of(learner).reward_model}
    return {
        kind: {n: p.detach().clone() for n, p in module.named_parameters()}
        for kind, module in modules.items()
    }


def moved(before, after):
    return {
        kind
        for kind in before
        if any(not torch.equal(before[kind][n], p) for n, p in after[kind].items())
    }


def scores(learner, batch):
    """Token rewards under the reward model's present weights."""
    model = prime_of(learner).reward_model.policy
    return token_rewards(
        learner.logprobs(batch, model, temperature=1.0),
        learner.logprobs(batch, prime_of(learner).reference, temperature=1.0),
        batch.mask_BT,
        prime_of(learner).settings.beta,
    )


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_after_scores_with_the_weights_before_the_update(exact_policy, layout):
    learner, batch = learner_of(exact_policy, scale=0.05, layout=layout), batch_of()
    expected, before = scores(learner, batch), state_of(learner)
    metrics = learner.update(batch)
    assert torch.allclose(prime_of(learner).rewards_BT, expected, atol=1e-10)
    assert moved(before, state_of(learner)) == {"policy", "prm"}
    assert metrics["prm/grad_norm"] > 0


def test_before_scores_with_the_weights_after_the_update(exact_policy):
    learner, batch = learner_of(exact_policy, {"update": "before"}, scale=0.05), batch_of()
    old = scores(learner, batch)
    metrics = learner.update(batch)
    signs = [(q > 0) == bool(r) for q, r in zip(old.sum(-1).tolist(), REWARDS, strict=True)]
    assert metrics["prm/accuracy_before"] == pytest.approx(sum(signs) / 8)
    new = prime_of(learner).rewards_BT.sum(-1).tolist()
    signs = [(q > 0) == bool(r) for q, r in zip(new, REWARDS, strict=True)]
    assert metrics["prm/accuracy"] == pytest.approx(sum(signs) / 8)
    assert torch.allclose(prime_of(learner).rewards_BT, scores(learner, batch), atol=1e-10)
    assert not torch.allclose(prime_of(learner).rewards_BT, old, atol=1e-6)


def test_reverse_scores_as_after_and_prefers_right_to_wrong(exact_policy):
    learner, batch = learner_of(exact_policy, {"update": "reverse"}, scale=0.05), batch_of()
    expected, before = scores(learner, batch), state_of(learner)
    metrics = learner.update(batch)
    assert torch.allclose(prime_of(learner).rewards_BT, expected, atol=1e-10)
    assert moved(before, state_of(learner)) == {"policy", "prm"}
    # Spelled out: each score against the mean of the other kind in its group.
    q, losses = expected.sum(-1).tolist(), []
    for i, reward in enumerate(REWARDS):
        others = [q[j] for j in range(8) if j // 4 == i // 4 and REWARDS[j] != reward]
        margin = (1 if reward else -1) * (q[i] - sum(others) / len(others))
        losses.append(math.log1p(math.exp(-margin)))
    assert metrics["prm/loss"] == pytest.approx(sum(losses) / 8, rel=1e-7)
    found = [learner.update(batch) for _ in range(15)]
    assert found[-1]["prm/pair_accuracy"] > found[0]["prm/pair_accuracy"]


def test_reverse_at_the_first_step_is_plain_leave_one_out_and_weights_count(exact_policy):
    learner = learner_of(exact_policy, {"update": "reverse", "best_of_n_weights": True})
    metrics = learner.update(batch_of())
    assert not prime_of(learner).rewards_BT.any()
    assert metrics["prm/loss"] == pytest.approx(4 * math.log(2)), "all scores tie: K each"


@pytest.mark.parametrize("update", ["after", "before"])
def test_the_share_of_weights_moved_is_each_models_own(exact_policy, update):
    """The policy's rate is lost in rounding, the reward model's is not."""
    learner = learner_of(exact_policy, {"update": update}, scale=0.05, lr=1e-30)
    metrics = learner.update(batch_of())
    assert metrics["learner/changed"] < 0.01  # weights of exactly 0 move
    assert metrics["prm/changed"] > 0.5
    quiet = learner_of(exact_policy, {"update": update, "lr": 1e-30}, scale=0.05)
    metrics = quiet.update(batch_of())
    assert metrics["learner/changed"] > 0.5
    assert metrics["prm/changed"] < 0.01


def test_none_leaves_the_reward_model_as_it_is(exact_policy):
    learner, batch = learner_of(exact_policy, {"update": "none"}, scale=0.05), batch_of()
    expected, before = scores(learner, batch), state_of(learner)
    metrics = learner.update(batch)
    assert torch.allclose(prime_of(learner).rewards_BT, expected, atol=1e-10)
    assert moved(before, state_of(learner)) == {"policy"}
    assert "prm/loss" not in metrics
    assert metrics["prm/drift"] > 0


def test_at_the_first_step_after_gives_no_rewards_and_plain_leave_one_out(exact_policy):
    """And before does give some."""
    batch = batch_of()
    plain = Learner(
        copy.deepcopy(exact_policy),
        Objective(Clip(), (), TokenMean()),
        LearnerSettings(lr=1e-3, max_grad_norm=None),
    )
    plain.update(batch)
    learner = learner_of(exact_policy)
    metrics = learner.update(batch)
    assert not prime_of(learner).rewards_BT.any()
    assert metrics["prm/loss"] == pytest.approx(math.log(2))
    assert metrics["prm/brier"] == 0.25
    for name, parameter in plain.policy.named_parameters():
        assert torch.allclose(parameter, learner.policy.get_parameter(name), atol=1e-12), name
    eager = learner_of(exact_policy, {"update": "before"})
    eager.update(batch)
    assert prime_of(eager).rewards_BT.any()


def test_before_the_reward_model_takes_its_step_the_policy_and_its_moments_stay(exact_policy):
    """The second update: AdamW has momentum that must not leak into the other's step."""
    batch = batch_of()
    learner = learner_of(exact_policy, {"update": "before"}, scale=0.05)
    learner.update(batch)
    before = state_of(learner)
    steps = {n: float(s["step"]) for n, s in moments(learner).items()}
    assert set(steps.values()) == {1.0}
    learner.auxiliary_step("prm", _with_reference(learner, batch))
    assert moved(before, state_of(learner)) == {"prm"}
    counted = {n: float(s["step"]) for n, s in moments(learner).items()}
    assert {n.startswith("prm:"): c for n, c in counted.items()} == {True: 2.0, False: 1.0}


def _with_reference(learner, batch):
    reference = prime_of(learner)._reference_logprobs(batch, learner.passes)
    return batch.with_columns(prm_reference=reference)


def moments(learner):
    return {n: learner.store.optimizer.state[p] for n, p in learner.store.named.items()}


@pytest.mark.parametrize("update", ["after", "before", "reverse"])
def test_both_models_move_by_the_same_step_however_it_is_split(exact_policy, update):
    batch, results = batch_of(), []
    for budget, layout in ((10_000, "padded"), (20, "padded"), (60, "packed")):
        learner = learner_of(
            exact_policy, {"update": update}, scale=0.05, layout=layout,
            tokens_per_micro_batch=budget,
        )  # fmt: skip
        metrics = learner.update(batch)
        results.append((state_of(learner), metrics))
    for state, metrics in results[1:]:
        for kind, weights in state.items():
            for name, value in weights.items():
                assert torch.allclose(value, results[0][0][kind][name], atol=1e-9), name
        for name in ("prm/loss", "prm/grad_norm", "policy/loss", "prm/reward_mean"):
            assert metrics[name] == pytest.approx(results[0][1][name], rel=1e-7), name


def test_the_reward_model_learns_the_outcomes_of_a_batch(exact_policy):
    learner, batch = learner_of(exact_policy, {"lr": 1e-2}, lr=1e-9), batch_of()
    found = [learner.update(batch) for _ in range(15)]
    assert found[0]["prm/accuracy"] == 0.5
    assert found[-1]["prm/loss"] < 0.5 < found[0]["prm/loss"]
    assert found[-1]["prm/accuracy"] == found[-1]["prm/pair_accuracy"] == 1.0
    assert found[-1]["prm/reward_right"] > 0 > found[-1]["prm/reward_wrong"]
    assert found[-1]["prm/drift"] > found[3]["prm/drift"] > 0


@pytest.mark.parametrize(
    ("advantage", "baseline"),
    [(LeaveOneOut(), "leave_one_out"), (GroupAdvantage(), "group"), (Gae(), "none")],
)
def test_the_baseline_follows_the_advantage(exact_policy, advantage, baseline):
    learner = learner_of(exact_policy, advantage=advantage, critic=isinstance(advantage, Gae))
    assert prime_of(learner).baseline == baseline


def test_advantages_are_outcomes_plus_what_tokens_earn_from_there_on(exact_policy):
    """Spelled out token by token, from the scores and the verdicts."""
    learner, batch = learner_of(exact_policy, scale=0.05), batch_of()
    p, found = scores(learner, batch), learner.annotate(batch)[0].advantages_BT
    lengths = batch.mask_BT.sum(-1).long().tolist()
    means = [float(p[i, :n].mean()) for i, n in enumerate(lengths)]
    for i, n in enumerate(lengths):
        others = [j for j in range(8) if j // 4 == i // 4 and j != i]
        baseline = sum(means[j] for j in others) / 3
        outcome = REWARDS[i] - sum(REWARDS[j] for j in others) / 3
        for t in range(n):
            process = sum(float(p[i, s]) - baseline for s in range(t, n))
            assert float(found[i, t]) == pytest.approx(outcome + process, abs=1e-9)


def test_a_critic_is_given_the_token_rewards(exact_policy):
    estimator = Gae(whiten=False)
    learner = learner_of(exact_policy, scale=0.05, advantage=estimator, critic=True)
    batch = batch_of()
    rewards = scores(learner, batch)
    found, _ = learner.annotate(batch)
    found = learner.with_statistics(found)
    outcome = torch.zeros_like(rewards)
    lengths = batch.mask_BT.sum(-1).long()
    outcome[torch.arange(len(batch)), lengths - 1] = batch.rewards_B
    returns = (rewards + outcome).flip(-1).cumsum(-1).flip(-1) * batch.mask_BT
    assert torch.allclose(found.advantages_BT, returns, atol=1e-9)  # fresh values are 0
    metrics = learner.update(batch_of())
    assert metrics["critic/grad_norm"] > 0
    assert metrics["prm/grad_norm"] > 0


def test_truncated_completions_teach_the_reward_model_nothing(exact_policy):
    batch = batch_of()
    batch.mask_BT[0] = 0
    learner = learner_of(exact_policy, scale=0.05)
    reference = _with_reference(learner, batch)
    with_it = learner.auxiliary_step("prm", reference)["prm/loss"]
    rest = list(range(1, len(batch)))
    other = learner_of(exact_policy, scale=0.05)
    without = other.auxiliary_step("prm", reference.select(rest))["prm/loss"]
    assert with_it == pytest.approx(without, rel=1e-9)


@pytest.mark.parametrize("update", ["after", "before"])
def test_adapters_are_their_own_reference(tiny_folder, update):
    torch.manual_seed(0)  # fresh adapters
    settings = ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2))
    hook = PrimeHook(
        LogprobModel(load_policy(settings)),
        None,
        PrimeSettings(lr=1e-2, update=update),
        LeaveOneOut(),
    )
    learner = Learner(
        load_policy(settings),
        Objective(Clip(), (), TokenMean()),
        LearnerSettings(lr=1e-9),
        hooks=[hook],
    )
    batch = batch_of(dtype=torch.float32)
    learner.update(batch)
    assert bool(prime_of(learner).rewards_BT.any()) == (update == "before")
    losses = [learner.update(batch)["prm/loss"] for _ in range(10)]
    assert losses[-1] < losses[0]
