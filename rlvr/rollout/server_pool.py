"""Several servers used as one: which server gets which completion, and what happens on failures.

A completion goes to the server with the lowest load. A server is *out*, and gets no work, if it
gave no answer, failed its health check, or failed several completions in a row. Its completions go
to the other servers, with the same seeds. It is tried again after growing pauses. It is let in
after it was examined, has loaded the newest weights and was proven to run them, because it may have
been restarted with other weights.

Everything runs in one event loop; nothing runs between calls.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rlvr.lazy import aiohttp
from rlvr.rollout.engine import Sample
from rlvr.rollout.nccl_transfer import NcclSender
from rlvr.rollout.server import Server, ServerFailedError, ServerRefusedError
from rlvr.rollout.weight_store import WeightStore
from rlvr.rollout.weight_sync import Difference
from rlvr.rollout.weight_transfer import PolicySource, Sender

# A server that fails this many completions in a row is out.
_STRIKES = 3
_PROBE_S = 1.0
_BRIEF_S = 3.0
_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits and retries of the pool; see ``VllmServerEngineSettings``."""

    in_flight: int
    start_timeout_s: float
    outage_timeout_s: float
    request_timeout_s: float
    silence_timeout_s: float
    max_retries: int


@dataclass(slots=True)
class PendingCompletion:
    """One completion to generate; ``failures`` counts its failed attempts."""

    number: int
    prompt: list[int]
    seed: int
    failures: int = 0


def backoff(attempt: int) -> float:
    """Seconds to wait before attempt ``attempt`` (1 is the first retry), with jitter."""
    whole = min(_BACKOFF_S * 2.0**attempt, _LONGEST_BACKOFF_S)
    # Jitter affects no result; it keeps many clients from retrying at the same moment.
    return whole * random.uniform(0.5, 1.5)


class ServerPool:
    """Servers, the weights that they must run, and counts of failures.

    Args:
        addresses: One address per server.
        limits: Time limits and retries.
        weights: The weights that the servers must run.
        key: API key of all servers.
        key_variable: Environment variable that holds the key, for messages.
        source: Weights that are sent from GPU to GPU; if None, servers read them from the folder.
        repair: Set to False only to show that the proof finds a stale head.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        limits: Limits,
        weights: WeightStore,
        key: str | None,
        key_variable: str,
        source: PolicySource | None = None,
        repair: bool = True,
    ) -> None:
        # Connections are not kept open: one that the server closes would count as a failure.
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
        """Servers that run the newest weights."""
        return [server for server in self.servers if server.loaded == self._wanted > 0]

    def longest(self) -> int | None:
        """Longest sequence in tokens that all servers accept, as far as known."""
        return min((s.longest for s in self.servers if s.longest is not None), default=None)

    async def close(self) -> None:
        """Close the connections."""
        for sender in self._senders.values():
            sender.shutdown()
        self._senders.clear()
        await self._session.close()

    # -- weights ---------------------------------------------------------------------------

    async def load(self) -> Difference | None:
        """Load the newest weights into the servers; return the worst proof, or None if nothing was
        new.

        The first time all servers must come up; later one is enough.

        Raises:
            ValueError: Too few servers came up in time, or one is not set up as required.
            StaleWeightsError: A server does not compute with the weights.
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
        """The proof; None if the server fails or, after the start of the run, is refused."""
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
        # A server that is out must not delay the others at every sync.
        given_up = self._started and not server.examined
        server.look_for_key()
        silence_s = self.limits.silence_timeout_s
        await server.health(min(silence_s, _BRIEF_S) if given_up else silence_s)
        if not server.examined:
            await server.examine()
        await server.note_weights()
        await self._give_weights(server)
        difference = await self._prove(server)
        server.loaded, server.strikes = self._wanted, 0
        return difference

    async def _prove(self, server: Server) -> Difference:
        """The proof that it has the newest weights, and no cache of others.

        A score fills the cache and reads none of it. So it comes before the cache is dropped, and
        the same tokens show whether it was, whatever completions had filled it.
        """
        sequence = self.weights.sequence
        if self.repair:
            await server.repack()
        logprobs = await server.score(sequence)
        await server.drop_cache()
        cached = await server.cached_tokens(sequence)
        self.weights.check_arrival(await server.noted_weights(), lambda: logprobs)
        return self.weights.check(logprobs, cached=cached)

    async def _give_weights(self, server: Server) -> None:
        if self.source is None:
            await server.reload(str(self.weights.folder.model.resolve()))
            return
        world_size = await server.world_size()
        # One after another, because they all read the same policy.
        async with self._sending:
            if server.address not in self._senders:
                self._senders[server.address] = NcclSender(
                    server.address,
                    world_size,
                    self.source,
                    server.look_for_key(),
                    self.limits.request_timeout_s,
                )
            try:
                await asyncio.to_thread(self._senders[server.address].send_weights)
            except asyncio.CancelledError:
                self._drop_sender(server)  # its thread may still be in a broadcast
                raise

    def _drop_sender(self, server: Server) -> None:
        sender = self._senders.pop(server.address, None)
        if sender is not None:
            sender.shutdown()

    def _put_out(self, server: Server, reason: str) -> None:
        # The transfer group of a restarted server is useless.
        self._drop_sender(server)
        if server.examined:
            self.lost += 1
        server.loaded, server.examined, server.reason = 0, False, reason

    def _account(self, patience: float) -> str:
        states = [f"{s.address}: {s.reason}" for s in self.servers if s not in self.ready()]
        return (
            f"waited {patience:g} s for vLLM servers (rollout.engine.addresses), "
            f"{len(self.ready())} of {len(self.servers)} are ready; {'; '.join(states)}; "
            "start one with: rlvr serve MODEL --port PORT"
        )

    # -- completions -----------------------------------------------------------------------

    async def complete(
        self,
        completions: Sequence[PendingCompletion],
        sampling: dict[str, Any],
        finished: Callable[[int, Sample], None],
    ) -> None:
        """Generate all completions; call ``finished`` with the number and sample of each, in any
        order.

        Raises:
            ValueError: A completion failed too often, or no server was ready for too long.
        """
        await _Work(self, completions, sampling, finished).run()


