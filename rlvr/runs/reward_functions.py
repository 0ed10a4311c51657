"""The reward functions of a recipe, called for groups of completions as they come.

Functions of a completion or a group are called when a group is there, while others are still being
generated; those of a batch when all are. A batch is what one process scores at a time: its share of
the groups of one round of sampling, in the order of their prompts, or of an evaluation set. So
results do not depend on the order in which groups arrive.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from reward.calls import Call
from reward.functions import RewardInput
from rlvr.runs.function_calls import CallReply, FunctionCalls, SharedThreads
from rlvr.runs.rewards import RewardTerm

_INTERVAL_S = 0.2

Key = tuple[int, int]
"""A term's place in the recipe, and the draw."""
_Started = list[tuple[int, "Future[CallReply]"]]
"""Calls, each with the number of completions that it is for."""


@dataclass
class Begun:
    """Groups whose functions have been called, but for those of a batch."""

    groups: list[list[RewardInput]]
    calls: dict[Key, _Started] = field(default_factory=dict)


@dataclass
class RowValues:
    """What the functions gave for one completion: for each term a value by draw."""

    values: list[list[float | None]]
    failed: list[bool]
    extra: dict[str, Any] = field(default_factory=dict)
    logged: list[tuple[str, float]] = field(default_factory=list)


class RewardFunctions:
    """The functions of a recipe, and what runs them; to be closed.

    Args:
        terms: Their settings.
        total_steps: Of the run, for TRL's trainer state.

    Raises:
        ValueError: A function does not exist, or cannot be called as the settings say.
    """

    def __init__(self, terms: Sequence[RewardTerm], total_steps: int = 0) -> None:
        self.total_steps = total_steps
        self._shared = SharedThreads()
        self.terms: list[FunctionCalls] = []
        for term in terms:
            self.terms.append(FunctionCalls(term, self._shared))

    def close(self) -> None:
        """Kill processes, end threads."""
        for term in self.terms:
            term.close()
        self._shared.close()

    @property
    def needs_answer(self) -> bool:
        """Whether some function cannot do without reference answers."""
        return any(term.call.needs_answer for term in self.terms)

    @property
    def may_read_verdict(self) -> bool:
        """Whether some function may look at verdicts."""
        return any(term.call.may_read_verdict for term in self.terms)

    @property
    def reads_columns(self) -> bool:
        """Whether some function may look at the columns of the data."""
        return any(term.call.reads_columns for term in self.terms)

    def check_columns(self, columns: Iterable[str], where: str) -> None:
        """See that the data have what every function must be given.

        Raises:
            ValueError: A column is missing; it is named.
        """
        there = set(columns)
        for term in self.terms:
            term.call.check_columns(there, where)

    def begin(self, groups: Sequence[Sequence[RewardInput]], finished: int) -> Begun:
        """Call the functions of completions and groups; nothing is waited for.

        Args:
            groups: Completions by prompt.
            finished: Steps that the run has finished.
        """
        begun = Begun([list(group) for group in groups])
        for key, call in self._calls():
            if call.scope != "batch":
                begun.calls[key] = self._started(key, call, begun.groups, finished, strict=False)
        return begun

    def finish(
        self,
        begun: Sequence[Begun],
        finished: int,
        tick: Callable[[], None] = lambda: None,
        *,
        strict: bool = False,
    ) -> list[RowValues]:
        """Call the functions of the batch, wait for all; what each completion got, in order.

        Args:
            begun: The batch, in order.
            finished: Steps that the run has finished.
            tick: Called while waiting; what it raises ends that.
            strict: Whether a function that fails ends the batch, whatever the settings say.

        Raises:
            RewardError: A function failed, or returned no rewards.
        """
        groups = [group for part in begun for group in part.groups]
        rows = [
            RowValues([[] for _ in self.terms], [False] * len(self.terms))
            for group in groups
            for _ in group
        ]
        calls = {
            key: self._started(key, call, groups, finished, strict=strict)
            if call.scope == "batch"
            else [one for part in begun for one in part.calls[key]]
            for key, call in self._calls()
        }
        try:
            for (place, _), started in calls.items():
                _put(rows, place, started, tick)
        except BaseException:
            for started in calls.values():
                for _, future in started:
                    future.cancel()
            raise
        return rows

    def try_out(self, items: Sequence[RewardInput], finished: int = 0) -> None:
        """Have every function reward made-up completions of one prompt.

        Raises:
            RewardError: One fails, or returns no rewards; also one whose failures are skipped.
        """
        groups = [list(items)]
        begun = Begun(groups)
        for key, call in self._calls():
            if call.scope != "batch":
                begun.calls[key] = self._started(key, call, groups, finished, strict=True)
        self.finish([begun], finished, strict=True)

    def _calls(self) -> list[tuple[Key, Call]]:
        return [
            ((place, draw), call)
            for place, term in enumerate(self.terms)
            for draw, call in enumerate(term.calls)
        ]

    def _started(
        self,
        key: Key,
        call: Call,
        groups: Sequence[Sequence[RewardInput]],
        finished: int,
        *,
        strict: bool,
    ) -> _Started:
        place, draw = key
        state = self._trainer_state(call, finished)
        return [
            (len(unit), self.terms[place].submit(draw, unit, state, strict=strict))
            for unit in call.units(groups)
            if unit
        ]

    def _trainer_state(self, call: Call, finished: int) -> object:
        """As TRL passes it, where the function takes it."""
        if "trainer_state" not in call.names and not (call.scope == "batch" and call.everything):
            return None
        from transformers import TrainerState

        return TrainerState(global_step=finished, max_steps=self.total_steps)


def _put(rows: list[RowValues], place: int, started: _Started, tick: Callable[[], None]) -> None:
    """Wait for a term's calls and write what they gave into the rows."""
    first = 0
    for count, future in started:
        reply = _awaited(future, tick)
        for offset, value in enumerate(reply.values):
            row = rows[first + offset]
            row.values[place].append(value)
            row.failed[place] |= reply.failed
            for name, column in reply.notes.extra.items():
                row.extra[name] = column[offset] if offset < len(column) else None
        rows[first].logged.extend(reply.notes.metrics)
        first += count


def _awaited(future: "Future[CallReply]", tick: Callable[[], None]) -> CallReply:
    while True:
        try:
            return future.result(_INTERVAL_S)
        except TimeoutError:
            if future.done():
                raise
            tick()
        except CancelledError as error:
            raise RuntimeError(
                "a reward function was called off while it was waited for"
            ) from error
