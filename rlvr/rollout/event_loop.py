"""An event loop in a thread of its own.

A signal's handler may raise in the main thread at any instruction. In the midst of a callback of an
event loop the exception would be reported and dropped; waiting here for another thread, it is
raised where it belongs.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class EventLoop:
    """Runs coroutines for threads that are not asynchronous."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=name)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine and wait for it; what interrupts the waiting calls it off."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stream(
        self,
        work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, None]],
        interval_s: float,
    ) -> Generator[Any, None, None]:
        """What a coroutine hands to the function it is given, in the caller's thread.

        Args:
            work: Makes the coroutine of such a function.
            interval_s: None is yielded after so many seconds without anything.
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
        """End what still runs, and the thread."""
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
