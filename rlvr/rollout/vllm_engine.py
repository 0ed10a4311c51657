"""Generation with vLLM in a process of its own, which stays up between calls.

The weights go there through a folder (``rlvr.rollout.weights``) and every arrival is proven. The
process may die at any time: it is started anew with the newest weights, what it had finished is
kept, and the rest is generated again from the same seeds. So a crash costs time and changes no
number that the loop sees, up to the rounding of another batch.

Each sample is a request of its own with its own seed; samples of one prompt share whole blocks of
its cache through vLLM's prefix cache.

Left out: engines behind a network address, and sleeping on a GPU that the learner needs.
"""

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field

from rlvr.policy import Policy, Precision
from rlvr.remedies import VLLM_INSTALL
from rlvr.rollout.engine import Assembly, Engine, Finished, Progress, Request, Sample
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.vllm_child import EngineDiedError, EngineProcess
from rlvr.rollout.weights import (
    TOLERANCE,
    Difference,
    WeightFolder,
    compare,
    learner_logprobs,
    proof_sequence,
    prove,
)
from rlvr.settings import Settings

_Result = TypeVar("_Result")
_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# On a CPU vLLM's own choice, 128, would share nothing of a short prompt; it wants multiples of 32.
_CPU_BLOCK = 32


class VllmEngineSettings(Settings):
    """Generate with vLLM in a process of its own."""

    name: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """How the engine rounds; auto is as ``model.precision``. Anything else would make the samples
    those of another policy, more so with every update, so a recipe may name no other."""
    enforce_eager: bool = True
    """Run the model as it is. Off, vLLM compiles it first: a slower start, faster steps."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest sequence, prompt and completion, in tokens; null takes what the run's prompts and
    completions may need."""
    max_num_seqs: int = Field(128, ge=1)
    """Most completions that run side by side; further ones wait and take the place of finished
    ones."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Memory for keys and values; null is 1 GiB on a CPU and follows from ``memory_share`` on a
    GPU."""
    memory_share: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that the engine may take in all."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Devices that the engine's weights are split over."""
    block_size: int | None = Field(None, ge=16)
    """Tokens in a block of the cache: samples of a prompt share whole blocks. Null is 32 on a CPU
    and vLLM's choice elsewhere."""
    threads: int | None = Field(None, ge=1)
    """Threads of the engine on a CPU; null takes one for every core that the process may use."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Seconds after which an engine that is not ready is given up."""
    silence_timeout_s: float = Field(300.0, gt=0)
    """Seconds without a sign of life after which a working engine is ended and started anew."""
    max_restarts: int = Field(3, ge=0)
    """How often in a row the engine may die before the run is given up."""
    sync_tolerance: float | None = Field(None, gt=0)
    """Largest mean |difference| in nats between engine and learner on a fixed sequence after new
    weights; null is 0.001 for float32 and 0.25 for bfloat16."""
    weights_folder: Path | None = None
    """Folder through which the weights go; null is shared memory where they fit."""
    log: Path | None = None
    """File that gets the engine's own output; null drops it when the engine ends."""


