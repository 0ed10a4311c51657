"""Which GPUs the process of an engine sees: the one place that decides it.

vLLM takes the first GPUs that its process sees, so without a choice the engines of all ranks would
meet on the first one. An engine gets the GPU of the process that starts it, where its learner is;
if it is split over several, the others are GPUs without a learner, which ranks share out equally.

    ranks   GPUs   tensor parallel   engines
    4       4      1                 0 | 1 | 2 | 3
    1       4      4                 0 1 2 3
    2       4      2                 0 2 | 1 3
    4       4      2                 refused: every GPU would carry parts of two engines
"""

import os
from collections.abc import Mapping, Sequence

import torch

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def engine_gpus(device: torch.device, width: int) -> list[int]:
    """GPUs of an engine that this process starts; none if its own model is on none.

    Args:
        device: Where this process has its own model.
        width: Number of GPUs over which the engine is split.

    Raises:
        ValueError: There are too few GPUs.
    """
    if device.type != "cuda":
        return []
    count, processes = torch.cuda.device_count(), local_processes(os.environ)
    return choose_gpus(device.index or 0, width, count, processes)


def engine_variables(gpus: Sequence[int]) -> dict[str, str]:
    """Environment variables that show an engine's process these GPUs and no others.

    Args:
        gpus: As this process numbers them, among those that it sees itself; none leaves all.
    """
    shown = os.environ.get(_VISIBLE)
    names = [name.strip() for name in shown.split(",")] if shown else None
    seen = [names[gpu] if names else str(gpu) for gpu in gpus]
    return {_VISIBLE: ",".join(seen)} if seen else {}


def choose_gpus(own: int, width: int, count: int, processes: int) -> list[int]:
    """GPUs of the engine that one process starts, its own first.

    Args:
        own: GPU of the process, among those that it sees.
        width: Number of GPUs over which the engine is split.
        count: Number of GPUs that the process sees.
        processes: Number of processes on this machine; each starts an engine.

    Raises:
        ValueError: There are too few GPUs.
    """
    if width == 1:
        return [own]
    learners = {own} if processes == 1 else set(range(min(processes, count)))
    others = [index for index in range(count) if index not in learners]
    place = 0 if processes == 1 else own
    chosen = others[place * (width - 1) : (place + 1) * (width - 1)]
    if len(chosen) < width - 1 or processes > count:
        raise ValueError(
            f"tensor_parallel_size = {width} with {processes} process"
            f"{'es' if processes > 1 else ''} on this machine takes {width * processes} GPUs, as "
            f"each starts an engine, but {count} are visible; set it to "
            f"{max(1, count // processes)}, or put the engine on other GPUs (vllm_server)"
        )
    return [own, *chosen]


def local_processes(environment: Mapping[str, str]) -> int:
    """Number of processes that a launcher started on this machine; 1 without one."""
    rank = int(environment.get("LOCAL_RANK", "0"))
    return max(int(environment.get("LOCAL_WORLD_SIZE", "1")), rank + 1)
