"""Generation by vLLM servers at network addresses, on this machine or on others.

    rlvr serve MODEL --port 8000 & rlvr serve MODEL --port 8001 &
    rlvr train RECIPE rollout.engine.name=vllm_server \
        "rollout.engine.addresses=[http://127.0.0.1:8000, http://127.0.0.1:8001]"

The servers belong to whoever started them; this engine gives them weights and completions to do,
and expects that they may fail (``rlvr.rollout.server_pool``). Each sample is a request of its own
with its own seed, as in the ``vllm`` engine, so a sample is the same whichever server draws it, up
to the rounding of another batch.

Left out: starting servers, and servers shared by several runs.
"""

import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlvr.policy import Policy
from rlvr.rollout.engine import Assembly, Engine, Finished, Progress, Request, Sample
from rlvr.rollout.event_loop import EventLoop
from rlvr.rollout.published import PublishedWeights
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.serve import DEFAULT_PORT, LOOPBACK
from rlvr.rollout.server_pool import Job, Limits, ServerPool
from rlvr.rollout.vllm_engine import check_context, engine_seed
from rlvr.rollout.weight_transfer import PolicySource, check_device
from rlvr.rollout.weights import Difference
from rlvr.settings import Settings

_LOCAL = ("localhost", "::1")
_TICK_S = 1.0


class VllmServerEngineSettings(Settings):
    """Generate with vLLM servers, which `rlvr serve` starts."""

    name: Literal["vllm_server"] = "vllm_server"
    addresses: tuple[str, ...] = Field((f"http://{LOOPBACK}:{DEFAULT_PORT}",), min_length=1)
    """Servers, each as http://HOST:PORT."""
    api_key_variable: str = "VLLM_API_KEY"
    """Environment variable with the key that the servers were started with; no key where it is not
    set."""
    max_in_flight: int = Field(128, ge=1)
    """Most completions that one server is given at a time."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Seconds within which all servers have to be there at the start."""
    outage_timeout_s: float = Field(300.0, gt=0)
    """Seconds without any server after which the run is given up, later on."""
    request_timeout_s: float = Field(600.0, gt=0)
    """Seconds that a server may take for one completion, or for reading weights."""
    silence_timeout_s: float = Field(30.0, gt=0)
    """Seconds within which a server has to answer when asked whether it is alive."""
    max_retries: int = Field(8, ge=0)
    """How often one completion may fail, at whichever servers, before the run is given up."""
    sync_tolerance: float | None = Field(None, gt=0)
    """Largest mean |difference| in nats between a server and the learner on a fixed sequence after
    new weights; null is 0.001 for float32 and 0.25 for bfloat16."""
    weights_folder: Path | None = None
    """Folder through which the weights go; null is shared memory where they fit. Servers on other
    machines need one on a disk that all of them share, under the same path."""

    weight_transfer: Literal["folder", "nccl"] = "folder"
    """How new weights get there: through a folder, or from GPU to GPU; the servers of nccl are
    started with --nccl. nccl excludes sampling ahead."""

    @property
    def overlaps(self) -> bool:
        """Whether they may generate while the learner updates."""
        return self.weight_transfer == "folder"

    @field_validator("addresses")
    @classmethod
    def _addresses_are_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
                raise ValueError(f"{address!r} is no address such as http://{LOOPBACK}:8000")
        if len({address.rstrip("/") for address in addresses}) < len(addresses):
            raise ValueError("an address stands there twice")
        return addresses

    @model_validator(mode="after")
    def _weights_can_get_there(self) -> "VllmServerEngineSettings":
        for address in self.addresses:
            host = urlsplit(address).hostname or ""
            through_folder = self.weight_transfer == "folder" and self.weights_folder is None
            if through_folder and not (host.startswith("127.") or host in _LOCAL):
                raise ValueError(
                    f"the weights have no way to {address}: give weights_folder a folder that this "
                    "machine and the servers share"
                )
        return self


class VllmServerEngine(Engine):
    """An :class:`~rlvr.rollout.engine.Engine` over vLLM servers.

    They are looked for at the first :meth:`load`.

    Args:
        policy: The learner's policy: its shape and precision are the servers'.
        stop_ids: Token ids that end a completion.
        settings: Where the servers are.
        longest: Longest sequence that will be asked for, in tokens; None is the model's context.
    """

    # Switched off only to show that the proof finds what is left undone.
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
        self._weights = PublishedWeights(
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
        """Write the weights where the servers will read them; see the protocol."""
        began = time.perf_counter()
        self._weights.write(policy, version, files=self.settings.weight_transfer == "folder")
        return {"sync/write_seconds": time.perf_counter() - began}

    def load(self) -> dict[str, float]:
        """Have every server read the weights, and prove that it did; see the protocol.

        Raises:
            StaleWeightsError: A server does not compute with the new weights.
            ValueError: A server is missing, or not as it has to be.
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

        With top-p or top-k the log-probabilities are those of the distribution that is left.

        Raises:
            ValueError: A prompt leaves no room for a token, or the servers fail too often.
        """
        pool, loop = self._pool, self._loop
        assert pool is not None, "an engine has no weights before its first sync"
        assert loop is not None
        setting = "--max-model-len where the servers are started"
        check_context(requests, sampling, self.max_length, setting)
        assembly = Assembly(requests, progress, finished)
        jobs = [
            Job(
                number,
                list(requests[request].prompt_ids),
                engine_seed(requests[request].seeds[sample]),
            )
            for number, request, sample in assembly.missing()
        ]
        fields = {**sampling.model_dump(), "stop_ids": self.stop_ids}
        stream = loop.stream(
            lambda tell: pool.complete(jobs, fields, lambda *done: tell(done)), _TICK_S
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
        """Leave the servers to themselves and remove the weights; a second call does nothing."""
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
        key, variable = os.environ.get(settings.api_key_variable), settings.api_key_variable
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
