"""Threads that do not keep a program from ending, and an event loop in one of them.

A signal handler may raise in the main thread at any instruction. Inside a callback of an event loop
the exception would be reported and dropped. If the main thread waits here for another thread, the
exception is raised in the caller.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_PATIENCE_S = 10.0


class EventLoop:
    """Runs coroutines for threads that are not asynchronous."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=name)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine and wait for it; an exception while waiting cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, _Result]) -> "Future[_Result]":
        """Have a coroutine run."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stream(
        self,
        work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, None]],
        interval_s: float,
    ) -> Generator[Any, None, None]:
        """Yield, in the caller's thread, the values that a coroutine passes to its callback.

        Args:
            work: Makes the coroutine from the callback.
            interval_s: None is yielded after this many seconds without a value.
        """
        items: queue.SimpleQueue[tuple[Any] | None] = queue.SimpleQueue()
        future: Future[None] = asyncio.run_coroutine_threadsafe(
            work(lambda item: items.put((item,))), self._loop
        )
        future.add_done_callback(lambda _: items.put(None))
        try:
            while True:
                try:
                    item = items.get(timeout=interval_s)
                except queue.Empty:
                    yield None
                    continue
                if item is None:
                    break
                yield item[0]
            future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel running coroutines and end the thread; one that blocks it is left to itself."""
        ended = asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
        try:
            ended.result(_PATIENCE_S)
        except TimeoutError:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class Threads:
    """Threads that take work from one queue; they do not keep the program from ending.

    Args:
        count: How many.
        name: Of the threads.
        make: Makes what each thread has for itself and hands to its work.
    """

    def __init__(self, count: int, name: str, make: Callable[[], Any] = lambda: None) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[Any], Any]] | None]
        self._work, self._make, self.count = queue.SimpleQueue(), make, count
        for number in range(count):
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True).start()

    def submit(self, work: Callable[[Any], Any]) -> "Future[Any]":
        """Have some thread do it."""
        future: Future[Any] = Future()
        self._work.put((future, work))
        return future

    def close(self) -> None:
        """End every thread after the work that was given."""
        for _ in range(self.count):
            self._work.put(None)

    def _run(self) -> None:
        own = self._make()
        while (given := self._work.get()) is not None:
            future, work = given
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(own))
            except BaseException as error:  # the thread's boundary: handed to whoever waits
                future.set_exception(error)
