"""Rows to ranks, and into micro-batches: equal work for each, and equally many passes.

Every rank knows the whole step and partitions it in the same way, so nothing is said about it. A
rank that shards parameters with others must run as many passes as they do; who has fewer splits its
costliest micro-batches, and where nothing can be split gets an empty one.
"""

from collections.abc import Callable, Sequence

Rows = tuple[int, ...]
"""Rows of the batch that run together; the empty micro-batch is ``()``."""


def partition(
    units: Sequence[Rows],
    cost: Callable[[Rows], int],
    plan: Callable[[Sequence[int]], list[Rows]],
    ranks: int,
) -> list[list[Rows]]:
    """Partition the rows of a step over ranks and plan each one's micro-batches.

    Args:
        units: Rows that are better run by the same rank, as completions of one prompt are.
        cost: Positions that rows run together take.
        plan: Splits rows into micro-batches.
        ranks: How many processes share the work.

    Returns:
        For each rank equally many micro-batches.
    """
    if ranks == 1:
        return [plan([row for unit in units for row in unit])]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    # Longest first, each to the rank with the least work so far.
    for unit in sorted(_small_enough(units, cost, ranks), key=lambda unit: (-cost(unit), unit)):
        rank = load.index(min(load))
        shares[rank].extend(unit)
        load[rank] += cost(unit)
    plans = [plan(sorted(rows)) for rows in shares]
    most = max(map(len, plans))
    return [_stretched(micros, most, cost) for micros in plans]


def _small_enough(units: Sequence[Rows], cost: Callable[[Rows], int], ranks: int) -> list[Rows]:
    """Halve units that are more than a rank's share of the work."""
    share = sum(map(cost, units)) / ranks
    small: list[Rows] = []
    waiting = list(units)
    while waiting:
        unit = waiting.pop()
        if len(unit) > 1 and cost(unit) > share:
            waiting += [unit[: len(unit) // 2], unit[len(unit) // 2 :]]
        else:
            small.append(unit)
    return small


def _stretched(micros: list[Rows], count: int, cost: Callable[[Rows], int]) -> list[Rows]:
    """Split micro-batches, and add empty ones, until there are ``count``."""
    micros = list(micros)
    while len(micros) < count:
        divisible = [index for index, rows in enumerate(micros) if len(rows) > 1]
        if not divisible:
            return micros + [()] * (count - len(micros))
        index = max(divisible, key=lambda i: (cost(micros[i]), -i))
        rows = micros[index]
        micros[index : index + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return micros
