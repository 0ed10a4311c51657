"""Both models in vLLM processes: every step is a one-token request for each row's whole context.

The context of a row is held in the process, which is told what to keep of it and what comes behind;
vLLM's prefix cache spares it the blocks that it has seen. What comes back are the likeliest tokens
with their log-probabilities at temperature 1, from vLLM's own sampler, whose draw is thrown away:
the rule draws here, with the same numbers as the transformers engine. That is exact up to the
engine's rounding, so that in float32 the traces are the same.

A block of drafts is judged by as many requests with growing prefixes, in one call. The other way,
``prompt_logprobs`` of one request, was not taken: vLLM then skips its prefix cache and runs the
whole context again, and what it gives for cached positions, if it is made to use the cache, are not
scores. vLLM's own speculative decoding is not this rule either: it accepts by p / q, and adds a
token of the student's behind every block.

A token outside the teacher's reported ones has no known teacher probability and is recorded as
null. A process that dies ends the generation, which --resume goes on with.
"""

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from rlvr.distill.lane import AnyLane
from rlvr.distill.models import TraceModel, own_device
from rlvr.distill.scores import TopScores
from rlvr.policy.model import check_local
from rlvr.remedies import VLLM_INSTALL
from rlvr.rollout.vllm_child import EngineDiedError, EngineProcess
from rlvr.settings import Settings

_MOST_BANNED = 64  # tokens that are reported beyond a pool, for those that leave it
_CPU_BLOCK = 32


class VllmTraceSettings(Settings):
    """Generate traces with both models in vLLM processes."""

    name: Literal["vllm"] = "vllm"
    """Both models in vLLM processes of their own."""
    rows: int = Field(64, ge=1)
    """Traces generated side by side."""
    block: int = Field(1, ge=1, le=64)
    """Tokens the teacher drafts before the student judges them (K); the traces are the same."""
    enforce_eager: bool = True
    """Run the models as they are. Off, vLLM compiles them first: a slower start, faster steps."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Memory for each model's keys and values; null is 1 GiB on a CPU and follows from
    ``memory_share`` on a GPU."""
    memory_share: float = Field(0.45, gt=0, le=1)
    """Share of a GPU's memory that each model may take."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Devices that the weights of each model are split over."""
    threads: int | None = Field(None, ge=1)
    """Threads of each process on a CPU; null takes one for every core."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Seconds after which a process that is not ready is given up."""
    silence_timeout_s: float = Field(300.0, gt=0)
    """Seconds without an answer after which a process is given up."""
    log: Path | None = None
    """File that gets the processes' own output, teacher's and student's; null drops it."""


