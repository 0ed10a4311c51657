"""Generation with vLLM servers at network addresses, on this machine or on others.

    rlvr serve MODEL --port 8000 & rlvr serve MODEL --port 8001 &
    rlvr train RECIPE rollout.engine.name=vllm_server \
        "rollout.engine.addresses=[http://127.0.0.1:8000, http://127.0.0.1:8001]"

This engine does not own the servers. It sends them weights and completions, and handles their
failures (``rlvr.rollout.server_pool``). Each sample is a separate request with its own seed, as in
the ``vllm`` engine, so a sample is the same whichever server draws it, up to the rounding of a
different batch.

The engine does not start servers, and several runs cannot share one.
"""

import time
from collections.abc import Sequence
from contextlib import closing

from rlvr.policy.model import Policy
from rlvr.rollout.engine import Assembly, Engine, Finished, Progress, Request, Sample
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.server_key import find_key
from rlvr.rollout.server_pool import Limits, PendingCompletion, ServerPool
from rlvr.rollout.settings import VllmServerEngineSettings
from rlvr.rollout.vllm_engine import check_context, engine_seed
from rlvr.rollout.weight_store import WeightStore
from rlvr.rollout.weight_sync import Difference
from rlvr.rollout.weight_transfer import PolicySource, check_device
from rlvr.threads import EventLoop

_TICK_S = 1.0


class VllmServerEngine(Engine):
    """An :class:`~rlvr.rollout.engine.Engine` over vLLM servers.

    The first :meth:`load` connects to them.

    Args:
        policy: The learner's policy, which sets the servers' shape and precision.
        stop_ids: Token ids that end a completion.
        settings: Addresses and limits.
        longest: Longest sequence in tokens that will be requested; None is the model's context.
    """

    # Set to False only to show that the proof finds the missing repair.
    _repair = True

    def __init__(
        self,
        policy: Policy,
        stop_ids: Sequence[int],
        settings: VllmServerEngineSettings | None = None,
        longest: int | None = None,
    ) -> None:
        self.settings = settings or VllmServerEngineSettings()
        check_device(self.settings.weight_transfer, policy.device)
        self.overlaps = self.settings.overlaps
        self._policy = policy
        self.stop_ids = list(stop_ids)
        limits = [n for n in (longest, policy.context_length) if n]
        self.max_length: int | None = min(limits, default=None)
        self._weights = WeightStore(
            policy,
            policy.precision,
            self.settings.weights_folder,
            self.settings.sync_tolerance,
            self.max_length,
        )
        self._loop: EventLoop | None = None
        self._pool: ServerPool | None = None
        self._version = 0

    @property
    def policy_version(self) -> int:
        """Version of the weights that the servers were last proven to run."""
        return self._version

    def publish(self, policy: Policy, version: int) -> dict[str, float]:
        """Write the weights to the folder; see the protocol."""
        began = time.perf_counter()
        self._weights.write(policy, version, files=self.settings.weight_transfer == "folder")
        return {"sync/write_seconds": time.perf_counter() - began}

    def load(self) -> dict[str, float]:
        """Load the weights into every server and prove that it uses them; see the protocol.

        Raises:
            StaleWeightsError: A server does not compute with the new weights.
            ValueError: A server is missing, or not set up as required.
        """
        began = time.perf_counter()
        with self._weights.lock:
            if self._loop is None:
                self._loop = EventLoop("vllm servers")
            if self._pool is None:
                self._pool = self._loop.run(self._make_pool())
            difference = self._loop.run(self._pool.load())
            self._version = self._weights.version
        limits = [n for n in (self.max_length, self._pool.longest()) if n]
        self.max_length = min(limits, default=None)
        return self._counts(self._pool) | self._proof(difference, time.perf_counter() - began)

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Sample]]:
        """See :class:`~rlvr.rollout.engine.Engine`; needs a :meth:`sync` first.

        With top-p or top-k the log-probabilities are those of the truncated distribution.

        Raises:
            ValueError: A prompt leaves no room for a token, or the servers failed too often.
        """
        pool, loop = self._pool, self._loop
        assert pool is not None, "an engine has no weights before its first sync"
        assert loop is not None
        setting = "--max-model-len of the servers"
        check_context(requests, sampling, self.max_length, setting)
        assembly = Assembly(requests, progress, finished)
        completions = [
            PendingCompletion(
                number,
                list(requests[request].prompt_ids),
                engine_seed(requests[request].seeds[sample]),
            )
            for number, request, sample in assembly.missing()
        ]
        fields = {**sampling.model_dump(), "stop_ids": self.stop_ids}
        stream = loop.stream(
            lambda tell: pool.complete(completions, fields, lambda *done: tell(done)), _TICK_S
        )
        with closing(stream):
            for item in stream:
                if item is None:
                    assembly.tick()
                else:
                    number, output = item
                    request, sample = assembly.slots[number]
                    assembly.add(request, sample, output)
        return assembly.outputs

    def close(self) -> None:
        """Close the connections and remove the weights; a second call does nothing."""
        if self._loop is not None:
            if self._pool is not None:
                self._loop.run(self._pool.close())
            self._loop.close()
            self._loop = self._pool = None
        self._weights.close()

    async def _make_pool(self) -> ServerPool:
        settings = self.settings
        limits = Limits(
            settings.max_in_flight,
            settings.start_timeout_s,
            settings.outage_timeout_s,
            settings.request_timeout_s,
            settings.silence_timeout_s,
            settings.max_retries,
        )
        key, variable = find_key(settings.api_key_variable), settings.api_key_variable
        source = None if self.overlaps else PolicySource(self._policy, self._weights.dtype)
        return ServerPool(
            settings.addresses, limits, self._weights, key, variable, source, self._repair
        )

    @staticmethod
    def _counts(pool: ServerPool) -> dict[str, float]:
        return {
            "engine/servers": float(len(pool.ready())),
            "engine/servers_lost": float(pool.lost),
            "engine/retries": float(pool.retries),
        }

    @staticmethod
    def _proof(difference: Difference | None, seconds: float) -> dict[str, float]:
        if difference is None:
            return {}
        return {
            "sync/load_seconds": seconds,
            "sync/difference": difference.mean,
            "sync/difference_max": difference.largest,
        }
