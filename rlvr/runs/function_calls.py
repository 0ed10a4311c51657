"""Where reward functions run: on a thread of this process, on an event loop, or in processes.

A plain function runs on one thread, call after call. An ``async def`` runs on an event loop, many
calls at a time. With ``workers`` a plain function runs in processes of its own, each of which is
killed where a call exceeds its ``timeout``. On the thread such a call cannot be stopped: it is
given up, and keeps a thread until it returns or the run ends.

Calls are numbered when they are given, and answers are read in that order, so nothing depends on
which is quicker.
"""

import asyncio
import copy
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from reward.calls import Call, Notes, plan_call, signature_names
from reward.functions import RewardError, RewardInput
from reward.process import WorkerDied, WorkerExpired, WorkerProcess, WorkerUnavailable
from rlvr.runs.function_messages import call_message, read_notes
from rlvr.runs.rewards import RewardTerm
from rlvr.threads import EventLoop, Threads

_START_TIMEOUT = 120.0
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class CallReply:
    """What a call gave: a value or None for each completion, and what the function logged."""

    values: list[float | None]
    notes: Notes = field(default_factory=Notes)
    failed: bool = False


class CallFailed(Exception):
    """A call failed in a way that another attempt may not; the message says how."""


class FunctionCalls:
    """Calls one function of a recipe.

    Args:
        term: Its settings.
        shared: The thread and the event loop that all functions of a recipe share.

    Attributes:
        calls: How it is called: once, or for each draw.

    Raises:
        ValueError: There is no such function, or it cannot be called as the settings say.
    """

    def __init__(self, term: RewardTerm, shared: "SharedThreads") -> None:
        self.term, self.shared = term, shared
        self.calls = planned(term)
        self.call = self.calls[0]
        self.processes = Processes(term) if term.workers else None
        self._slots = asyncio.Semaphore(term.concurrency)

    def close(self) -> None:
        """Kill its processes."""
        if self.processes is not None:
            self.processes.close()

    def submit(
        self, draw: int, unit: Sequence[RewardInput], state: object, *, strict: bool
    ) -> "Future[CallReply]":
        """Have the function called for these completions.

        Args:
            draw: Which of ``calls``.
            unit: What one call is for.
            state: TRL's trainer state.
            strict: Whether a failure counts as such whatever the settings say.
        """
        call, processes = self.calls[draw], self.processes
        if call.is_async:
            return self.shared.loop.submit(self._awaited(call, unit, state, strict))
        if processes is not None:
            numbered = draw if len({*map(id, self.calls)}) > 1 else None
            return processes.threads.submit(
                lambda process: self._tried(
                    unit, lambda: process.reply(call, numbered, unit, state), strict
                )
            )

        def here() -> CallReply:
            return _reply(call, unit, state)

        limit = self.term.timeout
        once = here if limit is None else lambda: _within(limit, here)
        return self.shared.thread.submit(lambda _: self._tried(unit, once, strict))

    def _tried(
        self, unit: Sequence[RewardInput], once: Callable[[], CallReply], strict: bool
    ) -> CallReply:
        began, retries = time.monotonic(), self.term.retries
        for attempt in range(retries + 1):
            try:
                return once()
            except (CallFailed, TimeoutError) as error:
                if attempt == retries:
                    return self._given_up(unit, error, time.monotonic() - began, strict)
            time.sleep(_pause(attempt))
        raise AssertionError("the last attempt returns")

    async def _awaited(
        self, call: Call, unit: Sequence[RewardInput], state: object, strict: bool
    ) -> CallReply:
        began, retries = time.monotonic(), self.term.retries
        for attempt in range(retries + 1):
            try:
                async with self._slots:
                    return await _reply_awaited(call, unit, state, self.term.timeout)
            except (CallFailed, TimeoutError) as error:
                if attempt == retries:
                    return self._given_up(unit, error, time.monotonic() - began, strict)
            await asyncio.sleep(_pause(attempt))
        raise AssertionError("the last attempt returns")

    def _given_up(
        self, unit: Sequence[RewardInput], error: Exception, seconds: float, strict: bool
    ) -> CallReply:
        """What stands for the values after the last attempt.

        Raises:
            RewardError: The settings have the run stop.
        """
        if self.term.failure == "skip" and not strict:
            return CallReply([None] * len(unit), failed=True)
        said = str(error)
        if isinstance(error, TimeoutError):
            said = (
                f"{self.call.whom(unit)} gave no answer within its timeout of "
                f"{self.term.timeout:g} s; raise timeout, or set failure: skip"
            )
        attempts = self.term.retries + 1
        if attempts > 1:
            said += f"; it failed {attempts} times in {seconds:.1f} s"
        raise RewardError(said) from error


