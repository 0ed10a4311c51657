"""Which problems the next step trains on, and how to continue from any point.

The order of epoch e is a pure function of (seed, e): Philox, a counter-based generator (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", 2011), keyed by the two, gives every problem a
number, and the problems are visited in increasing order of these numbers. Only raw generator output
is used, which numpy guarantees not to change.

A batch that crosses the end of an epoch must not contain a problem twice (its completions would be
drawn from the same seeds and be identical). Problems of the new epoch that are already in the batch
are postponed: they come first in the next batch. They are part of the saved state. So the state
stays small, and each epoch still visits each problem once.
"""

from __future__ import annotations

from typing import Any

from rlvr.lazy import np


class ProblemSampler:
    """Endless batches of problem indices, epoch by epoch, with a state that can be saved.

    Args:
        size: Number of problems.
        seed: Seed of the order of all epochs.
        shuffle: If False, every epoch visits the problems in their given order.

    Raises:
        ValueError: ``size`` is not positive or ``seed`` is outside 0 .. 2^64 - 1.
    """

    def __init__(self, size: int, seed: int, shuffle: bool = True) -> None:
        if size < 1:
            raise ValueError(f"a sampler needs at least one problem, not size={size}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed={seed} is out of range; it must be from 0 to 2^64 - 1")
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self._epoch, self._cursor = 0, 0
        self._put_off: list[int] = []
        self._order = self._order_of(0)

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0."""
        return self._epoch

    def next(self, count: int) -> list[int]:
        """The next ``count`` indices.

        If ``count`` <= ``size``, no problem occurs twice. Otherwise each occurs ``count // size``
        times, and some once more; no problem is repeated before all have occurred.

        Raises:
            ValueError: ``count`` is not positive.
        """
        if count < 1:
            raise ValueError(f"a batch needs at least one problem, not count={count}")
        batch: list[int] = []
        held: set[int] = set()
        while len(batch) < count:
            if len(held) == self.size:
                held = set()
            index = self._take(held)
            held.add(index)
            batch.append(index)
        return batch

    def _take(self, held: set[int]) -> int:
        """The next index that is not in ``held``, which must not contain all indices."""
        for position, index in enumerate(self._put_off):
            if index not in held:
                return self._put_off.pop(position)
        while True:
            if self._cursor == self.size:
                assert not self._put_off, "an epoch ends when all problems have been visited"
                self._epoch, self._cursor = self._epoch + 1, 0
                self._order = self._order_of(self._epoch)
            index = self._order[self._cursor]
            self._cursor += 1
            if index not in held:
                return index
            self._put_off.append(index)

    def _order_of(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        numbers = np.random.Philox(key=np.array([self.seed, epoch], np.uint64)).random_raw(
            self.size
        )
        order: list[int] = np.argsort(numbers, kind="stable").tolist()
        return order

    def state_dict(self) -> dict[str, Any]:
        """The sampler's position, as plain JSON values."""
        return {
            "size": self.size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "epoch": self._epoch,
            "cursor": self._cursor,
            "put_off": list(self._put_off),
        }

    @property
    def drawn(self) -> int:
        """How many problems were given so far, in whole epochs and this one."""
        return self._epoch * self.size + self._cursor - len(self._put_off)

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether a saved state is of this size, seed and order."""
        return all(state.get(name) == getattr(self, name) for name in ("size", "seed", "shuffle"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; if the state is refused, the sampler does not change.

        Raises:
            ValueError: The state belongs to another size, seed or order, or is damaged.
        """
        for name in ("size", "seed", "shuffle"):
            if state.get(name) != getattr(self, name):
                raise ValueError(
                    f"the saved sampler has {name}={state.get(name)!r}, but this one has "
                    f"{name}={getattr(self, name)!r}; resume with the same data and seed, or start "
                    "a new run"
                )
        epoch, cursor = _whole(state, "epoch"), _whole(state, "cursor")
        if cursor > self.size:
            raise ValueError(f"the saved sampler's state is damaged: cursor={cursor!r}")
        put_off = state.get("put_off")
        order = self._order_of(epoch)
        if not isinstance(put_off, list) or not set(put_off) <= set(order[:cursor]):
            raise ValueError(f"the saved sampler's state is damaged: put_off={put_off!r}")
        self._epoch, self._cursor, self._put_off = epoch, cursor, list(put_off)
        self._order = order


def _whole(state: dict[str, Any], name: str) -> int:
    value = state.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"the saved sampler's state is damaged: {name}={value!r}")
    return value
