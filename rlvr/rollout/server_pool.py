"""Several servers as one: who gets which completion, and what happens when a server fails.

A completion goes to the server with the least to do. A server that is *out* gets nothing: one that
gave no answer, whose health check failed, or that failed at several completions in a row. What it
had to do goes to the others, from the same seeds. It is asked again after ever longer pauses, and
is let in once it was examined, has read the newest weights and was proven to run them, for it may
have been started anew in the meantime with others.

Everything here runs in one event loop; nothing runs between calls.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from rlvr.rollout.engine import Sample
from rlvr.rollout.published import PublishedWeights
from rlvr.rollout.server import Server, ServerFailedError, ServerRefusedError
from rlvr.rollout.weight_transfer import PolicySource, Sender, nccl_sender
from rlvr.rollout.weights import Difference

# A server that fails at so many completions in a row is out.
_STRIKES = 3
_PROBE_S = 1.0
_BRIEF_S = 3.0
_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient the pool is; see ``VllmServerEngineSettings``."""

    in_flight: int
    start_timeout_s: float
    outage_timeout_s: float
    request_timeout_s: float
    silence_timeout_s: float
    max_retries: int


@dataclass(slots=True)
class Job:
    """One completion; ``failures`` counts how often it was tried in vain."""

    number: int
    prompt: list[int]
    seed: int
    failures: int = 0


def backoff(attempt: int) -> float:
    """Seconds to wait before attempt ``attempt`` (1 is the first repetition), with jitter."""
    whole = min(_BACKOFF_S * 2.0**attempt, _LONGEST_BACKOFF_S)
    # Not part of any result: many clients must not come back at the same moment.
    return whole * random.uniform(0.5, 1.5)


