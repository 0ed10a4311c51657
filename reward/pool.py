"""A pool of killable grading processes.

Symbolic comparison can hang, and a thread or an executor cannot be stopped; only SIGKILL is
reliable. So each slot of the pool owns one worker process and one thread of this process. The
thread sends an answer over the worker's socket and waits until the deadline; if it passes, the
thread kills the worker, records a timeout and starts another. Verdicts are returned as futures,
each tied to its request, so none can be mixed up or lost.

A worker is a new interpreter started by ``exec`` (not ``fork``), which is safe in a process with
threads or a CUDA context. It imports neither torch nor the caller's ``__main__`` (a script needs no
``if __name__`` guard). Inside a worker an alarm of whole seconds ends most hangs early and cheaply;
see `reward.worker`.

    with VerifierPool(workers=2) as pool:
        future = pool.submit(response, gold)      # from any thread; streams back
        grades = pool.grade_many(pairs)           # in the order of the pairs
        grade = await pool.grade_async(response, gold)
"""

import asyncio
import logging
import os
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from types import TracebackType
from typing import Any

from reward.process import (
    WorkerDied,
    WorkerExpired,
    WorkerProcess,
    WorkerSettings,
    WorkerUnavailable,
)
from reward.verdict import DEFAULT, Grade, GradingPolicy

logger = logging.getLogger(__name__)

_STARTS = 3
"""Attempts to start a worker that dies while it starts, because something outside may kill it."""

_STATUS_COUNTERS = {
    "timeout": "timeouts",
    "crash": "crashes",
    "error": "errors",
    "unparsable_gold": "unparsable_golds",
    "unparsable_pred": "unparsable_preds",
    "no_answer": "no_answer",
    "uncertain": "uncertain",
}
COUNTERS = (
    "graded",
    "correct",
    "no_answer",
    "unparsable_preds",
    "unparsable_golds",
    "uncertain",
    "timeouts",
    "crashes",
    "errors",
    "restarts",
)
Asked = tuple[str, str] | tuple[str, str, str | None]
"""A response, its reference, and the grader if it is not the pool's."""
_Request = tuple["Future[Any]", dict[str, str]]


def verdict_counts(grades: Iterable[Grade]) -> Counter[str]:
    """Count verdicts by what they say, under the names of `COUNTERS`."""
    counts: Counter[str] = Counter()
    for grade in grades:
        counts["graded"] += 1
        counts["correct"] += grade.correct
        if grade.status in _STATUS_COUNTERS:
            counts[_STATUS_COUNTERS[grade.status]] += 1
    return counts


