"""A step's items into micro-batches by a token budget, shared out to the ranks of the job.

An item is what runs together and is not split: one completion, or the sides of a pair. Every rank
holds the whole step, so plans and counts are the same everywhere without a word.
"""

from collections.abc import Callable, Sequence

from rlvr.learner.budget import Budget
from rlvr.learner.parameter_store import ParameterStore
from rlvr.learner.partition import Rows, partition
from rlvr.policy.batching import (
    ModelInputs,
    Spans,
    packed_inputs,
    padded_inputs,
    plan_packed,
    plan_padded,
)
from rlvr.ranks import Ranks

Ids = tuple[int, ...]
RowsOf = Callable[[int], Sequence[tuple[Ids, Ids]]]
"""The rows of an item, each a prompt and its completion; the first row's prompt is the item's."""

UNIT = 4
"""Most items of a unit of an exact sum. Fewer cost more, as every unit is added at the price of
about ten ordinary additions; more would leave ranks with unequal work."""


class MicroBatches:
    """Splits steps and shares them out.

    Args:
        store: Says whether ranks have to run equally many micro-batches.
        ranks: The processes that share the work.
        budget: Most tokens of a micro-batch, unless one item is more.
        packed: Whether completions of one prompt share it.
        exact: Whether every item runs alone, so that budget, layout and ranks change no bit.
    """

    def __init__(
        self,
        store: ParameterStore,
        ranks: Ranks,
        budget: Budget,
        *,
        packed: bool,
        exact: bool = False,
    ) -> None:
        self.store, self.ranks, self.budget, self.exact = store, ranks, budget, exact
        self.packed = packed and not exact

    def share(self, rows_of: RowsOf, items: Sequence[int]) -> list[Rows]:
        """This rank's micro-batches of the items."""
        share = self._partition(rows_of, items)[self.ranks.rank]
        return share if self.store.equal_micro_batches else [micro for micro in share if micro]

    def unit_ends(self, rows_of: RowsOf, items: Sequence[int]) -> frozenset[int]:
        """The last item of each unit, where gradients are added exactly."""
        units = self._units(rows_of, items) if self.exact else []
        return frozenset(unit[-1] for unit in units)

    def inputs(
        self,
        prompts: Sequence[Ids],
        completions: Sequence[Ids],
        rows: Rows,
        spans: Spans | None = None,
    ) -> ModelInputs:
        """The given rows as the model sees them; with ``spans`` only these tokens are predicted."""
        lay_out = packed_inputs if self.packed else padded_inputs
        return lay_out(prompts, completions, rows, spans)

    def figures(self, rows_of: RowsOf, items: Sequence[int]) -> dict[str, float]:
        """How well the items filled the micro-batches of all ranks; see docs/metrics.md."""
        real = sum(len(prompt) + len(own) for item in items for prompt, own in rows_of(item))
        by_rank = [
            sum(self._positions(rows_of, micro) for micro in share)
            for share in self._partition(rows_of, items)
        ]
        total = sum(by_rank)
        figures = {
            "learner/positions": total,
            # Packed rows share prompts: fewer positions are run than the sequences have tokens.
            "learner/pad_fraction": max(0.0, 1 - real / total) if total else 0.0,
        }
        if self.exact:  # the balance is the launch's, and what is logged is the same for every one
            return figures
        balance = total / (len(by_rank) * max(by_rank)) if total else 1.0
        return figures | {"learner/rank_balance": balance}

    def plan(self, rows_of: RowsOf, items: Sequence[int]) -> list[Rows]:
        """One rank's micro-batches of the items."""
        if self.exact:
            return [(item,) for item in items]
        alone = [self._positions(rows_of, (item,)) for item in items]
        if self.packed:
            prompts = [rows_of(item)[0][0] for item in items]
            behind = [[0] * (size - len(p)) for size, p in zip(alone, prompts, strict=True)]
            plan = plan_packed(prompts, behind, self.budget.tokens)
        else:
            plan = plan_padded(alone, self.budget.tokens)
        return [tuple(items[index] for index in micro) for micro in plan]

    def _partition(self, rows_of: RowsOf, items: Sequence[int]) -> list[list[Rows]]:
        """Every rank's micro-batches."""
        if self.exact:
            return self._partition_exactly(rows_of, items)
        units: dict[object, Rows] = {}
        for item in items:  # packed, completions of one prompt share it
            unit = rows_of(item)[0][0] if self.packed else item
            units[unit] = (*units.get(unit, ()), item)
        return partition(
            list(units.values()),
            lambda micro: self._positions(rows_of, micro),
            lambda share: self.plan(rows_of, share),
            self.ranks.count,
        )

    def _units(self, rows_of: RowsOf, items: Sequence[int]) -> list[Rows]:
        """Up to :data:`UNIT` neighbours of one prompt each, whoever runs them."""
        units: list[Rows] = []
        prompt: Ids | None = None
        for item in items:
            rows = rows_of(item)
            own = rows[0][0] if rows else None
            if units and own == prompt and len(units[-1]) < UNIT:
                units[-1] = (*units[-1], item)
            else:
                units.append((item,))
            prompt = own
        return units

    def _partition_exactly(self, rows_of: RowsOf, items: Sequence[int]) -> list[list[Rows]]:
        """Every rank's items, each alone and units undivided; equally many by empty ones."""
        units = self._units(rows_of, items)
        shares: list[list[Rows]] = [[] for _ in range(self.ranks.count)]
        load = [0] * len(shares)
        cost = {unit: sum(self._positions(rows_of, (item,)) for item in unit) for unit in units}
        for unit in sorted(units, key=lambda unit: (-cost[unit], unit)):
            rank = load.index(min(load))
            shares[rank] += [(item,) for item in unit]
            load[rank] += cost[unit]
        most = max(map(len, shares))
        return [share + [()] * (most - len(share)) for share in shares]

    def _positions(self, rows_of: RowsOf, items: Rows) -> int:
        """Input positions that items run together take, padding included."""
        rows = [row for item in items for row in rows_of(item)]
        if self.packed:
            return sum(len(own) for _, own in rows) + sum(map(len, {prompt for prompt, _ in rows}))
        return len(rows) * max((len(prompt) + len(own) for prompt, own in rows), default=0)