class _Work:
    """One call of :meth:`ServerPool.complete`."""

    def __init__(
        self,
        pool: ServerPool,
        completions: Sequence[PendingCompletion],
        sampling: dict[str, Any],
        finished: Callable[[int, Sample], None],
    ) -> None:
        self.pool, self.limits = pool, pool.limits
        self.sampling, self.finished = sampling, finished
        self.waiting = deque(completions)
        self.left = len(completions)
        self.running: dict[asyncio.Task[None], tuple[Server, PendingCompletion]] = {}
        # Set when a completion ends or a server comes in or goes out.
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
                # Also wake at intervals without events, to check how long no server has been ready.
                # (Not with wait_for, which in Python 3.11 may swallow a cancellation.)
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
        """Give waiting completions to the servers with the lowest load."""
        while self.waiting:
            free = [s for s in self.pool.ready() if s.in_flight < self.limits.in_flight]
            if not free:
                return
            server = min(free, key=lambda candidate: candidate.in_flight)
            completion = self.waiting.popleft()
            server.in_flight += 1
            task = asyncio.create_task(self._do(server, completion))
            self.running[task] = (server, completion)
            task.add_done_callback(self._ended)

    def _check(self) -> None:
        if self.pool.ready():
            self.dark_since = None
            return
        self.dark_since = self.dark_since or _now()
        if _now() - self.dark_since > self.limits.outage_timeout_s:
            raise ValueError(self.pool._account(self.limits.outage_timeout_s))

    async def _do(self, server: Server, completion: PendingCompletion) -> None:
        sample = await server.generate(completion.prompt, completion.seed, self.sampling)
        server.strikes = 0
        self.left -= 1
        self.finished(completion.number, sample)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Handle a completion that succeeded, failed, or was cancelled because its server went
        out."""
        server, completion = self.running.pop(task)
        server.in_flight -= 1
        self.news.set()
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            return
        if isinstance(error, ServerFailedError):
            server.strikes += 1
            if error.gone or server.strikes >= _STRIKES:
                self._put_out(server, str(error))
            completion.failures += 1
            if completion.failures > self.limits.max_retries:
                self.failure = ValueError(
                    f"a completion failed {completion.failures} times with "
                    f"rollout.engine.max_retries = {self.limits.max_retries}; the last time: "
                    f"{error}"
                )
        elif not isinstance(error, asyncio.CancelledError):
            self.failure = error
        self.pool.retries += 1
        # A cancelled completion did not fail, so retry it at once. After a failure, wait first.
        pause = backoff(completion.failures) if isinstance(error, ServerFailedError) else 0.0
        asyncio.get_running_loop().call_later(pause, self._again, completion)

    def _again(self, completion: PendingCompletion) -> None:
        self.waiting.append(completion)
        self.news.set()

    def _put_out(self, server: Server, reason: str) -> None:
        """Give the server no more work, and give its completions to other servers."""
        self.pool._put_out(server, reason)
        for task, (owner, _) in self.running.items():
            if owner is server:
                task.cancel()
        self.news.set()

    async def _monitor(self, server: Server) -> None:
        """Check that a working server is alive, and whether one that is out is back."""
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
            except Exception as error:  # the boundary of the task; run() raises it
                self.failure = error
                self.news.set()

    async def _let_in(self, server: Server) -> None:
        """Load the weights into a server, unless newer weights have already been written."""
        weights = self.pool.weights
        if not weights.lock.acquire(blocking=False):
            return  # the learner is writing; try again later
        try:
            if weights.serial == self.pool._wanted:
                await self.pool._bring_up(server)
                self.news.set()
        finally:
            weights.lock.release()


def _now() -> float:
    return asyncio.get_running_loop().time()
