"""PPO's critic in the update: advantages from its values, its own loss, rate and warm-up."""

import copy
from dataclasses import replace

import pytest
import torch

from rlvr.learner.learner import Learner
from rlvr.learner.methods.critic import CriticHook, CriticSettings
from rlvr.learner.settings import LearnerSettings, Schedule
from rlvr.objective.advantages.gae import Gae, token_rewards
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.objective.regularisers.adaptive_entropy import AdaptiveEntropy
from rlvr.policy.value_head import Critic
from tests.learner.batches import make_batch

REWARDS = [1.0, 0, 0, 1, 0, 0, 0, 1]


def learner_of(policy, estimator=None, critic=None, **settings):
    torch.manual_seed(0)
    model = Critic(copy.deepcopy(policy))
    torch.nn.init.normal_(model.head.weight, std=0.1)
    hook = CriticHook(model, critic or CriticSettings(lr=1e-3), estimator or Gae(whiten=False))
    return Learner(
        copy.deepcopy(policy),
        Objective(Clip(), (), TokenMean()),
        LearnerSettings(**{"lr": 1e-3, "max_grad_norm": None, **settings}),
        reference=copy.deepcopy(policy),
        hooks=[hook],
    )


def values_of(learner, batch):
    """Values [B, T], one row at a time."""
    values = torch.zeros_like(batch.mask_BT)
    critic = learner.hooks[0].model
    for row, (prompt, completion) in enumerate(
        zip(batch.prompt_ids, batch.completion_ids, strict=True)
    ):
        hidden = critic.backbone(input_ids=torch.tensor([[*prompt, *completion]]))
        read = critic.head(hidden.last_hidden_state[0, len(prompt) - 1 : -1])[:, 0]
        values[row, : len(completion)] = read.detach()
    return values


def test_advantages_and_returns_come_from_the_values(exact_policy):
    batch = make_batch(REWARDS)
    learner = learner_of(exact_policy, Gae(gamma=0.9, lam=0.8, whiten=False))
    found = learner.with_statistics(batch)
    values = values_of(learner, batch)
    assert torch.allclose(found.columns["old_values"], values, atol=1e-10)
    rewards = token_rewards(batch.rewards_B, batch.mask_BT)
    expected = Gae(gamma=0.9, lam=0.8, whiten=False).estimate(rewards, values, batch.mask_BT)
    assert torch.allclose(found.advantages_BT, expected[0], atol=1e-10)
    assert torch.allclose(found.columns["returns"], expected[1], atol=1e-10)


def test_the_price_of_leaving_the_reference_is_taken_off_each_token(exact_policy):
    batch = make_batch(REWARDS)
    learner = learner_of(exact_policy, Gae(whiten=False, kl_in_reward=0.1))
    found = learner.with_statistics(batch)  # the engine's log-probabilities are all 0 here
    rewards = token_rewards(batch.rewards_B, batch.mask_BT)
    rewards = rewards + 0.1 * found.reference_logprobs_BT
    values = values_of(learner, batch)
    expected, _ = Gae(whiten=False).estimate(rewards, values, batch.mask_BT)
    assert torch.allclose(found.advantages_BT, expected, atol=1e-10)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_both_models_move_by_the_same_step_however_it_is_split(exact_policy, layout):
    batch, results = make_batch(REWARDS), []
    for budget in (10_000, 20):
        learner = learner_of(exact_policy, layout=layout, tokens_per_micro_batch=budget)
        before = {n: p.detach().clone() for n, p in learner.store.named.items()}
        metrics = learner.update(batch)
        assert metrics["critic/grad_norm"] > 0
        assert metrics["critic/explained_variance"] < 1
        moved = {n: p.detach() - before[n] for n, p in learner.store.named.items()}
        results.append((moved, metrics))
    for kind in ("critic:", "model."):
        assert any(n.startswith(kind) and bool((m != 0).any()) for n, m in results[0][0].items())
    for name in ("critic/loss", "critic/value", "critic/return", "policy/loss"):
        assert results[0][1][name] == pytest.approx(results[1][1][name], rel=1e-8)


def test_in_its_warm_up_the_critic_alone_learns(exact_policy):
    learner = learner_of(exact_policy, critic=CriticSettings(lr=1e-3, warmup_rollouts=1))
    batch = make_batch(REWARDS)
    state = {n: p.detach().clone() for n, p in learner.store.named.items()}
    for policy_moves in (False, True):
        learner.update(batch)
        after = {n: p.detach().clone() for n, p in learner.store.named.items()}
        moved = {n for n in after if not torch.equal(after[n], state[n])}
        assert any(name.startswith("critic:") for name in moved)
        assert any(not name.startswith("critic:") for name in moved) == policy_moves
        state = after


def test_a_policy_in_the_critics_warm_up_is_not_stepped_at_all(exact_policy):
    """Neither by weight decay nor in its moments, counter and schedule; its loss keeps nothing."""

    def trained(warmup, rollouts):
        learner = learner_of(
            exact_policy,
            critic=CriticSettings(lr=1e-3, warmup_rollouts=warmup),
            weight_decay=0.1,
            updates_per_rollout=2,
            schedule=Schedule(shape="linear", warmup_updates=2),
            lr=1e-2,
        )
        learner.objective = replace(learner.objective, regularisers=(AdaptiveEntropy(step=0.1),))
        learner.total_updates = 2 * rollouts
        rows = []
        for _ in range(rollouts):
            rows.append(learner.update(make_batch(REWARDS)))
        return learner, rows

    still, rows = trained(2, 2)
    begin = dict(exact_policy.named_parameters())
    for name, parameter in still.policy.named_parameters():
        assert torch.equal(parameter, begin[name]), name
    assert all(name.partition("/")[2].startswith("critic:") for name in still.store.state())
    assert [row["learner/lr"] for row in rows] == [0.0, 0.0]
    assert rows[0]["critic/changed"] > 0.9
    assert rows[0]["policy/entropy"] > 0, "it is looked at all the same"
    assert still.objective.state() == {}
    late, later = trained(1, 3)
    # Two updates later, and otherwise as a run without a warm-up that begins there.
    assert late.held_updates == 2
    fraction = late.settings.schedule.fraction
    assert later[1]["learner/lr"] == pytest.approx(1e-2 * fraction(1, 4))
    assert later[2]["learner/lr"] == pytest.approx(1e-2 * fraction(3, 4))
    steps = {name: v for name, v in late.store.state().items() if name.startswith("step/")}
    assert {float(v) for n, v in steps.items() if n.startswith("step/critic:")} == {6.0}
    assert {float(v) for n, v in steps.items() if not n.startswith("step/critic:")} == {4.0}
    again, _ = trained(1, 1)
    again.load_state(late.state())
    assert again.held_updates == 2


def test_values_learn_the_rewards_of_a_batch(exact_policy):
    learner = learner_of(exact_policy, critic=CriticSettings(lr=1e-2), lr=1e-9)
    batch = make_batch(REWARDS)
    explained = [learner.update(batch)["critic/explained_variance"] for _ in range(40)]
    # Not 1: the first state of a group has one value and several returns.
    assert explained[-1] > 0.7 > explained[0]