class SharedThreads:
    """The thread of plain functions and the event loop of asynchronous ones, made when needed."""

    def __init__(self) -> None:
        self._thread: Threads | None = None
        self._loop: EventLoop | None = None

    @property
    def thread(self) -> Threads:
        """One thread, so that a function is never called twice at a time."""
        if self._thread is None:
            self._thread = Threads(1, "rewards")
        return self._thread

    @property
    def loop(self) -> EventLoop:
        """The event loop."""
        if self._loop is None:
            self._loop = EventLoop("rewards")
        return self._loop

    def close(self) -> None:
        """End both; a call that hangs keeps its thread, which ends with the process."""
        if self._thread is not None:
            self._thread.close()
        if self._loop is not None:
            self._loop.close()


class Processes:
    """A function's own worker processes, each with the thread that speaks to it.

    On Linux a process dies with the thread that started it, and so with the run.
    """

    def __init__(self, term: RewardTerm) -> None:
        self.term = term
        self._all: list[_Process] = []
        self.threads = Threads(term.workers, f"reward-{term.label}", self._new)

    def _new(self) -> "_Process":
        process = _Process(self.term)
        self._all.append(process)
        return process

    def close(self) -> None:
        """Kill them."""
        self.threads.close()
        for process in self._all:
            process.kill_at_end()


class _Process:
    """A worker process, started when it is first needed and again after it was killed."""

    def __init__(self, term: RewardTerm) -> None:
        self.term, self.closed = term, False
        self.worker: WorkerProcess | None = None

    def reply(
        self, call: Call, draw: int | None, unit: Sequence[RewardInput], state: object
    ) -> CallReply:
        """What one attempt of a call gives.

        Raises:
            CallFailed: The function raised, or the process ended.
            TimeoutError: It took longer than its limit; the process was killed.
            RewardError: It returned no rewards, or the process cannot be started.
        """
        try:
            sent = call_message(_with_siblings(call, unit), state, lambda row: _read_by(call, row))
        except TypeError as error:
            raise RewardError(f"{call.whom(unit)}: {error}") from error
        message = {"draw": draw, "call": sent}
        try:
            reply = self._exchange(message)
        except WorkerDied as error:
            raise CallFailed(f"{call.whom(unit)}: its {error}") from error
        if "wrong" in reply:
            raise RewardError(reply["wrong"])
        if "failed" in reply:
            raise CallFailed(reply["failed"])
        return CallReply(reply["values"], read_notes(reply["notes"]))

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        if self.worker is None or not self.worker.alive():
            self._start()
        assert self.worker is not None
        try:
            return self.worker.exchange(message, self.term.timeout)
        except (WorkerExpired, WorkerDied) as error:
            self.worker.kill()
            self.worker = None
            if isinstance(error, WorkerExpired):
                raise TimeoutError from error
            raise

    def _start(self) -> None:
        if self.worker is not None:
            self.worker.kill()
        if self.closed:
            raise WorkerDied("worker process was ended")
        settings = {
            "function": str(self.term.function),
            "parameters": dict(self.term.parameters),
            "name": self.term.label,
            "as_messages": self.term.messages,
            "path": [str(path) for path in sys.path],
        }
        called = f"process of reward function {self.term.label!r}"
        try:
            self.worker = WorkerProcess(settings, "rlvr.runs.function_worker", called)
            self.worker.wait_ready(_START_TIMEOUT)
        except WorkerUnavailable as error:
            self.worker = None
            raise RewardError(str(error)) from error

    def kill_at_end(self) -> None:
        """From any thread."""
        self.closed = True
        if self.worker is not None:
            self.worker.signal_kill()