class VllmEngine(Engine):
    """An :class:`~rlvr.rollout.engine.Engine` over a vLLM process.

    The process starts with the first :meth:`sync`.

    Args:
        policy: The learner's policy: its shape and precision are the engine's.
        stop_ids: Token ids that end a completion.
        settings: How the engine runs.
        longest: Longest sequence that will be asked for, in tokens; None is the model's context.

    Raises:
        ValueError: vLLM is not installed.
    """

    overlaps = True
    # Switched off only to show that the proof finds what is left undone.
    _repair = True

    def __init__(
        self,
        policy: Policy,
        stop_ids: Sequence[int],
        settings: VllmEngineSettings | None = None,
        longest: int | None = None,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(f"rollout.engine 'vllm' needs vLLM, which is missing; {VLLM_INSTALL}")
        self.settings = settings or VllmEngineSettings()
        self.stop_ids = list(stop_ids)
        dtype = self.settings.dtype
        self.precision: Precision = policy.precision if dtype == "auto" else dtype
        limits = [self.settings.max_model_len or longest, policy.context_length]
        self.max_length: int | None = min((n for n in limits if n), default=None)
        self.restarts = 0
        self._device = policy.device.type
        vocabulary = policy.causal_lm.config.get_text_config().vocab_size
        self._sequence = proof_sequence(vocabulary, self.max_length and self.max_length - 1)
        self._expected: list[float] = []
        self._folder: WeightFolder | None = None
        self._process: EngineProcess | None = None
        self._loaded: int | None = None
        self._version = 0
        # Held by whoever writes the weights (the learner) or reads them (the engine).
        self._weights = threading.RLock()

    @property
    def policy_version(self) -> int:
        """Version of the weights that were last proven."""
        return self._version

    @property
    def pid(self) -> int | None:
        """Process id of the engine while it runs."""
        return None if self._process is None else self._process.pid

    def publish(self, policy: Policy, version: int) -> dict[str, float]:
        """Write the weights where the process will read them; see the protocol."""
        began = time.perf_counter()
        dtype = _DTYPES[self.precision]
        with self._weights:
            if self._folder is None:
                size = sum(p.numel() for p in policy.parameters()) * dtype.itemsize
                self._folder = WeightFolder(size, self.settings.weights_folder)
            self._folder.write(policy, version, dtype)
            self._expected = learner_logprobs(policy, self._sequence)
            # Even where the number is one it has had: the weights may be others.
            self._loaded = None
        return {"sync/write_seconds": time.perf_counter() - began}

    def load(self) -> dict[str, float]:
        """Have the process read the weights, and prove that it did; see the protocol.

        Raises:
            StaleWeightsError: The engine does not compute with the new weights.
            ValueError: vLLM cannot be started.
        """
        began = time.perf_counter()
        difference = self._surviving(self._load)
        metrics = {"engine/restarts": float(self.restarts)}
        if difference is None:
            return metrics
        return metrics | {
            "sync/load_seconds": time.perf_counter() - began,
            "sync/difference": difference.mean,
            "sync/difference_max": difference.largest,
        }

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
            ValueError: A prompt leaves no room for a token, or the engine died too often.
        """
        assert self._folder is not None, "an engine has no weights before its first sync"
        self._check_context(requests, sampling)
        assembly = Assembly(requests, progress, finished)

        def attempt() -> None:
            assembly.tick()  # work that was called off in the meantime starts no engine
            if self._process is None:
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
                    request, sample = assembly.slots[message["job"]]
                    assembly.add(request, sample, _sample(message))
                else:
                    assembly.tick()

        self._surviving(attempt)
        return assembly.outputs

    def close(self) -> None:
        """End the process and remove the weights; a second call does nothing."""
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _check_context(self, requests: Sequence[Request], sampling: Sampling) -> None:
        longest = max((len(request.prompt_ids) for request in requests), default=0)
        if self.max_length is not None and longest + sampling.max_tokens > self.max_length:
            raise ValueError(
                f"a prompt of {longest} tokens with max_tokens {sampling.max_tokens} exceeds the "
                f"engine's longest sequence of {self.max_length}; lower max_tokens or "
                "data.max_prompt_tokens, or raise rollout.engine.max_model_len"
            )

    def _surviving(self, action: Callable[[], _Result]) -> _Result:
        """Do something with the engine; when the engine dies of it, start another and go on."""
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
                # Interrupted or refused: what the process is doing now is anyone's guess.
                self._drop()
                raise
        raise AssertionError("unreachable")

    def _drop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _load(self) -> Difference | None:
        """See that a process runs the newest weights; the proof if they were news to it."""
        with self._weights:
            folder = self._folder
            assert folder is not None
            assert folder.version is not None, "the weights were not written whole"
            if self._process is None:
                self._process = self._start(folder)
            elif self._loaded != folder.version:
                self._process.call("reload", repair=self._repair)
            else:
                return None
            answer = self._process.call("score", tokens=self._sequence)
            difference = compare(answer["logprobs"], self._expected)
            tolerance = self.settings.sync_tolerance or TOLERANCE[self.precision]
            prove(difference, folder.version, self.precision, tolerance)
            self._loaded = self._version = folder.version
            return difference

    def _start(self, folder: WeightFolder) -> EngineProcess:
        settings = self.settings
        return EngineProcess(
            self._arguments(folder),
            folder.path,
            threads=settings.threads or len(os.sched_getaffinity(0)),
            start_timeout_s=settings.start_timeout_s,
            silence_timeout_s=settings.silence_timeout_s,
            log=settings.log,
        )

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
            "gpu_memory_utilization": settings.memory_share,
            "kv_cache_memory_bytes": None if cache_gib is None else int(cache_gib * 2**30),
            "block_size": settings.block_size or (_CPU_BLOCK if cpu else None),
            # vLLM takes the draw of an unfinished prompt back by the generator's offset, which a
            # CPU generator has not: there, prompts run whole.
            "enable_chunked_prefill": False if cpu else None,
        }


def engine_seed(seed: int) -> int:
    """A 64-bit seed as one that vLLM takes: 63 bits, so that none is negative."""
    return seed & (2**63 - 1)


def _sample(message: dict[str, Any]) -> Sample:
    return Sample(tuple(message["tokens"]), tuple(message["logprobs"]), message["finish"])