class VllmSource:
    """A model in a vLLM process; see :class:`~rlvr.distill.lane.LaneSource`.

    Args:
        model: Which.
        settings: How it runs.
        top_k: Tokens to be reported of each distribution.
        longest: Longest sequence that will be asked for.

    Raises:
        ValueError: vLLM is not installed or does not start.
    """

    device = torch.device("cpu")

    def __init__(
        self, model: TraceModel, settings: VllmTraceSettings, top_k: int, longest: int
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(f"engine 'vllm' needs vLLM, which is missing; {VLLM_INSTALL}")
        self.top_k = top_k
        # A request needs room for the token that is drawn and thrown away, a draft for all of it.
        self.limit = longest - settings.block
        # The process removes this folder when its parent disappears; nothing else is in it.
        self._folder = tempfile.TemporaryDirectory(prefix="rlvr-traces-")
        on_gpu = torch.cuda.is_available() and model.device != "cpu"
        cache_gib = settings.kv_cache_gib or (None if on_gpu else 1.0)
        arguments = {
            "model": local_folder(model),
            "dtype": model.precision,
            "enforce_eager": settings.enforce_eager,
            "max_model_len": longest,
            "max_num_seqs": settings.rows * settings.block,
            "max_logprobs": max(20, top_k + _MOST_BANNED),
            "tensor_parallel_size": settings.tensor_parallel_size,
            "gpu_memory_utilization": settings.memory_share,
            "kv_cache_memory_bytes": None if cache_gib is None else int(cache_gib * 2**30),
            "block_size": None if on_gpu else _CPU_BLOCK,
            "enable_chunked_prefill": None if on_gpu else False,
        }
        try:
            self.process = EngineProcess(
                arguments,
                Path(self._folder.name),
                threads=settings.threads or len(os.sched_getaffinity(0)),
                start_timeout_s=settings.start_timeout_s,
                silence_timeout_s=settings.silence_timeout_s,
                log=settings.log,
                variables=visible(model.device) if on_gpu else {},
            )
        except EngineDiedError as error:
            raise ValueError(f"{error}; look into engine.log") from error

    def lane(self, rows: int, banned: torch.Tensor | None) -> "VllmLane":
        """See :class:`~rlvr.distill.lane.LaneSource`."""
        return VllmLane(self, rows, banned)

    def close(self) -> None:
        """End the process."""
        self.process.close()
        self._folder.cleanup()


def local_folder(model: TraceModel) -> str:
    """The folder of a model, fetched from the Hub if need be: processes stay off the network."""
    path = check_local(model.path)
    if Path(path).is_dir():
        return str(Path(path).resolve())
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
    return str(snapshot_download(path, revision=model.revision, allow_patterns=patterns))


def visible(device: str | None) -> dict[str, str]:
    """Show a process the GPU that the recipe names or that a launcher gave us, and only that.

    Devices are counted among those that this process was shown.
    """
    if device is None and "LOCAL_RANK" not in os.environ:
        return {}
    index = (torch.device(device) if device else own_device()).index
    if index is None:
        return {}
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": shown.split(",")[index] if shown else str(index)}


class VllmLane(AnyLane):
    """Rows of a model in a vLLM process."""

    def __init__(self, source: VllmSource, rows: int, banned: torch.Tensor | None) -> None:
        count = 0 if banned is None else len(banned)
        if count > _MOST_BANNED:
            raise ValueError(
                f"{count} tokens of one model are unknown to the other, and engine vllm reports "
                "too few to leave them out; use engine transformers"
            )
        # What is never drawn leaves a pool before the pool is cut.
        self.source, self.banned, self._top = source, banned, source.top_k + count
        self.limit: int | None = source.limit
        self.lengths = [0] * rows
        self._names: list[int | None] = [None] * rows
        self._ahead: list[tuple[int, ...]] = [()] * rows  # prefixes that were not sent yet
        self._forget: list[int] = []
        self._count = 0

    def admit(self, rows: Sequence[int], prefixes: Sequence[tuple[int, ...]]) -> None:
        """See :class:`~rlvr.distill.lane.AnyLane`; nothing is run before the first token."""
        for row, prefix in zip(rows, prefixes, strict=True):
            self.rest(row)
            self._names[row], self._ahead[row] = self._count, prefix
            self.lengths[row] = len(prefix)
            self._count += 1

    def last(self, tokens: Sequence[Sequence[int]]) -> TopScores:
        """See :class:`~rlvr.distill.lane.AnyLane`."""
        return self._ask(tokens, 1)

    def every(self, tokens: Sequence[Sequence[int]], count: int) -> TopScores:
        """See :class:`~rlvr.distill.lane.AnyLane`."""
        return self._ask(tokens, count)

    def _ask(self, tokens: Sequence[Sequence[int]], count: int) -> TopScores:
        asked = []
        for row, new in enumerate(tokens):
            if new:
                ahead = self._ahead[row]
                asked.append([self._names[row], self.lengths[row] - len(ahead), [*ahead, *new]])
                self._ahead[row] = ()
                self.lengths[row] += len(new)
        try:
            answer = self.source.process.call(
                "next", rows=asked, count=count, top=self._top, forget=self._forget
            )
        except EngineDiedError as error:
            raise ValueError(f"{error}; go on with --resume") from error
        self._forget = []
        found = iter(zip(answer["ids"], answer["logprobs"], strict=True))
        ids: list[list[int]] = []
        logprobs: list[list[float]] = []
        for new in tokens:
            for _ in range(count):
                row_ids, row_logprobs = next(found) if new else ([], [])
                missing = self._top - len(row_ids)
                ids.append(row_ids + [0] * missing)
                logprobs.append(row_logprobs + [float("-inf")] * missing)
        return TopScores(
            torch.tensor(ids), torch.tensor(logprobs, dtype=torch.float64), self.banned
        )

    def roll_back(self, row: int, length: int) -> None:
        """See :class:`~rlvr.distill.lane.AnyLane`."""
        assert length <= self.lengths[row], "a row can only be rolled back"
        self.lengths[row] = length

    def rest(self, row: int) -> None:
        """See :class:`~rlvr.distill.lane.AnyLane`."""
        name = self._names[row]
        if name is not None:
            self._forget.append(name)
        self._names[row], self._ahead[row], self.lengths[row] = None, (), 0

    def keep(self, rows: Sequence[int]) -> None:
        """See :class:`~rlvr.distill.lane.AnyLane`."""
        self._names = [self._names[row] for row in rows]
        self._ahead = [self._ahead[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
