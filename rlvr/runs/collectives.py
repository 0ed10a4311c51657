"""Collective operations of a run's processes, so that all continue or all stop."""

from collections.abc import Callable
from typing import Any, TypeVar

import psutil
import torch

from rlvr.ranks import Ranks
from rlvr.runs.interrupt import Stopped, StopSignals

_Value = TypeVar("_Value")


class FailedTogetherError(ValueError):
    """Work failed on some rank and every rank has been told, so that all are at the same place."""


def gather_or_stop(ranks: Ranks, work: Callable[[], Any]) -> list[Any]:
    """Every rank's result, by rank; what stops one rank, a signal or an error, stops all.

    Args:
        ranks: The processes; each must call this.
        work: Returns a JSON value.

    Raises:
        Stopped: Work was stopped on some rank.
        FailedTogetherError: Work failed on some rank.
    """
    stopped, value = 0, None
    fault: Exception | None = None
    try:
        value = work()
    except Stopped as signal:
        stopped = signal.signal_number
    except Exception as error:  # the process's boundary: the others would wait for this one
        fault = error
    said = ranks.gather([stopped, None if fault is None else _described(fault), value])
    for rank, (number, text, _) in enumerate(said):
        if number:
            raise Stopped(number)
        if text is not None:
            raise FailedTogetherError(f"process {rank}: {text}") from fault
    return [value for _, _, value in said]


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def on_rank_zero(ranks: Ranks, work: Callable[[], _Value]) -> _Value:
    """Run ``work`` on rank 0 and return its result (a JSON value) on every rank.

    Raises:
        ValueError: ``work`` raised it on rank 0.
    """
    fault: ValueError | None = None
    value = None
    if ranks.first:
        try:
            value = work()
        except ValueError as error:
            fault = error
    if fault is not None and ranks.count == 1:
        raise fault
    text, value = ranks.broadcast([str(fault) if fault is not None else None, value])
    if text is not None:
        raise ValueError(text) from fault
    return value


def stop_together(ranks: Ranks, signals: StopSignals) -> None:
    """Stop all processes here, between two steps, if any of them must stop.

    Raises:
        Stopped: One of them received a signal.
    """
    if ranks.count > 1:
        number = int(ranks.maximum(torch.tensor(signals.pending)))
        if number:
            raise Stopped(number)


def sum_over_ranks(ranks: Ranks, figures: dict[str, float]) -> dict[str, float]:
    """Sums over ranks of metrics with equal names."""
    values = torch.tensor(list(figures.values()), dtype=torch.float64)
    return dict(zip(figures, ranks.sum(values).tolist(), strict=True))


def max_over_ranks(ranks: Ranks, figures: dict[str, float]) -> dict[str, float]:
    """Maxima over ranks of metrics with equal names."""
    values = torch.tensor(list(figures.values()), dtype=torch.float64)
    return dict(zip(figures, ranks.maximum(values).tolist(), strict=True))


def memory_used(ranks: Ranks) -> dict[str, float]:
    """Memory of the process and the GPU that use most; a collective call."""
    memory = {"memory/rss_gib": psutil.Process().memory_info().rss / 2**30}
    if torch.cuda.is_available():
        memory["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return max_over_ranks(ranks, memory)
