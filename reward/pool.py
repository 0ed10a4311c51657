"""A pool of killable grading processes.

Symbolic comparison can hang, and a thread or an executor cannot be stopped: the only reliable end
is SIGKILL. So each slot of the pool owns one worker process and one thread of this process. The
thread sends an answer over the worker's own socket, waits until the deadline, and on expiry kills
that worker, records a timeout and starts another. Verdicts come back as futures, each tied to its
request, so nothing can shift or get lost.

A worker is a fresh interpreter started by ``exec`` (not ``fork``), which is safe in a process with
threads or a CUDA context; it imports neither torch nor the caller's ``__main__`` (a script without
an ``if __name__`` guard is fine). Inside a worker an alarm of whole seconds ends most hangs early
and cheaply; see `reward.worker`.

    with VerifierPool(workers=2) as pool:
        future = pool.submit(response, gold)      # from any thread; streams back
        grades = pool.grade_many(pairs)           # in the order of the pairs
        grade = await pool.grade_async(response, gold)
"""

import asyncio
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

from reward.process import WorkerDied, WorkerExpired, WorkerProcess, WorkerSettings
from reward.verdict import DEFAULT, Grade, Policy

_STATUS_COUNTERS = {
    "timeout": "timeouts",
    "crash": "crashes",
    "error": "errors",
    "unparsable_gold": "unparsable_golds",
    "unparsable_pred": "unparsable_preds",
    "no_answer": "no_answer",
}
COUNTERS = (
    "graded",
    "correct",
    "no_answer",
    "unparsable_preds",
    "unparsable_golds",
    "timeouts",
    "crashes",
    "errors",
    "restarts",
)
_Request = tuple["Future[Any]", dict[str, str]]