class ServerPool:
    """Servers, the weights they are to run, and counts of what went wrong.

    Args:
        addresses: One for each server.
        limits: How patient to be.
        weights: What they are to run.
        key: API key of all of them.
        key_variable: Where it comes from.
        source: Weights that go from GPU to GPU; None has them read from the folder.
        repair: Off only to show that the proof finds a stale head.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        limits: Limits,
        weights: PublishedWeights,
        key: str | None,
        key_variable: str,
        source: PolicySource | None = None,
        repair: bool = True,
    ) -> None:
        # Connections are not kept: one that the server closes meanwhile would count as a failure.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector)
        self.servers = [
            Server(address, self._session, key, key_variable, limits.request_timeout_s)
            for address in addresses
        ]
        self.limits, self.weights, self.repair = limits, weights, repair
        self.source = source
        self._senders: dict[str, Sender] = {}
        self._sending = asyncio.Lock()
        self.retries = 0
        self.lost = 0
        self._started = False
        self._wanted = 0

    def ready(self) -> list[Server]:
        """Servers that run the wanted weights."""
        return [server for server in self.servers if server.loaded == self._wanted > 0]

    def longest(self) -> int | None:
        """Longest sequence that all of them take, as far as known."""
        return min((s.longest for s in self.servers if s.longest is not None), default=None)

    async def close(self) -> None:
        """Give up the connections."""
        for sender in self._senders.values():
            sender.shutdown()
        self._senders.clear()
        await self._session.close()

    # -- weights ---------------------------------------------------------------------------

    async def load(self) -> Difference | None:
        """Have the servers read the newest weights; the worst proof, None if none was news.

        All of them have to come up the first time; later one is enough to go on.

        Raises:
            ValueError: Too few are there in time, or one is not as it has to be.
            StaleWeightsError: One does not compute with the weights.
        """
        self._wanted = self.weights.serial
        if len(self.ready()) == len(self.servers):
            return None
        patience = self.limits.outage_timeout_s if self._started else self.limits.start_timeout_s
        deadline = _now() + patience
        found: list[Difference] = []
        attempt = 0
        while True:
            todo = [server for server in self.servers if server.loaded != self._wanted]
            results = await asyncio.gather(*(self._try_to_bring_up(server) for server in todo))
            found += [result for result in results if result is not None]
            enough = 1 if self._started else len(self.servers)
            if len(self.ready()) >= enough:
                break
            if _now() > deadline:
                raise ValueError(self._account(patience))
            attempt += 1
            await asyncio.sleep(min(backoff(attempt), max(0.0, deadline - _now()) + 0.01))
        self._started = True
        return max(found, key=lambda difference: difference.mean, default=None)

    async def _try_to_bring_up(self, server: Server) -> Difference | None:
        """The proof, or None where the server fails or, once the run has begun, is refused."""
        try:
            return await self._bring_up(server)
        except ServerFailedError as error:
            self._put_out(server, str(error))
        except ServerRefusedError as error:
            self._put_out(server, str(error))
            if not self._started:
                raise
        return None

    async def _bring_up(self, server: Server) -> Difference:
        # One that was given up must not hold the others up at every sync.
        given_up = self._started and not server.examined
        silence_s = self.limits.silence_timeout_s
        await server.health(min(silence_s, _BRIEF_S) if given_up else silence_s)
        if not server.examined:
            await server.examine()
        await self._give_weights(server)
        await server.settle(repair=self.repair)
        difference = self.weights.check(await server.score(self.weights.sequence))
        server.loaded, server.strikes = self._wanted, 0
        return difference

    async def _give_weights(self, server: Server) -> None:
        if self.source is None:
            await server.reload(str(self.weights.folder.model.resolve()))
            return
        world_size, patience = await server.world_size(), self.limits.request_timeout_s
        # One after the other: they all read the same policy.
        async with self._sending:
            if server.address not in self._senders:
                self._senders[server.address] = await asyncio.to_thread(
                    nccl_sender, server.address, world_size, self.source, patience
                )
            await asyncio.to_thread(self._senders[server.address].send_weights)

    def _put_out(self, server: Server, reason: str) -> None:
        # The group of a server that was started anew is of no use.
        self._senders.pop(server.address, None)
        if server.examined:
            self.lost += 1
        server.loaded, server.examined, server.reason = 0, False, reason

    def _account(self, patience: float) -> str:
        states = [f"{s.address}: {s.reason}" for s in self.servers if s not in self.ready()]
        return (
            f"waited {patience:g} s for vLLM servers (rollout.engine.addresses), "
            f"{len(self.ready())} of {len(self.servers)} are ready; {'; '.join(states)}; "
            "one is started by: rlvr serve MODEL --port PORT"
        )

    # -- completions -----------------------------------------------------------------------

    async def complete(
        self,
        jobs: Sequence[Job],
        sampling: dict[str, Any],
        finished: Callable[[int, Sample], None],
    ) -> None:
        """Do all jobs, telling each job's number and sample as they are finished, in any order.

        Raises:
            ValueError: A job failed too often, or no server was ready for too long.
        """
        await _Work(self, jobs, sampling, finished).run()


class _Work:
    """One call of :meth:`ServerPool.complete`."""

    def __init__(
        self,
        pool: ServerPool,
        jobs: Sequence[Job],
        sampling: dict[str, Any],
        finished: Callable[[int, Sample], None],
    ) -> None:
        self.pool, self.limits = pool, pool.limits
        self.sampling, self.finished = sampling, finished
        self.waiting = deque(jobs)
        self.left = len(jobs)
        self.running: dict[asyncio.Task[None], tuple[Server, Job]] = {}
        # Something happened: a job ended, a server came in or went out.
        self.news = asyncio.Event()
        self.failure: BaseException | None = None
        self.dark_since: float | None = None

    async def run(self) -> None:
        monitors = [asyncio.create_task(self._monitor(server)) for server in self.pool.servers]
        try:
            while self.left:
                self.news.clear()
                self._hand_out()
                self._check()
                # At intervals without news, too: to see for how long nobody has been ready.
                # (Not by wait_for, which in Python 3.11 may swallow a cancellation.)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PROBE_S):
                        await self.news.wait()
                if self.failure is not None:
                    raise self.failure
        finally:
            tasks = [*monitors, *self.running]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _hand_out(self) -> None:
        """Give what waits to the servers with the least to do."""
        while self.waiting:
            free = [s for s in self.pool.ready() if s.in_flight < self.limits.in_flight]
            if not free:
                return
            server = min(free, key=lambda candidate: candidate.in_flight)
            job = self.waiting.popleft()
            server.in_flight += 1
            task = asyncio.create_task(self._do(server, job))
            self.running[task] = (server, job)
            task.add_done_callback(self._ended)

    def _check(self) -> None:
        if self.pool.ready():
            self.dark_since = None
            return
        self.dark_since = self.dark_since or _now()
        if _now() - self.dark_since > self.limits.outage_timeout_s:
            raise ValueError(self.pool._account(self.limits.outage_timeout_s))

    async def _do(self, server: Server, job: Job) -> None:
        sample = await server.generate(job.prompt, job.seed, self.sampling)
        server.strikes = 0
        self.left -= 1
        self.finished(job.number, sample)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A completion is there, failed, or was called off because its server went out."""
        server, job = self.running.pop(task)
        server.in_flight -= 1
        self.news.set()
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            return
        if isinstance(error, ServerFailedError):
            server.strikes += 1
            if error.gone or server.strikes >= _STRIKES:
                self._put_out(server, str(error))
            job.failures += 1
            if job.failures > self.limits.max_retries:
                self.failure = ValueError(
                    f"a completion failed {job.failures} times with rollout.engine.max_retries = "
                    f"{self.limits.max_retries}; the last time: {error}"
                )
        elif not isinstance(error, asyncio.CancelledError):
            self.failure = error
        self.pool.retries += 1
        # Called off is nobody's failure: at once. A failure may need time to pass.
        pause = backoff(job.failures) if isinstance(error, ServerFailedError) else 0.0
        asyncio.get_running_loop().call_later(pause, self._again, job)

    def _again(self, job: Job) -> None:
        self.waiting.append(job)
        self.news.set()

    def _put_out(self, server: Server, reason: str) -> None:
        """Give the server nothing more, and what it has to others."""
        self.pool._put_out(server, reason)
        for task, (owner, _) in self.running.items():
            if owner is server:
                task.cancel()
        self.news.set()

    async def _monitor(self, server: Server) -> None:
        """See that a server that works is alive, and ask one that is out whether it is back."""
        attempt = 0
        while True:
            ready = server in self.pool.ready()
            attempt = 0 if ready else attempt + 1
            await asyncio.sleep(_PROBE_S if ready else max(_PROBE_S, backoff(attempt)))
            try:
                if server in self.pool.ready():
                    await server.health(self.limits.silence_timeout_s)
                else:
                    await self._let_in(server)
            except (ServerFailedError, ServerRefusedError) as error:
                self._put_out(server, str(error))
            except Exception as error:  # the task's boundary: raised where the work is waited for
                self.failure = error
                self.news.set()

    async def _let_in(self, server: Server) -> None:
        """Renew a server's weights, unless newer ones than the others have are written by now."""
        weights = self.pool.weights
        if not weights.lock.acquire(blocking=False):
            return  # the learner is writing; next time
        try:
            if weights.serial == self.pool._wanted:
                await self.pool._bring_up(server)
                self.news.set()
        finally:
            weights.lock.release()


def _now() -> float:
    return asyncio.get_running_loop().time()
