"""Join the processes that ``accelerate launch`` started, and hold the models as it says.

    nothing launched, or one process      LocalStore
    several processes                     DataParallelStore
    DeepSpeed with ZeRO stage 1, 2 or 3   ZeroStore
    learner.exact                         ExactStore, or with DeepSpeed ExactZeroStore

Nothing in a recipe says which: the launch configuration does (launch/accelerate/).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch

from rlvr.learner.exact_store import ExactStore
from rlvr.learner.in_backward import BackwardStore, InBackward
from rlvr.learner.models import Models
from rlvr.learner.parameter_store import DataParallelStore, LocalStore, ParameterStore
from rlvr.learner.settings import OptimizerSettings
from rlvr.policy.model import Policy
from rlvr.ranks import Ranks

_NONE = (None, "none")


@dataclass(frozen=True, slots=True)
class Launch:
    """How the job was started: its processes, and DeepSpeed's ``zero_optimization`` if any."""

    ranks: Ranks
    zero: Mapping[str, Any] | None = None

    @property
    def description(self) -> str:
        """For people: how parameters are held, and the number of processes."""
        if self.zero is None:
            return "one process" if self.ranks.count == 1 else f"data parallel x {self.ranks.count}"
        return f"ZeRO {self.zero['stage']} x {self.ranks.count}"

    def whole(self) -> "Launch":
        """The same with whole weights in every process: ZeRO 2 in place of 3."""
        if self.zero is None or self.zero["stage"] != 3:
            return self
        kept = {key: own for key, own in self.zero.items() if key != "offload_param"}
        return replace(self, zero={**kept, "stage": 2})


def join(timeout_s: float = 1800.0) -> Launch:
    """Find the other processes, if there are any; collective.

    Args:
        timeout_s: Longest wait for another rank in a collective, in seconds.

    Raises:
        ValueError: The launch asks for something that the learner does not do.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before anything imports DeepSpeed
    zero = _zero_section() if _flag("ACCELERATE_USE_DEEPSPEED") else None
    if _flag("ACCELERATE_USE_FSDP"):
        raise ValueError(
            "the launch configuration asks for FSDP; use DeepSpeed's ZeRO 3 instead "
            "(launch/accelerate/zero3.yaml)"
        )
    _check_meeting_point()
    if zero is not None:
        _leave_out_compiled_collectives()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or zero is not None:
        _join_group(timeout_s)
    return Launch(Ranks(timeout_s), zero)


def build_store(
    models: Models,
    settings: Mapping[str, OptimizerSettings],
    launch: Launch,
    *,
    seed: int = 0,
    in_backward: InBackward | None = None,
    exact: bool = False,
) -> ParameterStore:
    """The parameter store that the launch calls for.

    Args:
        models: What is trained, and what is trained with it.
        settings: Rates and clipping by model.
        launch: The processes of the job.
        seed: Of the run, for what is rounded at random.
        in_backward: How parameters move in the backward pass, if they do.
        exact: Whether the gradient must not depend on how a step is split.

    Raises:
        ValueError: The settings ask for something that it cannot do.
    """
    if in_backward is not None:
        if launch.zero is not None or launch.ranks.count > 1:
            raise ValueError(
                f"learner.in_backward = {in_backward!r} drops gradients before other processes "
                "could add theirs; leave it out, or launch one process without DeepSpeed"
            )
        return BackwardStore(models, settings, in_backward, seed)
    if exact and launch.zero is None:
        return ExactStore(models, settings, launch.ranks, seed)
    if launch.zero is not None:
        # DeepSpeed takes seconds to import.
        from rlvr.learner.exact_zero import ExactZeroStore
        from rlvr.learner.zero import ZeroStore

        if exact:
            return ExactZeroStore(models, settings, launch.ranks, launch.zero)
        return ZeroStore(models, settings, launch.ranks, launch.zero)
    if launch.ranks.count > 1:
        return DataParallelStore(models, settings, launch.ranks, seed)
    return LocalStore(models, settings, seed)


def place_frozen(policy: Policy, launch: Launch) -> None:
    """Divide a frozen model over ranks, under ZeRO 3; elsewhere it stays whole; collective."""
    if launch.zero is not None and launch.zero["stage"] == 3:
        from rlvr.learner.zero import shard_frozen

        shard_frozen(policy, launch.ranks, launch.zero)


def _join_group(timeout_s: float) -> None:
    from accelerate import PartialState

    # Without a backend named, accelerate takes a DeepSpeed job on a CPU for a single process.
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    PartialState(backend=backend, timeout=timedelta(seconds=timeout_s))


def _leave_out_compiled_collectives() -> None:
    """On a CPU, have DeepSpeed use gloo alone.

    It would compile its own shared-memory collectives when the group is joined: a minute, with a
    compiler there, and a job killed in it leaves a lock that every later one waits for, for ever.
    """
    if not torch.cuda.is_available():
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _zero_section() -> dict[str, Any] | None:
    """DeepSpeed's ``zero_optimization`` of the launch; None for stage 0, which shards nothing."""
    from accelerate import DeepSpeedPlugin

    section: dict[str, Any] = dict(DeepSpeedPlugin(zero3_init_flag=False).deepspeed_config)[
        "zero_optimization"
    ]
    for name in ("offload_optimizer", "offload_param"):
        device = (section.get(name) or {}).get("device")
        if device in _NONE:
            section.pop(name, None)
        elif device != "cpu":
            raise ValueError(
                f"the launch configuration offloads to {device!r} ({name}), whose state a "
                "checkpoint cannot hold; offload to cpu or none"
            )
    return section if section["stage"] > 0 else None


def _check_meeting_point() -> None:
    """A process that is told of others must be told how to find them."""
    count = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if count != "1" and missing:
        raise ValueError(
            f"WORLD_SIZE is {count} and {', '.join(missing)} not set, so the other processes "
            "cannot be found; start all of them by accelerate launch, or unset WORLD_SIZE"
        )


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")