class VerifierPool:
    """Long-lived grading processes behind `submit`, `grade_many` and `grade_stream`.

    Args:
        workers: number of worker processes.
        timeout: seconds one answer may take. The worker's own alarm fires at the whole seconds
            below it (at least one); the parent kills the worker ``slack`` seconds after it.
        grader: name of the grader, see `reward.graders.GRADERS`.
        policy: what counts as equal.
        memory_gib: address-space limit of a worker; more than that is an ``error`` verdict.
        recycle: a worker is replaced after that many answers (libraries beneath keep caches).
        start_timeout: seconds a worker may take to start.

    Raises:
        ValueError: for a worker count, timeout or grader that cannot be used.
        RuntimeError: when a worker cannot be started (with what it wrote on the way).
    """

    def __init__(
        self,
        workers: int = 1,
        timeout: float = 5.0,
        grader: str = "rlvr",
        policy: Policy = DEFAULT,
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

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> "VerifierPool":
        """Start the workers and wait until each is ready. Calling it again does nothing."""
        with self._lock:
            if self._slots:
                return self
            if self._closed:
                raise RuntimeError("the verifier pool is closed; make a new one")
            self._slots = [_Slot(self, index) for index in range(self.workers)]
        for slot in self._slots:
            slot.thread.start()
        for slot in self._slots:
            if not slot.started.wait(self._start_timeout + 5):
                self.close()
                raise RuntimeError(f"verifier worker: not ready after {self._start_timeout} s")
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

    def submit(self, response: str, gold: str) -> "Future[Grade]":
        """Queue one response; its future holds a `Grade` and never a grading error."""
        return self._put({"response": response, "gold": gold})

    def submit_pair(self, pred: str, gold: str) -> "Future[Grade]":
        """Queue one bare answer, compared as `reward.equivalent` does."""
        return self._put({"pred": pred, "gold": gold})

    def grade_many(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Grade (response, gold) pairs; one verdict per pair, in the same order."""
        futures = [self.submit(response, gold) for response, gold in pairs]
        return [future.result() for future in futures]

    def grade_stream(
        self, pairs: Iterable[tuple[str, str]], ahead: int = 64
    ) -> Iterator[tuple[int, Grade]]:
        """Yield (index, verdict) as verdicts arrive, reading at most ``ahead`` pairs ahead."""
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

    def check_golds(self, golds: Sequence[str]) -> list[tuple[int, str]]:
        """List (index, reason) of the gold answers that no answer could be compared with."""
        futures = [self._put({"check": gold}) for gold in golds]
        reasons = [future.result() for future in futures]
        return [(index, reason) for index, reason in enumerate(reasons) if reason is not None]

    @property
    def counters(self) -> dict[str, int]:
        """A snapshot of what has happened so far (see `COUNTERS`)."""
        with self._lock:
            return {name: self._counts[name] for name in COUNTERS}

    # -- inside -------------------------------------------------------------------------------

    def _put(self, message: dict[str, str]) -> "Future[Any]":
        if not self._slots:
            self.start()
        future: Future[Any] = Future()
        self._requests.put((future, message))
        if self._closed:
            future.cancel()
        return future

    def _reset(self) -> None:
        """Begin as new: at construction, and in a forked child, whose threads are not there."""
        self._lock = threading.Lock()
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._slots = []
        self._counts: Counter[str] = Counter()
        self._closed = False

    def _count(self, grade: Grade) -> None:
        with self._lock:
            self._counts["graded"] += 1
            self._counts["correct"] += grade.correct
            if grade.status in _STATUS_COUNTERS:
                self._counts[_STATUS_COUNTERS[grade.status]] += 1

    def _count_unparsable_gold(self) -> None:
        with self._lock:
            self._counts["unparsable_golds"] += 1

    def _count_restart(self) -> None:
        with self._lock:
            self._counts["restarts"] += 1


def _resetter(pool: VerifierPool) -> Callable[[], None]:
    """Make the fork hook of a pool without keeping the pool alive."""
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
        self.failure: RuntimeError | None = None
        self.graded = 0
        self.thread = threading.Thread(target=self._run, name=f"verifier-slot-{index}", daemon=True)

    def _run(self) -> None:
        standby: WorkerProcess | None = None
        try:
            self.worker = self._start_worker()
        except RuntimeError as error:
            self.failure = error
        self.started.set()
        while not self.stop.is_set() and self.failure is None:
            request = self.pool._requests.get()
            if request is None:
                break
            future, message = request
            if not future.set_running_or_notify_cancel():
                continue
            result = self._grade(message)
            if self.failure is not None:
                future.set_exception(self.failure)
                break
            future.set_result(result)
            standby = self._recycle(standby)
        for worker in (self.worker, standby):
            if worker is not None:
                worker.kill()
        if self.failure is not None:
            self._fail_the_rest()

    def _grade(self, message: dict[str, str]) -> Grade | str | None:
        reply = self._exchange(message)
        if "check" in message:
            if reply["reason"] is not None:
                self.pool._count_unparsable_gold()
            reason: str | None = reply["reason"]
            return reason
        grade = Grade(**reply)
        self.pool._count(grade)
        return grade

    def _exchange(self, message: dict[str, str]) -> dict[str, Any]:
        """Send one request; whatever happens, return one reply and leave a live worker."""
        assert self.worker is not None
        if not self.worker.alive():
            # It died between two answers (killed from outside): not this answer's fault.
            self._replace()
        began = time.monotonic()
        try:
            reply = self.worker.exchange(message, self.pool._deadline)
            self.graded += 1
            return reply
        except WorkerExpired:
            if not self.stop.is_set():
                self._replace()
            seconds = time.monotonic() - began
            return _verdict("timeout", f"worker killed after {seconds:.1f} s without a verdict")
        except WorkerDied as died:
            if not self.stop.is_set():
                self._replace()
            return _verdict("crash", str(died))

    def _start_worker(self) -> WorkerProcess:
        worker = WorkerProcess(self.pool._settings)
        worker.wait_ready(self.pool._start_timeout)
        return worker

    def _replace(self) -> None:
        assert self.worker is not None
        self.worker.kill()
        self.pool._count_restart()
        self.graded = 0
        try:
            self.worker = self._start_worker()
        except RuntimeError as error:
            self.failure = error

    def _recycle(self, standby: WorkerProcess | None) -> WorkerProcess | None:
        """Swap in a worker that was started a little earlier, so that nobody waits for it."""
        if standby is None and self.graded >= self.pool._recycle - 200:
            standby = WorkerProcess(self.pool._settings)
        if standby is None or self.graded < self.pool._recycle:
            return standby
        try:
            standby.wait_ready(self.pool._start_timeout)
        except RuntimeError as error:
            self.failure = error
            return standby
        assert self.worker is not None
        self.worker.kill()
        self.worker, self.graded = standby, 0
        return None

    def _fail_the_rest(self) -> None:
        """Without any live slot, waiting callers must hear why instead of waiting for ever."""
        assert self.failure is not None
        if any(slot.failure is None for slot in self.pool._slots):
            return
        while True:
            try:
                request = self.pool._requests.get_nowait()
            except queue.Empty:
                return
            if request is not None and request[0].set_running_or_notify_cancel():
                request[0].set_exception(self.failure)


def _verdict(status: str, reason: str) -> dict[str, Any]:
    from reward.worker import failure

    return failure(status, reason)
