"""The update of an explicit reward model: gradients that do not depend on the split."""

import copy
import random

import pytest
import torch

from rlvr.data.examples import Examples
from rlvr.learner.head_rewards import HEAD, response_rewards, reward_model_learner
from rlvr.learner.settings import LearnerSettings, OptimizerSettings
from rlvr.policy.batching import padded_inputs
from rlvr.reward_models.head_settings import LastToken, LayerQueries
from rlvr.reward_models.heads import OutcomeRewardModel
from rlvr.reward_models.items import make_items
from rlvr.reward_models.outcome_losses import (
    BradleyTerry,
    ListwiseLdr,
    PointwiseCrossEntropy,
)
from rlvr.reward_models.pairs import PairSettings
from tests.learner.memory import short_of_memory


def responses(seed=0):
    """Four problems of three responses; one all right, one all wrong."""
    generator = random.Random(seed)

    def ids(low, high):
        return tuple(generator.randrange(3, 60) for _ in range(generator.randrange(low, high)))

    prompts = [ids(2, 6) for _ in range(4)]
    outcomes = [1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    labels = torch.tensor(outcomes, dtype=torch.float32)
    return Examples.of_one(
        [prompts[row // 3] for row in range(12)],
        [ids(1, 9) for _ in range(12)],
        {"label": labels, "target": labels},
        [str(row // 3) for row in range(12)],
    )


PAIRS = PairSettings(within=0.5, ties=0.5, size=8)
LOSSES = [BradleyTerry(margin=0.5, pointwise_weight=0.3), PointwiseCrossEntropy(), ListwiseLdr()]


def learner_of(policy, loss, head=None, **settings):
    torch.manual_seed(0)
    model = OutcomeRewardModel(copy.deepcopy(policy), head or LastToken(), bias=loss.absolute)
    torch.nn.init.normal_(model.head.out.weight)
    values = LearnerSettings(**{"lr": 1e-2, "max_grad_norm": None, **settings})
    rates = OptimizerSettings(lr=3e-2, max_grad_norm=None)
    return reward_model_learner(model, loss, values, rates)


def model_of(learner):
    return learner.store.models.auxiliary[HEAD]


class _CaughtError(Exception):
    pass


def gradients(learner, items):
    caught = {}

    def catch(_fraction):
        caught.update({n: p.grad.clone() for n, p in learner.store.named.items()})
        raise _CaughtError

    learner.store.step = catch
    with pytest.raises(_CaughtError):
        learner.update(items)
    return caught


@pytest.mark.parametrize("head", [LastToken(), LayerQueries(heads=2)], ids=["token", "queries"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_gradient_does_not_depend_on_the_split(exact_policy, loss, head):
    items = make_items(responses(), loss, PAIRS, 0)
    whole = gradients(learner_of(exact_policy, loss, head, layout="padded"), items)
    assert all(value.abs().sum() > 0 for name, value in whole.items() if "k_proj" in name)
    for layout, budget in (("padded", 1), ("padded", 40), ("packed", 1), ("packed", 50)):
        learner = learner_of(exact_policy, loss, head, layout=layout, tokens_per_micro_batch=budget)
        for name, value in gradients(learner, items).items():
            assert torch.allclose(value, whole[name], atol=1e-12, rtol=1e-8), (layout, name)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_gradient_is_that_of_the_plain_loss(exact_policy, loss):
    """Against one response at a time and the loss written out item by item."""
    data = responses()
    items = make_items(data, loss, PAIRS, 0)
    learner = learner_of(exact_policy, loss, tokens_per_micro_batch=30)
    plain = copy.deepcopy(exact_policy)
    model = OutcomeRewardModel(plain, LastToken(), bias=loss.absolute)
    model.head.load_state_dict(model_of(learner).head.state_dict())
    rewards = [
        model(padded_inputs(data.prompt_ids, data.completion_ids, (r,)))[0] for r in range(12)
    ]
    total = 0.0
    for rows in items.rows:
        own = torch.stack([rewards[row] for row in rows])[None]
        labels = data.columns["label"][list(rows)].double()[None]
        total = total + loss(own, labels, torch.ones_like(labels).bool()).sum()
    (total / len(items)).backward()
    found = gradients(learner, items)
    expected = dict(plain.named_parameters())
    for name, value in found.items():
        other = model.head.out if name.startswith(HEAD) else None
        wanted = getattr(other, name.rpartition(".")[2]).grad if other else expected[name].grad
        assert torch.allclose(value, wanted, atol=1e-12), name


def test_rewards_stand_in_the_order_of_the_data_and_feel_no_dropout(exact_policy):
    head = LayerQueries(heads=2, dropout=0.5)
    learner = learner_of(exact_policy, PointwiseCrossEntropy(), head, tokens_per_micro_batch=30)
    learner.store.models.train()
    data = responses()
    found = response_rewards(learner, data)
    assert torch.equal(found, response_rewards(learner, data))
    assert model_of(learner).training  # as before
    order = [5, 0, 11, 3]
    assert torch.allclose(response_rewards(learner, data.of_completions(order)), found[order])


def test_a_few_steps_separate_right_from_wrong(exact_policy):
    """And the head moves at its own rate."""
    loss = BradleyTerry()
    items = make_items(responses(), loss, PairSettings(), 0)
    learner = learner_of(exact_policy, loss)
    first = learner.update(items)
    for _ in range(10):
        last = learner.update(items)
    assert first["rm/loss"] > last["rm/loss"]
    assert last["rm/accuracy"] == 1.0
    assert last["rm/margin"] == pytest.approx(last["rm/reward_right"] - last["rm/reward_wrong"])
    assert "rm/tie_gap" not in last
    groups = learner.store.optimizer.param_groups
    assert {(group["model"], group["lr"]) for group in groups} == {("policy", 1e-2), (HEAD, 3e-2)}


def test_soft_targets_take_the_place_of_outcomes(exact_policy):
    loss, data = PointwiseCrossEntropy(), responses()
    hard = make_items(data, loss, PairSettings(), 0)
    soft = hard.with_columns(target=torch.full((12,), 0.25))
    learner = learner_of(exact_policy, loss)
    rewards = response_rewards(learner, data)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        rewards, torch.full((12,), 0.25, dtype=torch.float64)
    )
    metrics = learner.update(soft)
    assert metrics["rm/loss"] == pytest.approx(float(expected))
    assert metrics["rm/reward_right"] == pytest.approx(
        float(rewards[data.columns["label"] > 0].mean())
    )


def test_an_untied_output_head_is_left_alone(exact_policy):
    policy = copy.deepcopy(exact_policy)
    head = policy.causal_lm.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    loss = BradleyTerry()
    learner = learner_of(policy, loss, weight_decay=0.5)
    learner.update(make_items(responses(), loss, PairSettings(), 0))
    now = learner.policy.causal_lm.get_output_embeddings().weight
    assert torch.equal(now, head.weight)


def test_lists_are_of_prompts_with_both_and_some_are_needed():
    data = responses()
    items = make_items(data, ListwiseLdr(), PairSettings(), 0)
    assert items.rows == ((0, 1, 2), (9, 10, 11))
    with pytest.raises(ValueError, match="no lists to learn from"):
        make_items(data.select([3, 4, 5, 6]), ListwiseLdr(), PairSettings(), 0)


def test_out_of_memory_halves_the_budget_once_and_the_step_is_the_same(exact_policy):
    loss = BradleyTerry()
    items = make_items(responses(), loss, PairSettings(), 0)
    whole, halved = (
        learner_of(exact_policy, loss, layout="padded", tokens_per_micro_batch=40) for _ in range(2)
    )
    short_of_memory(halved, times=1)
    expected, found = whole.update(items), halved.update(items)
    assert (expected["learner/out_of_memory"], found["learner/out_of_memory"]) == (0, 1)
    assert found["rm/loss"] == pytest.approx(expected["rm/loss"], rel=1e-12)
    for name, parameter in whole.store.named.items():
        assert torch.allclose(parameter, halved.store.named[name], atol=1e-9, rtol=0), name
    short_of_memory(halved, times=1)
    with pytest.raises(ValueError, match=r"lower learner\.tokens_per_micro_batch"):
        halved.update(items)


def test_a_head_that_reads_whole_layers_is_packed_on_request_alone(exact_policy):
    """It would project the whole row once for each completion on it."""
    for head, layout, packed in (
        (LastToken(), "auto", True),
        (LayerQueries(), "auto", False),
        (LayerQueries(), "packed", True),
    ):
        learner = learner_of(exact_policy, PointwiseCrossEntropy(), head, layout=layout)
        assert learner.micro_batches.packed is packed
