"""What a recipe says about memory, as :mod:`rlvr.memory` takes it, and what this machine has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from rlvr.memory import (
    ExtraModel,
    Machine,
    ModelShape,
    Processes,
    Storage,
    Work,
    estimate,
    memory_lines,
)
from rlvr.runs.base_recipe import BaseRecipe, OfflineRecipe

Device = Literal["cpu", "cuda"]

_LIMITS = ("max_prompt_tokens", "max_completion_tokens", "max_response_tokens", "max_tokens")
"""Settings of the data of tasks that bound a sequence together."""


def storage(recipe: BaseRecipe) -> Storage:
    """How a recipe stores numbers."""
    model, learner = recipe.model, recipe.learner
    return Storage(
        weights=model.weights,
        frozen=model.frozen_weights,
        states=learner.optimizer_states,
        in_backward=learner.in_backward,
        compute=model.precision,
        recompute=model.gradient_checkpointing,
        exact=learner.exact,
    )


def work_of(
    recipe: BaseRecipe,
    shape: ModelShape,
    device: Device,
    *,
    sequence: int,
    extra: tuple[ExtraModel, ...] = (),
) -> Work:
    """What any task's run does.

    Args:
        recipe: The task's.
        shape: Of its model.
        device: What it runs on.
        sequence: Longest sequence in tokens.
        extra: Models beside the one that is trained.
    """
    from rlvr.policy.token_stats import KEPT_LOGITS, default_chunk

    learner = recipe.learner
    dense_mask = device == "cuda" or recipe.model.gradient_checkpointing
    return Work(
        shape,
        storage(recipe),
        sequence=sequence,
        tokens=1 if learner.exact else learner.tokens_per_micro_batch,  # a completion at a time
        chunk=learner.logits_chunk or default_chunk(shape.vocabulary, device),
        kept=KEPT_LOGITS,
        packed=dense_mask and learner.layout != "padded" and not learner.exact,
        extra=extra,
    )


def offline_work(recipe: OfflineRecipe, shape: ModelShape, device: Device) -> Work:
    """A recipe of a task without rollouts, as an estimate takes it.

    Args:
        recipe: What to do.
        shape: Of ``recipe.model``.
        device: What the learner runs on.
    """
    limits = [getattr(recipe.data, name, None) for name in _LIMITS]
    sequence = sum(limit for limit in limits if limit) or recipe.learner.tokens_per_micro_batch
    named = getattr(recipe, "reference", None)
    other = getattr(named, "path", recipe.model.path) != recipe.model.path
    live = getattr(recipe, "live_reference", False) and (other or recipe.model.lora is None)
    extra = (ExtraModel("the reference"),) if live else ()
    return work_of(recipe, shape, device, sequence=sequence, extra=extra)


def offline_memory(recipe: OfflineRecipe) -> list[str]:
    """The table for ``--dry-run``; nothing of a model of the Hub, which is not looked up.

    Raises:
        ValueError: The model cannot be trained.
    """
    from rlvr.policy.settings import check_local
    from rlvr.policy.shape import read_shape

    if not Path(check_local(recipe.model.path)).exists():
        return []
    machine = machine_here()
    work = offline_work(recipe, read_shape(recipe.model), machine.device)
    return memory_lines(estimate(work, processes_here(), machine))


def processes_here() -> Processes:
    """How the launcher, if any, started this process."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(count)))
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true", "yes")
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0") if deepspeed else "0"
    offload = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") == "cpu"
    return Processes(
        gpus=local,
        nodes=max(1, count // local),
        stage=int(stage) if stage.isdigit() else 0,
        offload=deepspeed and offload,
    )


def machine_here() -> Machine:
    """This machine's first GPU, or its own memory where it has none."""
    import psutil
    import torch

    host = float(psutil.virtual_memory().total)
    if torch.cuda.is_available():
        return Machine("cuda", float(torch.cuda.mem_get_info()[1]), host)
    return Machine("cpu", host, host)


def gpus_here() -> int:
    """This machine's GPUs."""
    import torch

    return torch.cuda.device_count()