def check_functions(terms: Iterable[RewardTerm]) -> None:
    """See that every function exists, takes its parameters and says how it is called.

    Not part of the validation of a recipe: `reward` loads sympy, which takes a second.

    Raises:
        ValueError: One does not; it is named.
    """
    for term in terms:
        planned(term)


def planned(term: RewardTerm) -> list[Call]:
    """How a term's function is called: once, or for each draw, numbered if it takes ``draw``.

    Raises:
        ValueError: There is no such function, or it cannot be called as the settings say.
    """

    def plan(**more: int) -> Call:
        return plan_call(
            term.source, {**term.parameters, **more}, term.label, as_messages=term.messages
        )

    call = plan()
    if call.is_async and term.workers:
        raise ValueError(
            f"reward function {term.label!r} is asynchronous, so its calls run at the same time on "
            "an event loop; leave workers out (concurrency limits them)"
        )
    if term.draws > 1 and ("draw" in call.names or "draw" in signature_names(term.source)):
        return [plan(draw=draw) for draw in range(term.draws)]
    return [call] * term.draws


def _reply(call: Call, unit: Sequence[RewardInput], state: object) -> CallReply:
    """One attempt of a plain function.

    Raises:
        CallFailed: It raised.
        RewardError: It returned no rewards.
    """
    notes = Notes()
    try:
        returned = call.prepared(unit, notes, state)()
    except (Exception, SystemExit) as error:  # the user's code
        raise CallFailed(call.fault(error, unit)) from error
    return CallReply(call.values(returned, unit), notes)


async def _reply_awaited(
    call: Call, unit: Sequence[RewardInput], state: object, seconds: float | None
) -> CallReply:
    """One attempt of an asynchronous function.

    Raises:
        TimeoutError: It took longer than so many seconds.
        CallFailed, RewardError: As :func:`_reply`.
    """
    notes, limit = Notes(), asyncio.timeout(seconds)
    try:
        async with limit:
            returned = await call.prepared(unit, notes, state)()
    except Exception as error:  # the user's code
        if isinstance(error, TimeoutError) and limit.expired():
            raise
        raise CallFailed(call.fault(error, unit)) from error
    return CallReply(call.values(returned, unit), notes)


def _with_siblings(call: Call, unit: Sequence[RewardInput]) -> list[RewardInput]:
    """The completions, without their group where the call does not look at it."""
    if call.whole is not None or "others" in call.names:
        return list(unit)
    alone = [copy.copy(item) for item in unit]
    for item in alone:
        object.__setattr__(item, "group", ())
    return alone


def _read_by(call: Call, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that a call may look at; others are not even decoded."""
    every = call.whole is not None or call.everything or "columns" in call.names
    return {name: columns[name] for name in columns if every or name in call.column_names}


def _within(seconds: float, work: Callable[[], CallReply]) -> CallReply:
    """What work returns.

    Raises:
        TimeoutError: It takes longer; its thread is left to itself.
    """
    thread = Threads(1, "reward-call")
    future = thread.submit(lambda _: work())
    thread.close()
    return future.result(seconds)


def _pause(attempt: int) -> float:
    """Seconds before another attempt: more with each, as a server that is too busy wants."""
    return float(min(0.25 * 2**attempt, _LONGEST_PAUSE))
