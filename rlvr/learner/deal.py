"""Micro-batches to ranks: as many for each, with as equal work as they come.

Every rank knows the whole step and deals in the same way, so nothing is said about it. A rank that
shards parameters with others must run as many passes as they do; where the plan does not divide,
the costliest micro-batches are split, and where nothing can be split a rank gets an empty one.
"""

from collections.abc import Callable, Sequence

Micro = tuple[int, ...]


def deal(plan: Sequence[Micro], cost: Callable[[Micro], int], ranks: int) -> list[list[Micro]]:
    """Part a plan over ranks.

    Args:
        plan: Micro-batches, each the rows that it holds.
        cost: Positions that a micro-batch runs.
        ranks: How many processes share the work.

    Returns:
        For each rank equally many micro-batches, in the plan's order; the empty one is ``()``.
    """
    if ranks == 1:
        return [list(plan)]
    pieces = _split_evenly(list(plan), cost, ranks)
    each = -(-len(pieces) // ranks)
    shares: list[list[Micro]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    # Longest first, each to the rank with the least work so far that still has room.
    for piece in sorted(pieces, key=lambda piece: (-cost(piece), piece)):
        rank = min((r for r in range(ranks) if len(shares[r]) < each), key=lambda r: (load[r], r))
        shares[rank].append(piece)
        load[rank] += cost(piece)
    place = {piece: index for index, piece in enumerate(pieces)}
    return [sorted(share, key=place.__getitem__) + [()] * (each - len(share)) for share in shares]


def _split_evenly(pieces: list[Micro], cost: Callable[[Micro], int], ranks: int) -> list[Micro]:
    """Halve the costliest micro-batches until their number divides, as far as rows allow."""
    while len(pieces) % ranks:
        divisible = [index for index, piece in enumerate(pieces) if len(piece) > 1]
        if not divisible:
            break
        index = max(divisible, key=lambda i: (cost(pieces[i]), -i))
        piece = pieces[index]
        pieces[index : index + 1] = [piece[: len(piece) // 2], piece[len(piece) // 2 :]]
    return pieces
