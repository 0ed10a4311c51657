"""Run both models in vLLM processes: every step requests one token after each row's whole context.

The process holds the context of each row; a request says how much of it to keep and what to append,
and vLLM's prefix cache avoids computing known blocks again. The process returns the likeliest
tokens with their log-probabilities at temperature 1, from vLLM's own sampler, whose draw is
discarded: the rule draws here, with the same random numbers as with the transformers engine. This
is exact up to the engine's rounding; in float32 the traces are the same.

A block of K drafts is judged by K requests with growing prefixes, in one call. We do not use
``prompt_logprobs`` of one request: with it vLLM skips its prefix cache and runs the whole context
again, and if it is forced to use the cache, the values at cached positions are not scores. vLLM's
speculative decoding is a different rule: it accepts with probability p / q and adds a token of the
student after every block.

If the teacher did not report a token, its teacher probability is unknown and recorded as null. If a
process dies, the generation ends; --resume continues it.
"""

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from rlvr.distill.decode_batch import DecodeBatch
from rlvr.distill.next_token_scores import TopScores
from rlvr.distill.settings import TraceModel, VllmTraceSettings
from rlvr.distill.trace_model import own_device
from rlvr.install_hints import VLLM_INSTALL
from rlvr.policy.settings import check_local
from rlvr.rollout.placement import engine_gpus, engine_variables
from rlvr.rollout.vllm_child import EngineDiedError, EngineProcess

_MOST_BANNED = 64  # tokens reported beyond the pool, to replace banned ones
_CPU_BLOCK = 32


class VllmDecodeModel:
    """A model in a vLLM process; see :class:`~rlvr.distill.decode_batch.DecodeModel`.

    Args:
        model: The model.
        settings: How it runs.
        top_k: Number of tokens to report of each distribution.
        longest: Longest sequence in tokens that will be run.

    Raises:
        ValueError: vLLM is not installed or does not start.
    """

    device = torch.device("cpu")

    def __init__(
        self, model: TraceModel, settings: VllmTraceSettings, top_k: int, longest: int
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(f"engine 'vllm' needs vLLM, which is not installed; {VLLM_INSTALL}")
        self.top_k = top_k
        # A request needs room for the token that is drawn and discarded, a block for all its
        # drafts.
        self.limit = longest - settings.block
        # The process removes this folder when its parent disappears, so it holds nothing else.
        self._folder = tempfile.TemporaryDirectory(prefix="rlvr-traces-")
        device = torch.device(model.device) if model.device else own_device()
        on_gpu = torch.cuda.is_available() and device.type == "cuda"
        gpus = engine_gpus(device, settings.tensor_parallel_size) if on_gpu else []
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
                variables=engine_variables(gpus),
            )
        except EngineDiedError as error:
            raise ValueError(f"{error}; see the file set by engine.log") from error

    def decode_batch(self, rows: int, banned: torch.Tensor | None) -> "VllmDecodeBatch":
        """See :class:`~rlvr.distill.decode_batch.DecodeModel`."""
        return VllmDecodeBatch(self, rows, banned)

    def close(self) -> None:
        """End the process."""
        self.process.close()
        self._folder.cleanup()


def local_folder(model: TraceModel) -> str:
    """The folder of a model, downloaded from the Hub if needed: processes do not use the
    network."""
    path = check_local(model.path)
    if Path(path).is_dir():
        return str(Path(path).resolve())
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
    return str(snapshot_download(path, revision=model.revision, allow_patterns=patterns))


class VllmDecodeBatch(DecodeBatch):
    """Rows of a model in a vLLM process."""

    def __init__(self, source: VllmDecodeModel, rows: int, banned: torch.Tensor | None) -> None:
        count = 0 if banned is None else len(banned)
        if count > _MOST_BANNED:
            raise ValueError(
                f"{count} tokens of one model are unknown to the other, but engine vllm can "
                f"exclude at most {_MOST_BANNED}; use engine transformers"
            )
        # Banned tokens are removed before the pool is cut.
        self.source, self.banned, self._top = source, banned, source.top_k + count
        self.limit: int | None = source.limit
        self.lengths = [0] * rows
        self._names: list[int | None] = [None] * rows
        self._ahead: list[tuple[int, ...]] = [()] * rows  # prefixes that have not been sent yet
        self._forget: list[int] = []
        self._count = 0

    def admit(self, rows: Sequence[int], prefixes: Sequence[tuple[int, ...]]) -> None:
        """See :class:`~rlvr.distill.decode_batch.DecodeBatch`; nothing runs before the first
        token."""
        for row, prefix in zip(rows, prefixes, strict=True):
            self.rest(row)
            self._names[row], self._ahead[row] = self._count, prefix
            self.lengths[row] = len(prefix)
            self._count += 1

    def last(self, tokens: Sequence[Sequence[int]]) -> TopScores:
        """See :class:`~rlvr.distill.decode_batch.DecodeBatch`."""
        return self._ask(tokens, 1)

    def every(self, tokens: Sequence[Sequence[int]], count: int) -> TopScores:
        """See :class:`~rlvr.distill.decode_batch.DecodeBatch`."""
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
            raise ValueError(f"{error}; continue with --resume") from error
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
        """See :class:`~rlvr.distill.decode_batch.DecodeBatch`."""
        assert length <= self.lengths[row], "a row can only be rolled back"
        self.lengths[row] = length

    def rest(self, row: int) -> None:
        """See :class:`~rlvr.distill.decode_batch.DecodeBatch`."""
        name = self._names[row]
        if name is not None:
            self._forget.append(name)
        self._names[row], self._ahead[row], self.lengths[row] = None, (), 0

    def keep(self, rows: Sequence[int]) -> None:
        """See :class:`~rlvr.distill.decode_batch.DecodeBatch`."""
        self._names = [self._names[row] for row in rows]
        self._ahead = [self._ahead[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
