"""Generation with vLLM in a separate process, which keeps running between calls.

The weights go there through a folder (``rlvr.rollout.weight_sync``), and every arrival is proven.
If the process dies, it is restarted with the newest weights; finished samples are kept and the rest
is generated again from the same seeds. So a crash costs time but changes no number that the loop
sees, up to the rounding of a different batch.

Each sample is a separate request with its own seed; samples of one prompt share whole blocks of its
cache through vLLM's prefix cache.

On a GPU that the learner also uses, the engine sleeps between calls (``sleep``) and takes the
memory that the learner leaves (``rlvr.rollout.memory_share``); the weights may go there without a
folder (``rlvr.rollout.weight_transfer``). None of it has been run so far.

There is no data parallelism, which vLLM does not offer within one process; use several servers.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from rlvr.install_hints import VLLM_INSTALL
from rlvr.policy.merging import shape_buckets
from rlvr.policy.model import Policy
from rlvr.policy.settings import Precision
from rlvr.rollout.adapter_sync import AdapterStore
from rlvr.rollout.engine import Assembly, Engine, Finished, Progress, Request, Sample
from rlvr.rollout.memory_share import engine_share, gpu_memory
from rlvr.rollout.placement import engine_gpus, engine_variables
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.rollout.sync_diagnosis import repaired
from rlvr.rollout.vllm_child import EngineDiedError, EngineProcess
from rlvr.rollout.weight_store import WeightStore
from rlvr.rollout.weight_sync import Difference, StaleWeightsError, WeightFolder
from rlvr.rollout.weight_transfer import (
    PolicySource,
    Sender,
    check_device,
    ipc_sender,
    on_device,
)

_Result = TypeVar("_Result")
# vLLM's default on a CPU, 128, would share nothing of a short prompt; it must be a multiple of 32.
_CPU_BLOCK = 32
# Of a CPU's memory; vLLM looks at it only where the size of its cache is not given.
_CPU_SHARE = 0.9


class VllmEngine(Engine):
    """An :class:`~rlvr.rollout.engine.Engine` over a vLLM process.

    The process starts with the first :meth:`sync`.

    Args:
        policy: The learner's policy, which sets the engine's shape and precision.
        stop_ids: Token ids that end a completion.
        settings: How the engine runs.
        longest: Longest sequence in tokens that will be requested; None is the model's context.
        takes_turns: Whether a learner updates the policy between calls, so that an engine on its
            GPU had better sleep then, or at any time; None if there is no learner.
        growth: Bytes of a GPU that the learner will hold during calls and does not hold yet.

    Raises:
        ValueError: vLLM is not installed, or cannot run as ``settings`` say, or the policy's
            adapters.
    """

    # Set to False only to show that the proof finds the missing repair.
    _repair = True

    def __init__(
        self,
        policy: Policy,
        stop_ids: Sequence[int],
        settings: VllmEngineSettings | None = None,
        longest: int | None = None,
        *,
        takes_turns: bool | None = None,
        growth: Callable[[], int] = lambda: 0,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                f"rollout.engine 'vllm' needs vLLM, which is not installed; {VLLM_INSTALL}"
            )
        self.settings = settings or VllmEngineSettings()
        self.stop_ids = list(stop_ids)
        dtype = self.settings.dtype
        self.precision: Precision = policy.precision if dtype == "auto" else dtype
        limits = [self.settings.max_model_len or longest, policy.context_length]
        self.max_length: int | None = min((n for n in limits if n), default=None)
        self.restarts = 0
        self._device = policy.device.type
        check_device(self.settings.weight_transfer, policy.device)
        self._gpus = engine_gpus(policy.device, self.settings.tensor_parallel_size)
        self.sleep = self._sleep_level(takes_turns)
        self.overlaps = self.settings.overlaps and not self.sleep
        self._growth = growth
        self._awake_during_updates = takes_turns is not None and not self.sleep
        self._policy = policy
        store = AdapterStore if self.settings.lora == "adapter" else WeightStore
        self._weights = store(
            policy,
            self.precision,
            self.settings.weights_folder,
            self.settings.sync_tolerance,
            self.max_length,
        )
        self._process: EngineProcess | None = None
        self._sender: Sender | None = None
        self._asleep = False
        self._loaded = 0
        self._version = 0

    def _sleep_level(self, takes_turns: bool | None) -> int:
        on_gpu, asked = self._device == "cuda", self.settings.sleep
        if asked and not on_gpu:
            raise ValueError(
                f"rollout.engine.sleep = {asked} frees the memory of a GPU, but the policy is on a "
                f"device of type {self._device!r}; use 0"
            )
        return asked or int(on_gpu and self.settings.sleeps(bool(takes_turns)))

    @property
    def policy_version(self) -> int:
        """Version of the weights that were proven last."""
        return self._version

    @property
    def pid(self) -> int | None:
        """Process id of the engine while it runs."""
        return None if self._process is None else self._process.pid

    def publish(self, policy: Policy, version: int) -> dict[str, float]:
        """Write the weights to the folder; see the protocol."""
        began = time.perf_counter()
        self._weights.write(policy, version, files=self.settings.weight_transfer == "folder")
        return {"sync/write_seconds": time.perf_counter() - began}

    def load(self) -> dict[str, float]:
        """Load the weights into the process and prove that it uses them; see the protocol.

        Raises:
            StaleWeightsError: The engine does not compute with the new weights.
            ValueError: vLLM does not start.
        """
        began = time.perf_counter()
        difference = self._surviving(self._load)
        metrics = {"engine/restarts": float(self.restarts)}
        if difference is None:
            return metrics
        return (
            metrics
            | self._weights.metrics()
            | {
                "sync/load_seconds": time.perf_counter() - began,
                "sync/difference": difference.mean,
                "sync/difference_max": difference.largest,
            }
        )

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
            ValueError: A prompt leaves no room for a token, or the engine died too often.
        """
        assert self._weights.serial, "an engine has no weights before its first sync"
        check_context(requests, sampling, self.max_length, "rollout.engine.max_model_len")
        assembly = Assembly(requests, progress, finished)

        def attempt() -> None:
            assembly.tick()  # cancelled work must not start an engine
            if self._process is None or self._asleep:
                self._load()
            assert self._process is not None
            jobs = [
                (job, request, engine_seed(requests[request].seeds[sample]))
                for job, request, sample in assembly.missing()
            ]
            for message in self._process.stream(
                "generate",
                prompts=[list(request.prompt_ids) for request in requests],
                jobs=jobs,
                sampling={**sampling.model_dump(), "stop_ids": self.stop_ids},
            ):
                if message["event"] == "sample":
                    self._check_adapter(message)
                    request, sample = assembly.slots[message["job"]]
                    assembly.add(request, sample, _sample(message))
                else:
                    assembly.tick()

        self._surviving(attempt)
        self._fall_asleep()
        return assembly.outputs

    def logprobs(
        self, sequences: Sequence[Sequence[int]], progress: Progress | None = None
    ) -> list[list[float]]:
        """Log-probabilities (nats, temperature 1) of each sequence's tokens except the first.

        It needs a :meth:`sync` first. A sequence may have at most ``longest - 1`` tokens.

        Raises:
            ValueError: A sequence is too long, or the engine died too often.
        """
        assert self._weights.serial, "an engine has no weights before its first sync"
        check_context(
            [Request(tuple(ids), ()) for ids in sequences],
            Sampling(max_tokens=1),
            self.max_length,
            "rollout.engine.max_model_len",
        )
        found: list[list[float] | None] = [None] * len(sequences)

        def attempt() -> None:
            if self._process is None or self._asleep:
                self._load()
            assert self._process is not None
            jobs = [[job, list(ids)] for job, ids in enumerate(sequences) if found[job] is None]
            for message in self._process.stream("logprobs", jobs=jobs):
                if message["event"] == "scored":
                    self._check_adapter(message)
                    found[message["job"]] = message["logprobs"]
                if progress is not None:
                    progress(len(found) - found.count(None), len(found))

        self._surviving(attempt)
        self._fall_asleep()
        return [values for values in found if values is not None]

    def _check_adapter(self, message: dict[str, Any]) -> None:
        """See that an answer comes from the adapter that was proven."""
        asked, named = self._weights.adapter_number, message["adapter"]
        if named != asked:
            raise StaleWeightsError(
                f"the engine answered with adapter {named} instead of {asked} (0 is the base "
                "alone); set rollout.engine.lora=merged"
            )

    def close(self) -> None:
        """End the process and remove the weights; a second call does nothing."""
        if self._process is not None:
            self._process.close()
            self._process = None
        self._weights.close()

    def _surviving(self, action: Callable[[], _Result]) -> _Result:
        """Run ``attempt`` with the engine; if the engine dies, restart it and run ``attempt``
        again."""
        for attempt in range(self.settings.max_restarts + 1):
            try:
                return action()
            except EngineDiedError as error:
                self._drop()
                if attempt == self.settings.max_restarts:
                    raise ValueError(
                        f"the vLLM engine died {attempt + 1} times in a row with "
                        f"rollout.engine.max_restarts = {attempt}; the last time: {error}"
                    ) from error
                self.restarts += 1
            except BaseException:
                # Interrupted or refused: the state of the process is unknown, so drop it.
                self._drop()
                raise
        raise AssertionError("unreachable")

    def _drop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process, self._sender, self._asleep = None, None, False

    def _load(self) -> Difference | None:
        """Make sure that a process runs the newest weights; return the proof if they were new to
        it."""
        weights = self._weights
        with weights.lock:
            fresh = self._process is None
            if self._process is None:
                self._process = self._start(weights.folder)
            cached = self._renew(self._process, fresh)
            if cached is None:
                return None
            call, logprobs = self._process.call, self._scored(self._process)
            difference = weights.check(logprobs, lambda: repaired(call, weights), cached)
            self._loaded, self._version = weights.serial, weights.version
            return difference

    def _scored(self, process: EngineProcess) -> list[float]:
        logprobs: list[float]
        logprobs = process.call("score", tokens=self._weights.sequence)["logprobs"]
        return logprobs

    def _renew(self, process: EngineProcess, fresh: bool) -> int | None:
        """Wake the engine and give it the newest weights; None if they were not new to it.

        Otherwise it returns how many blocks of the old version are left in the prefix cache.

        This takes two steps, so that the cache and the old and new weights are never in memory at
        once.
        """
        through_folder = self.settings.weight_transfer == "folder"
        news = fresh or self._loaded != self._weights.serial
        if isinstance(self._weights, AdapterStore):
            return self._weights.install(process.call, fresh=fresh) if news else None
        lost = self._asleep and self.sleep == 2
        if self._asleep:
            # What the learner caches is free to it alone, and the engine needs the room.
            torch.cuda.empty_cache()
            process.call("wake", tags=["weights"])
        if through_folder and (lost or (news and not fresh)):
            process.call("reload")
        elif not through_folder and (news or lost):
            with on_device(self._policy.device):
                if self._sender is None:
                    source = PolicySource(self._policy, self._weights.dtype)
                    self._sender = ipc_sender(process.call, source)
                self._sender.send_weights()
        if self._asleep:
            process.call("wake", tags=["kv_cache"])
            self._asleep = False
        if lost or (news and not (fresh and through_folder)):
            settled = process.call("settle", repair=self._repair)
            self._weights.check_arrival(settled["noted"], lambda: self._scored(process))
            return int(settled["cached"])
        return 0 if news else None

    def _fall_asleep(self) -> None:
        if self.sleep and self._process is not None:
            self._process.call("sleep", level=self.sleep)
            self._asleep = True

    def _start(self, folder: WeightFolder) -> EngineProcess:
        settings = self.settings
        return EngineProcess(
            self._arguments(folder),
            folder.path,
            threads=settings.threads or len(os.sched_getaffinity(0)),
            start_timeout_s=settings.start_timeout_s,
            silence_timeout_s=settings.silence_timeout_s,
            log=settings.log,
            variables=engine_variables(self._gpus),
        )

    def _memory_share(self) -> float:
        """The setting; if it is null, what the learner leaves of the GPUs as they are now."""
        if self.settings.memory_share is not None:
            return self.settings.memory_share
        if self._device != "cuda":
            return _CPU_SHARE
        shapes = shape_buckets(self._policy, self._weights.dtype)
        whole = sum(tensor.nbytes for bucket in shapes for tensor in bucket.values())
        weights = whole // self.settings.tensor_parallel_size
        memory = gpu_memory(self._gpus)
        return engine_share(memory, self._growth(), not self._awake_during_updates, weights)

    def _arguments(self, folder: WeightFolder) -> dict[str, Any]:
        """Keyword arguments of ``vllm.LLM``."""
        settings, cpu = self.settings, self._device == "cpu"
        cache_gib = settings.kv_cache_gib or (1.0 if cpu else None)
        return {
            "model": str(folder.model.resolve()),
            "dtype": self.precision,
            "enforce_eager": settings.enforce_eager,
            "max_model_len": self.max_length,
            "max_num_seqs": settings.max_num_seqs,
            "tensor_parallel_size": settings.tensor_parallel_size,
            "gpu_memory_utilization": self._memory_share(),
            "kv_cache_memory_bytes": None if cache_gib is None else int(cache_gib * 2**30),
            "block_size": settings.block_size or (_CPU_BLOCK if cpu else None),
            # vLLM undoes the draw of an unfinished prompt with the generator's offset, which a CPU
            # generator lacks. So prompts run whole on a CPU.
            "enable_chunked_prefill": False if cpu else None,
            "enable_sleep_mode": self.sleep > 0,
            "weight_transfer_config": None
            if settings.weight_transfer == "folder"
            else {"backend": settings.weight_transfer},
            **self._weights.engine_arguments,
        }


def check_context(
    requests: Sequence[Request], sampling: Sampling, limit: int | None, setting: str
) -> None:
    """Check that every completion has room.

    Raises:
        ValueError: The longest prompt and ``max_tokens`` exceed ``limit``; ``setting`` raises it.
    """
    longest = max((len(request.prompt_ids) for request in requests), default=0)
    if limit is not None and longest + sampling.max_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens with max_tokens {sampling.max_tokens} exceeds the "
            f"engine's longest sequence of {limit}; lower max_tokens or data.max_prompt_tokens, "
            f"or raise {setting}"
        )


def engine_seed(seed: int) -> int:
    """A 64-bit seed cut to the 63 bits that vLLM accepts, so that it is never negative."""
    return seed & (2**63 - 1)


def _sample(message: dict[str, Any]) -> Sample:
    return Sample(tuple(message["tokens"]), tuple(message["logprobs"]), message["finish"])
