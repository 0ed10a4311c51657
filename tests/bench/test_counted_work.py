"""What an update runs, counted: forward passes, positions, bytes of a sync. No seconds.

A change that makes an update run a pass or a position more than it needs fails here, on whichever
machine.
"""

from dataclasses import replace

import pytest
import torch

from rlvr.bench.workloads import completion_lengths, made_up_batch
from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.objective.regularisers.kl import KL
from rlvr.policy.loading import load_policy
from rlvr.policy.merging import merged_buckets
from rlvr.policy.model import Policy
from rlvr.policy.settings import ModelSettings

PROMPT = 6


@pytest.fixture
def counted(monkeypatch):
    """Passes through any transformer: (with gradient, positions)."""
    passes = []
    usual = Policy.backbone

    def backbone(self, **inputs):
        given = inputs.get("input_ids", inputs.get("inputs_embeds"))
        passes.append((torch.is_grad_enabled(), given.shape[0] * given.shape[1]))
        return usual(self, **inputs)

    monkeypatch.setattr(Policy, "backbone", backbone)
    return passes


def learner_of(folder, settings, *, kl=0.0):
    policy = load_policy(ModelSettings(path=str(folder)))
    terms = (KL(coefficient=kl),) if kl else ()
    reference = load_policy(ModelSettings(path=str(folder))) if kl else None
    return Learner(policy, Objective(Clip(), terms, TokenMean()), settings, reference=reference)


def batch_of(workload):
    lengths = completion_lengths(workload, 8, 16)
    return made_up_batch(lengths, prompt_tokens=PROMPT, group_size=4, vocab_size=60), sum(lengths)


@pytest.mark.parametrize("workload", ["uniform", "lognormal", "outlier"])
def test_an_update_is_one_pass_over_each_token_and_each_prompt_once(tiny_folder, counted, workload):
    learner = learner_of(tiny_folder, LearnerSettings(lr=1e-5))
    batch, tokens = batch_of(workload)
    counted.clear()
    learner.update(batch)
    assert counted == [(True, tokens + 2 * PROMPT)]


def test_a_reference_and_a_second_update_cost_one_pass_each(tiny_folder, counted):
    batch, tokens = batch_of("uniform")
    learner = learner_of(tiny_folder, LearnerSettings(lr=1e-5, updates_per_rollout=2), kl=0.1)
    counted.clear()
    learner.update(batch)
    trained = [positions for gradient, positions in counted if gradient]
    looked_at = [positions for gradient, positions in counted if not gradient]
    assert trained == [tokens // 2 + PROMPT] * 2
    assert looked_at == [tokens + 2 * PROMPT] * 2  # the reference, and the old policy


def test_a_group_without_advantage_is_not_run(tiny_folder, counted):
    batch, _ = batch_of("uniform")
    kept_B1 = (batch.group_index_B == 0).float()[:, None]
    learner = learner_of(tiny_folder, LearnerSettings(lr=1e-5))
    counted.clear()
    learner.update(replace(batch, advantages_BT=batch.advantages_BT * kept_B1))
    assert counted == [(True, 4 * 16 + PROMPT)]


def test_a_sync_carries_every_weight_once(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    parameters = sum(weight.numel() for weight in policy.model.parameters())  # tied ones once
    for dtype, width in ((torch.float32, 4), (torch.bfloat16, 2)):
        carried = sum(
            tensor.numel() * tensor.element_size()
            for bucket in merged_buckets(policy, dtype)
            for tensor in bucket.values()
        )
        assert carried == width * parameters
