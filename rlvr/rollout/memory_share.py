"""What share of a GPU's memory an engine may take beside a learner.

vLLM refuses to start if less is free than the share of the whole GPU that it is given, so a share
must be what the learner leaves:

    share = (free - growth - margin) / total        the engine sleeps during updates, if any
    share = (free - growth - margin) / total / 2    it stays awake: the other half is for updates

``growth`` is what the learner will hold during rollouts and does not hold yet: AdamW's moments
before the first step. Gradients and activations exist only during updates. The margin is for the
CUDA context of the engine's process and for fragments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlvr.rollout.settings import VllmEngineSettings

_GIB = 2**30
_MOMENT_BYTES = 8
"""Two float32 numbers for each trained weight; in int8 they are fewer."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes of a GPU: all of them, and those that nobody holds."""

    total: int
    free: int


def engine_share(memory: GpuMemory, growth: int, sleeps: bool, weights: int = 0) -> float:
    """Share of the whole GPU that an engine may take, rounded down to three decimals.

    Args:
        memory: As it is when the engine starts.
        growth: Bytes that the learner will hold during rollouts and does not hold yet.
        sleeps: Whether updates find the engine's memory given back, or there are none.
        weights: Bytes of the engine's weights on this GPU, which must fit into its share.

    Raises:
        ValueError: The learner leaves too little.
    """
    margin = max(_GIB, memory.total // 50)
    left = max(0, memory.free - growth - margin)
    share = int(1000 * left / memory.total / (1 if sleeps else 2)) / 1000
    if share * memory.total <= weights:
        raise ValueError(
            f"the learner leaves {left / _GIB:.1f} of the GPU's {memory.total / _GIB:.1f} GiB"
            f"{'' if sleeps else ', half of them for its updates'}, too little for an engine with "
            f"{weights / _GIB:.1f} GiB of weights; shard the learner (ZeRO 3), "
            f"{'' if sleeps else 'let the engine sleep (rollout.engine.sleep=1), '}"
            "or use servers on other GPUs (rollout.engine.name=vllm_server)"
        )
    return share


def planned_share(total: int, resident: int, sleeps: bool) -> float:
    """:func:`engine_share` before anything runs, from estimates.

    Args:
        total: Bytes of the GPU.
        resident: Bytes that the learner holds between updates: weights and moments.
        sleeps: Whether the engine gives its memory back while the learner updates.

    Raises:
        ValueError: The learner leaves too little.
    """
    return engine_share(GpuMemory(total, total - resident), 0, sleeps)


def planned_line(settings: VllmEngineSettings, takes_turns: bool, total: int, resident: int) -> str:
    """What ``--dry-run`` says about the engine's share of a GPU.

    Args:
        settings: The engine's.
        takes_turns: Whether rollouts and updates take turns.
        total: Bytes of the GPU.
        resident: Bytes that the learner holds between updates, estimated.
    """
    sleeps, asked = settings.sleeps(takes_turns), settings.memory_share
    of = f"of the GPU's {total / _GIB:.0f} GiB"
    if asked is not None and asked * total > total - resident:
        return (
            f"warning: rollout.engine.memory_share = {asked} {of} is refused by vLLM, as the "
            f"learner leaves about {max(0.0, 1 - resident / total):.2f}; set it to null"
        )
    try:
        share = planned_share(total, resident, sleeps) if asked is None else asked
    except ValueError as error:
        return f"warning: {error}"
    shared = "asleep during updates" if sleeps else "awake during updates"
    return f"vLLM beside the learner: {share:.3f} {of}, {shared}"


def gpu_memory(gpus: Sequence[int]) -> GpuMemory:
    """Memory of the GPU with the least free, after this process has given back what it caches."""
    torch.cuda.empty_cache()
    found = [torch.cuda.mem_get_info(gpu) for gpu in gpus]
    free, total = min(found, key=lambda pair: pair[0])
    return GpuMemory(total, free)


def moments_to_come(optimizer: Any) -> int:  # noqa: ANN401
    """Bytes, at most, of AdamW's moments that its first step will make.

    Args:
        optimizer: Makes the moments of a parameter when it first moves it. Where a store has made
            them before, there is nothing to come.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return sum(_MOMENT_BYTES * p.numel() for p in parameters if p not in optimizer.state)