class VerifierPool:
    """Long-lived grading processes behind `submit`, `grade_many` and `grade_stream`.

    Args:
        workers: number of worker processes.
        timeout: maximum seconds for one answer. The worker's alarm fires after this many seconds
            rounded down (at least one); the parent kills the worker ``slack`` seconds after the
            timeout.
        grader: name of the grader, see `reward.graders`; a request may name another.
        policy: what counts as equal.
        memory_gib: address-space limit of a worker; exceeding it gives an ``error`` verdict.
        recycle: a worker is replaced after this many answers, because libraries keep caches.
        start_timeout: maximum seconds for the start of a worker.

    Raises:
        ValueError: for an invalid worker count, timeout or grader.
        RuntimeError: if a worker cannot be started; the message includes its output. Once no
            worker is left and none can be started, every future gets this error.
    """

    def __init__(
        self,
        workers: int = 1,
        timeout: float = 5.0,
        grader: str = "rlvr",
        policy: GradingPolicy = DEFAULT,
        memory_gib: float = 4.0,
        recycle: int = 5000,
        start_timeout: float = 60.0,
        slack: float = 0.5,
    ) -> None:
        from reward.graders import grader_by_name

        if workers < 1:
            raise ValueError(f"workers={workers}: a pool needs at least 1 worker")
        if timeout <= 0:
            raise ValueError(f"timeout={timeout}: give a number of seconds above 0")
        if recycle < 1:
            raise ValueError(f"recycle={recycle}: a worker must grade at least 1 answer")
        grader_by_name(grader)
        self._slots: list[_Slot] = []
        self.workers = workers
        self.timeout = timeout
        self._settings = WorkerSettings(grader, policy, max(1, int(timeout)), memory_gib)
        self._deadline = timeout + slack
        self._recycle = recycle
        self._start_timeout = start_timeout
        self._reset()
        os.register_at_fork(after_in_child=_resetter(self))

    # -- start and end ------------------------------------------------------------------------

    def start(self) -> "VerifierPool":
        """Start the workers and wait until each is ready. Calling it again does nothing."""
        with self._lock:
            if self._slots:
                return self
            if self._closed:
                raise RuntimeError("the verifier pool is closed; create a new one")
            self._slots = [_Slot(self, index) for index in range(self.workers)]
        for slot in self._slots:
            slot.thread.start()
        for slot in self._slots:
            if not slot.started.wait(_STARTS * (self._start_timeout + 5)):
                self.close()
                raise WorkerUnavailable("verifier worker: its thread does not answer")
            if slot.failure is not None:
                failure = slot.failure
                self.close()
                raise failure
        return self

    def close(self) -> None:
        """Stop every worker; requests not yet graded are cancelled."""
        with self._lock:
            self._closed, slots = True, self._slots
            self._slots = []
        for slot in slots:
            slot.stop.set()
            if slot.worker is not None:
                slot.worker.signal_kill()
        for _ in slots:
            self._requests.put(None)
        for slot in slots:
            slot.thread.join(timeout=10)
        while True:
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                break
            if request is not None:
                request[0].cancel()

    def __enter__(self) -> "VerifierPool":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- grading ------------------------------------------------------------------------------

    def submit(self, response: str, gold: str, grader: str | None = None) -> "Future[Grade]":
        """Queue one response; its future returns a `Grade` and never a grading error.

        Raises:
            ValueError: for an unknown ``grader``; None is the pool's.
        """
        return self._put({"response": response, "gold": gold, **_by(grader)})

    def submit_pair(self, pred: str, gold: str) -> "Future[Grade]":
        """Queue one bare answer, which is compared as in `reward.equivalent`."""
        return self._put({"pred": pred, "gold": gold})

    def grade_many(
        self,
        pairs: Sequence[Asked],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Grade]:
        """Grade (response, gold) pairs; one verdict per pair, in the same order.

        A third entry names another grader than the pool's. ``progress`` is told how many are done,
        out of how many.
        """
        futures = [self.submit(*pair) for pair in pairs]
        grades = []
        for future in futures:
            grades.append(future.result())
            progress(len(grades), len(futures))
        return grades

    def grade_stream(self, pairs: Iterable[Asked], ahead: int = 64) -> Iterator[tuple[int, Grade]]:
        """Yield (index, verdict) as verdicts arrive; read at most ``ahead`` pairs in advance."""
        waiting: dict[Future[Grade], int] = {}
        source = enumerate(pairs)
        exhausted = False
        while waiting or not exhausted:
            while not exhausted and len(waiting) < max(ahead, self.workers):
                item = next(source, None)
                if item is None:
                    exhausted = True
                else:
                    waiting[self.submit(*item[1])] = item[0]
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()

    async def grade_async(self, response: str, gold: str) -> Grade:
        """Grade one response from a coroutine without blocking its event loop."""
        return await asyncio.wrap_future(self.submit(response, gold))

    def check_golds(
        self, golds: Sequence[str], graders: Sequence[str | None] | None = None
    ) -> list[tuple[int, str]]:
        """List (index, reason) of the gold answers that no answer could be compared with.

        Args:
            golds: the references.
            graders: the grader of each, where it is not the pool's.
        """
        named = graders or [None] * len(golds)
        futures = [
            self._put({"check": gold, **_by(grader)})
            for gold, grader in zip(golds, named, strict=True)
        ]
        reasons = [future.result() for future in futures]
        return [(index, reason) for index, reason in enumerate(reasons) if reason is not None]

    @property
    def counters(self) -> dict[str, int]:
        """A snapshot of the counts so far (see `COUNTERS`)."""
        with self._lock:
            return {name: self._counts[name] for name in COUNTERS}

    # -- inside -------------------------------------------------------------------------------

    def _put(self, message: dict[str, str]) -> "Future[Any]":
        if not self._slots:
            self.start()
        future: Future[Any] = Future()
        with self._lock:  # after the last slot has failed, nobody takes requests
            if self._failure is not None:
                future.set_exception(self._failure)
                return future
            self._requests.put((future, message))
        if self._closed:
            future.cancel()
        return future

    def _reset(self) -> None:
        """Reset the state: at construction, and in a forked child, which has no threads."""
        self._lock = threading.Lock()
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._slots = []
        self._counts: Counter[str] = Counter()
        self._closed = False
        self._failure: Exception | None = None

    def _count(self, grade: Grade) -> None:
        with self._lock:
            self._counts.update(verdict_counts([grade]))

    def _count_unparsable_gold(self) -> None:
        with self._lock:
            self._counts["unparsable_golds"] += 1

    def _count_restart(self) -> None:
        with self._lock:
            self._counts["restarts"] += 1

    def _give_up(self, slot: "_Slot", failure: Exception) -> None:
        """Go on without a slot; without any, fail the waiting requests and those to come."""
        with self._lock:
            slot.failure = failure
            left = sum(other.failure is None for other in self._slots)
            if left:
                logger.warning("%s; %d of %d workers are left", failure, left, self.workers)
                return
            self._failure = failure
            while not self._requests.empty():
                request = self._requests.get_nowait()
                if request is not None and request[0].set_running_or_notify_cancel():
                    request[0].set_exception(failure)


