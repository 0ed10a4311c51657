"""What the processes of a run do together, so that all go on or all stop."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rlvr.ranks import Ranks
from rlvr.train.interrupt import Stopped, StopSignals

_Value = TypeVar("_Value")


def gather_or_stop(ranks: Ranks, work: Callable[[], Any]) -> list[Any]:
    """Every rank's result, by rank; a signal that stopped one stops all.

    Args:
        ranks: The processes; each calls this.
        work: Gives a JSON value.

    Raises:
        Stopped: Work was stopped on some rank.
    """
    stopped, value = 0, None
    try:
        value = work()
    except Stopped as signal:
        stopped = signal.signal_number
    said = ranks.gather([stopped, value])
    for number, _ in said:
        if number:
            raise Stopped(number)
    return [value for _, value in said]


def first_rank(ranks: Ranks, work: Callable[[], _Value]) -> _Value:
    """What the first rank's work gives (a JSON value), on every rank.

    Raises:
        ValueError: The first rank's did.
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
    """Where several processes have to stop, do it here: between two steps.

    Raises:
        Stopped: A signal came to one of them.
    """
    if ranks.count > 1:
        number = int(ranks.maximum(torch.tensor(signals.pending)))
        if number:
            raise Stopped(number)


def sum_over_ranks(ranks: Ranks, figures: dict[str, float]) -> dict[str, float]:
    """Figures of equal names, added up."""
    values = torch.tensor(list(figures.values()), dtype=torch.float64)
    return dict(zip(figures, ranks.sum(values).tolist(), strict=True))


def max_over_ranks(ranks: Ranks, figures: dict[str, float]) -> dict[str, float]:
    """Figures of equal names, the largest of each."""
    values = torch.tensor(list(figures.values()), dtype=torch.float64)
    return dict(zip(figures, ranks.maximum(values).tolist(), strict=True))
