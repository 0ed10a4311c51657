"""A hook that the learner has never heard of rides along."""

import copy

import torch

from rlvr.learner.learner import Learner
from rlvr.learner.methods.hook import Hook
from rlvr.learner.settings import LearnerSettings, OptimizerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from tests.learner.batches import make_batch

REWARDS = [1.0, 0, 0, 1, 0, 0, 0, 1]


class Bias(torch.nn.Module):
    """One number for every token."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs):
        return self.value.expand(len(inputs.targets_N))


class Guess(Hook):
    """Learns the mean reward of a token, and notes what it was called for."""

    name = trains = "guess"

    def __init__(self, joint):
        self.model, self.optimizer = Bias(), OptimizerSettings(lr=0.1, max_grad_norm=None)
        self.joint = self.every_row = joint
        self.called = []

    def annotate(self, batch, passes, train):
        targets = batch.with_columns(targets=batch.rewards_B[:, None] * batch.mask_BT)
        return targets, {} if self.joint else train("guess", targets)

    def reads_old(self, batch):
        return "old_guess" not in batch.columns

    def read_old(self, micro):
        rows = [f"row {index}" for index in micro.inputs.rows]
        return {"old_guess": micro.outputs.auxiliary["guess"], "notes": rows}

    def with_old(self, batch):
        assert batch.columns["notes"] == tuple(f"row {index}" for index in range(len(batch)))
        assert torch.equal(batch.columns["old_guess"], self.model.value * batch.mask_BT)
        return batch

    def begin_step(self, batch, rows, passes):
        self.called.append(len(rows))

    def add_loss(self, loss, micro, counts, measured):
        error_BT = micro.scatter(micro.outputs.auxiliary["guess"]) - micro.batch.columns["targets"]
        mask_BT = micro.batch.mask_BT
        return loss + (error_BT.square() * mask_BT).sum() / counts.tokens, {"guess/loss": 0.0}

    def end_step(self, ranks):
        return {"guess/steps": float(len(self.called))}

    def state(self):
        return {"called": self.called}

    def load_state(self, state):
        self.called = state["called"]


def learner_of(policy, hooks=(), **settings):
    objective = Objective(Clip(), (), TokenMean())
    settings = LearnerSettings(**{"lr": 1e-2, "max_grad_norm": None, **settings})
    return Learner(copy.deepcopy(policy), objective, settings, hooks=hooks)


def test_its_model_learns_with_the_policy_and_leaves_the_policys_update_alone(exact_policy):
    batch, hook = make_batch(REWARDS), Guess(joint=True)
    learner, plain = learner_of(exact_policy, [hook]), learner_of(exact_policy)
    metrics = learner.update(batch)
    plain.update(batch)
    assert metrics["guess/changed"] == metrics["guess/steps"] == 1
    for mine, other in zip(learner.policy.parameters(), plain.policy.parameters(), strict=True):
        assert torch.equal(mine, other)
    for _ in range(60):
        learner.update(batch)
    mean = float((batch.rewards_B[:, None] * batch.mask_BT).sum() / batch.mask_BT.sum())
    assert abs(float(hook.model.value.detach()) - mean) < 0.05


def test_alone_its_model_takes_its_steps_before_the_policys(exact_policy):
    hook = Guess(joint=False)
    learner = learner_of(exact_policy, [hook], updates_per_rollout=2)
    metrics = learner.update(make_batch(REWARDS))
    assert hook.called == [4, 4]
    assert learner.updates == 2
    assert "guess/steps" not in metrics, "the policy's steps are not its own"
    assert metrics["guess/changed"] == 1


def test_a_checkpoint_holds_its_state_under_its_name(exact_policy):
    learner = learner_of(exact_policy, [Guess(joint=True)])
    learner.update(make_batch(REWARDS))
    again = learner_of(exact_policy, [Guess(joint=True)])
    again.load_state(learner.state())
    assert again.hooks[0].called == [8]