def _by(grader: str | None) -> dict[str, str]:
    """What a request says of its grader."""
    from reward.graders import grader_by_name

    if grader is None:
        return {}
    grader_by_name(grader)
    return {"grader": grader}


def _resetter(pool: VerifierPool) -> Callable[[], None]:
    """Create the fork hook of a pool without keeping the pool alive."""
    reference = weakref.ref(pool)

    def reset() -> None:
        forked = reference()
        if forked is not None:
            for slot in forked._slots:
                if slot.worker is not None:
                    slot.worker.abandon()
            forked._reset()

    return reset


class _Slot:
    """One worker process and the thread that feeds it.

    The thread lives as long as the pool: on Linux a worker dies with the thread that started it.
    """

    def __init__(self, pool: VerifierPool, index: int) -> None:
        self.pool = pool
        self.worker: WorkerProcess | None = None
        self.started = threading.Event()
        self.stop = threading.Event()
        self.standby: WorkerProcess | None = None
        self.failure: Exception | None = None
        self.graded = 0
        self.thread = threading.Thread(target=self._run, name=f"verifier-slot-{index}", daemon=True)

    def _run(self) -> None:
        try:
            self._start_worker()
            self.started.set()
            while not self.stop.is_set():
                request = self.pool._requests.get()
                if request is None:
                    break
                if request[0].set_running_or_notify_cancel():
                    self._serve(*request)
        except Exception as error:  # the thread's boundary: no request may wait for a dead thread
            if not self.stop.is_set():
                self.pool._give_up(self, error)
        finally:
            self.started.set()
            for worker in (self.worker, self.standby):
                if worker is not None:
                    worker.kill()

    def _serve(self, future: "Future[Any]", message: dict[str, str]) -> None:
        """Resolve one request, whatever happens."""
        try:
            self._ensure_worker()
            future.set_result(self._grade(message))
        except Exception as error:  # handed to whoever asked
            future.set_exception(error)
            if isinstance(error, WorkerUnavailable):
                raise
        if not self.stop.is_set():
            self._ensure_worker()
            self._recycle()

    def _grade(self, message: dict[str, str]) -> Grade | str | None:
        reply = self._exchange(message)
        if "check" in message:
            reason: str | None = reply["reason"]
            if reason is not None:
                self.pool._count_unparsable_gold()
            return reason
        grade = Grade(**reply)
        self.pool._count(grade)
        return grade

    def _exchange(self, message: dict[str, str]) -> dict[str, Any]:
        """Send one request; always return one reply. A worker without one is killed."""
        assert self.worker is not None
        began = time.monotonic()
        try:
            reply = self.worker.exchange(message, self.pool._deadline)
            self.graded += 1
            return reply
        except WorkerExpired:
            self._end_worker()
            seconds = time.monotonic() - began
            reason = f"worker killed after {seconds:.1f} s without a verdict"
            return _verdict("timeout", reason)
        except WorkerDied as died:
            self._end_worker()
            return _verdict("crash", str(died))

    def _start_worker(self) -> None:
        """Start a worker, again where it dies while it starts.

        Raises:
            WorkerUnavailable: It cannot be started, or is not ready in time.
        """
        for attempt in range(1, _STARTS + 1):
            self.worker, self.graded = WorkerProcess(self.pool._settings), 0
            try:
                self.worker.wait_ready(self.pool._start_timeout)
                return
            except WorkerUnavailable as error:
                expired = isinstance(error.__cause__, TimeoutError)
                if expired or attempt == _STARTS or self.stop.is_set():
                    raise

    def _ensure_worker(self) -> None:
        """Replace a worker that ended, or was killed from outside, between two answers."""
        if self.worker is None or not self.worker.alive():
            self._end_worker()
            self._start_worker()

    def _end_worker(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker = None
            self.pool._count_restart()

    def _recycle(self) -> None:
        """Replace the worker with one that was started a little earlier, so that no caller
        waits."""
        try:
            if self.standby is None and self.graded >= self.pool._recycle - 200:
                self.standby = WorkerProcess(self.pool._settings)
            if self.standby is None or self.graded < self.pool._recycle:
                return
            self.standby.wait_ready(self.pool._start_timeout)
        except WorkerUnavailable as error:
            logger.warning("%s; the worker that it was to replace goes on", error)
            self.standby, self.graded = None, 0
            return
        assert self.worker is not None
        self.worker.kill()
        self.worker, self.standby, self.graded = self.standby, None, 0


def _verdict(status: str, reason: str) -> dict[str, Any]:
    from reward.worker import failure

    return failure(status, reason)
