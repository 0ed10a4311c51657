"""Settings of the update: optimizer, schedule, batching."""

import math
from typing import Literal

from pydantic import Field

from rlvr.settings import Settings

OptimizerStates = Literal["float32", "bfloat16", "int8"]

POLICY = "policy"
"""The policy's name among the models that are trained together."""


class Schedule(Settings):
    """Learning rate over the run, as a fraction of ``learner.lr``."""

    shape: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up."""
    warmup_updates: int = Field(0, ge=0)
    """Updates over which the rate rises linearly from 0."""
    final_fraction: float = Field(0.0, ge=0, le=1)
    """Where linear and cosine end."""

    def fraction(self, update: int, total: int) -> float:
        """Fraction of the learning rate for update number ``update`` (from 0) of ``total``."""
        if update < self.warmup_updates:
            return (update + 1) / (self.warmup_updates + 1)
        if self.shape == "constant":
            return 1.0
        progress = (update - self.warmup_updates) / max(1, total - self.warmup_updates)
        progress = min(1.0, progress)
        height = 1 - progress if self.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.final_fraction + (1 - self.final_fraction) * height


class OptimizerSettings(Settings):
    """AdamW for one model."""

    lr: float = Field(1e-6, gt=0)
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW's denominator offset."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay on matrices (never on norms and biases)."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this norm; null leaves them."""
    optimizer_states: OptimizerStates = "float32"
    """How AdamW's two moments are held, with 4, 2 or about 1 bytes a weight each. bfloat16 and int8
    (in blocks of 256) are rounded up or down at random, so that they are right on average."""


class UpdateSettings(OptimizerSettings):
    """How weights are updated, whatever from."""

    schedule: Schedule = Schedule()
    """Learning rate over the run."""
    max_bad_updates: int = Field(5, ge=1)
    """Updates in a row whose gradient is not finite after which the run ends; they are skipped."""
    tokens_per_micro_batch: int = Field(4096, ge=1)
    """Most input positions run at once, padding included."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """packed runs a prompt once for all its completions behind a block mask; auto chooses it where
    a trial shows that it gives this model's numbers."""
    logits_chunk: int | None = Field(None, ge=1)
    """Tokens whose logits are formed at once; null chooses by vocabulary size."""
    in_backward: Literal["per_tensor", "two_passes"] | None = None
    """Apply AdamW to each tensor in the backward pass as soon as its gradient is complete, and drop
    the gradient: gradients are never held whole. per_tensor clips each tensor by its own norm;
    two_passes runs the backward pass twice, first for the norm of the whole gradient. Of use where
    an update is one micro-batch; with more, gradients are added up as without it. One process."""
    exact: bool = False
    """Give the same bits however a step is split: for any tokens_per_micro_batch and layout, which
    both lose their effect, for 1, 2 or more processes, with or without ZeRO, resumed by
    another number of them. Every completion runs alone, gradients are added up exactly, and on a
    CPU each process has one thread (docs/exactness.md). Slower, and 20 bytes a trained weight
    more."""


class LearnerSettings(UpdateSettings):
    """How weights are updated from a batch of rollouts."""

    updates_per_rollout: int = Field(1, ge=1)
    """Optimizer steps that a rollout is split into, by prompts. With 1, old and current policy
    coincide and the ratio is 1."""
    old_logprobs_from: Literal["learner", "rollout"] = "learner"
    """Whose log-probabilities are the loss's old ones. learner: the policy's at the start of the
    rollout's updates; with one update per rollout these are the current ones and cost no forward
    pass, with more they cost one. rollout: the engine's, recorded as it sampled; never a pass, and
    the ratio then also holds what engine and learner differ by (rounding, staleness)."""
    skip_zero_advantage: bool = True
    """Do not run completions whose advantage is zero when no regulariser touches them: their
    gradient is exactly zero. Policy metrics are then means over the completions that were run."""
