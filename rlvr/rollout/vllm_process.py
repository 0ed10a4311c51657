"""The process in which vLLM lives: ``python -m rlvr.rollout.vllm_process SOCKET_FD PARENT_PID``.

It reads one message with the engine's settings, then serves requests one at a time:

    generate  {prompts, jobs: [[id, prompt index, seed], ...], sampling}
              -> {event: sample, ...} as they finish, {event: busy} in between, {event: done}
    reload    -> {event: done}                  the folder's weights, which have changed
    adapt     {number, folder, names} -> {event: done, missing, refused, held, kept, cached}
              an adapter, which all later requests use
    transfer  {step, info} -> {event: done}     see rlvr.rollout.weight_transfer
    settle    {repair} -> {event: done, packed, noted, cached}
              to be called after new weights; see EngineService.on_settle
    sleep     {level} -> {event: done}
    wake      {tags} -> {event: done}
    score     {tokens} -> {event: done, logprobs}
    logprobs  {jobs: [[id, tokens], ...]}
              -> {event: scored, job, logprobs} as they finish, {event: busy} in between,
              {event: done}
    next      {rows: [[name, keep, tokens], ...], count, top, forget}
              -> {event: done, ids, logprobs}   of the likeliest next tokens
    close     -> the process ends

vLLM's engine core runs in this process, not in a child of it, so that there is only one process to
start, to watch and to end. When the parent disappears, the socket closes; this process then removes
the weights from shared memory and ends itself and everything that it started. It leads a separate
process group and ignores Ctrl-C, which the parent handles.
"""

import contextlib
import ctypes
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rlvr.rollout.channel import Channel, ClosedError

# Seconds between signs of life while the engine steps.
_BUSY_S = 1.0
_PR_SET_PDEATHSIG = 1


class Watcher:
    """Reads messages in a separate thread, which notices immediately when the parent is gone."""

    def __init__(self, channel: Channel, parent: int) -> None:
        self.channel, self.parent = channel, parent
        self.messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self.closing = threading.Event()
        self.folder: Path | None = None

    def start(self) -> None:
        """Set the signal handlers and start reading."""
        for number in (signal.SIGINT, signal.SIGUSR1):  # the training process handles it
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if sys.platform.startswith("linux"):
            # A second check, in case a fork keeps the other end of the socket open.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        threading.Thread(target=self._read, daemon=True, name="watcher").start()

    def _read(self) -> None:
        while True:
            try:
                message = self.channel.receive()
            except ClosedError:
                self.vanish()
            if message["method"] == "close":
                self.closing.set()
            self.messages.put(message)

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        # A scheduler may send it to every process of a job; the parent decides what happens here.
        if os.getppid() != self.parent:
            self.vanish()

    def vanish(self) -> NoReturn:
        """Remove the shared memory and end this process and everything that it started."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.killpg(os.getpgrp(), signal.SIGKILL)
        raise AssertionError("unreachable")


class EngineService:
    """vLLM's engine and the requests that it serves."""

    def __init__(self, watcher: Watcher, settings: dict[str, Any]) -> None:
        # Imported here, because it takes seconds and a failure must be reported without a
        # traceback.
        from vllm import LLM

        self.watcher, self.channel = watcher, watcher.channel
        self.folder: str = settings["model"]
        self.contexts: dict[int, list[int]] = {}
        self.adapter: Any = None
        self.llm: Any = LLM(
            **settings,
            tokenizer=None,
            skip_tokenizer_init=True,
            trust_remote_code=False,
            generation_config="vllm",
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            disable_log_stats=True,
            seed=0,
            worker_extension_cls="rlvr.rollout.vllm_worker.WeightRepair",
        )

    def serve(self) -> None:
        """Serve requests until asked to close."""
        while True:
            message = self.watcher.messages.get()
            method = message.pop("method")
            if method == "close":
                return
            self.channel.send({"event": "done", **getattr(self, f"on_{method}")(**message)})

    def on_reload(self) -> dict[str, Any]:
        """Load the folder's weights; the parent then calls settle."""
        self.llm.collective_rpc("note_weights")
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": self.folder})
        return {}

    def on_adapt(self, number: int, folder: str, names: list[str]) -> dict[str, Any]:
        """Take an adapter in place of the one before; tell what the engine then holds.

        ``missing`` are matrices that the folder lacks, ``refused`` is why vLLM does not take it,
        ``held`` are fingerprints of the matrices ``names``, ``kept`` the numbers of all adapters
        that it holds, and ``cached`` how many blocks of the prefix cache are left.
        """
        from safetensors import safe_open
        from vllm.lora.request import LoRARequest

        with safe_open(f"{folder}/adapter_model.safetensors", framework="pt") as file:
            missing = sorted(set(names).difference(file.keys()))
        if missing:  # half an adapter would end vLLM with a traceback
            return {"missing": missing, "refused": None}
        engine = self.llm.llm_engine
        self.adapter = LoRARequest(f"adapter-{number}", number, folder)
        try:
            engine.add_lora(self.adapter)
        except ValueError as error:
            return {"missing": [], "refused": str(error)}
        (held, *_) = self.llm.collective_rpc("held_adapter", args=(number, names))
        assert self.llm.reset_prefix_cache(), "the prefix cache was in use while an adapter changed"
        kept = sorted(engine.list_loras())
        cached = self._cached_blocks()
        return {"missing": [], "refused": None, "held": held, "kept": kept, "cached": cached}

    def on_transfer(self, step: str, info: Any) -> dict[str, Any]:  # noqa: ANN401
        """One step of a transfer by vLLM's engine; the parent calls settle after the last one."""
        from rlvr.rollout.weight_transfer import decode

        if step == "start":
            self.llm.collective_rpc("note_weights")
        steps = {
            "init": lambda: self.llm.init_weight_transfer_engine({"init_info": info}),
            "start": self.llm.start_weight_update,
            "update": lambda: self.llm.update_weights({"update_info": decode(info)}),
            "finish": self.llm.finish_weight_update,
        }
        steps[step]()
        return {}

    def on_settle(self, repair: bool) -> dict[str, Any]:
        """After new weights: pack the output heads again and drop the prefix cache of the old
        ones.

        ``noted`` is what each worker was given since the reload or transfer began, and ``cached``
        is how many blocks of the old cache are left, which must be none.
        """
        packed = self.llm.collective_rpc("repack_output_heads") if repair else [0]
        assert self.llm.reset_prefix_cache(), "the prefix cache was in use during a reload"
        noted = self.llm.collective_rpc("noted_weights")
        return {"packed": packed[0], "noted": noted, "cached": self._cached_blocks()}

    def _cached_blocks(self) -> int:
        """How many blocks of the cache a new prompt may be answered from.

        They are counted where the scheduler looks them up, because a score reads none of them.
        """
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        return len(scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block)

    def on_sleep(self, level: int) -> dict[str, Any]:
        """Drop the cache, and move (1) or drop (2) the weights."""
        self.llm.sleep(level=level)
        return {}

    def on_wake(self, tags: list[str]) -> dict[str, Any]:
        """Allocate the memory of ``tags`` again."""
        self.llm.wake_up(tags=tags)
        return {}

    def on_score(self, tokens: list[int]) -> dict[str, Any]:
        """Log-probabilities of ``tokens[1:]`` at temperature 1."""
        prompt = {"prompt_token_ids": tokens}
        (output,) = self.llm.generate(
            [prompt], scoring_parameters(), use_tqdm=False, lora_request=self.adapter
        )
        return {"logprobs": prompt_logprobs(output)}

    def on_logprobs(self, jobs: list[tuple[int, list[int]]]) -> dict[str, Any]:
        """Score many sequences; send each result as soon as it is finished."""
        for job, tokens in jobs:
            request = {"prompt_token_ids": tokens}
            self._add(job, request, scoring_parameters())
        self._run(scored_message)
        return {}

    def on_next(
        self, rows: list[tuple[int, int, list[int]]], count: int, top: int, forget: list[int]
    ) -> dict[str, Any]:
        """The ``top`` likeliest tokens after each of the last ``count`` tokens of each context.

        Contexts are stored here by name: ``keep`` tokens of each are kept and ``tokens`` are
            appended. Log-probabilities are at temperature 1 over the whole vocabulary.
        """
        from vllm import SamplingParams

        for name in forget:
            self.contexts.pop(name, None)
        prompts = []
        for name, keep, tokens in rows:
            context = self.contexts[name] = [*self.contexts.get(name, [])[:keep], *tokens]
            ends = range(len(context) - count + 1, len(context) + 1)
            prompts += [{"prompt_token_ids": context[:end]} for end in ends]
        params = SamplingParams(
            temperature=1.0, max_tokens=1, logprobs=top, detokenize=False, ignore_eos=True
        )
        outputs = self.llm.generate(prompts, params, use_tqdm=False) if prompts else []
        ids, logprobs = [], []
        for output in outputs:
            # vLLM also reports the drawn token, whatever its rank.
            likeliest = sorted(output.outputs[0].logprobs[0].items(), key=lambda item: item[1].rank)
            ids.append([token for token, _ in likeliest[:top]])
            logprobs.append([value.logprob for _, value in likeliest[:top]])
        return {"ids": ids, "logprobs": logprobs}

    def on_generate(
        self,
        prompts: list[list[int]],
        jobs: list[tuple[int, int, int]],
        sampling: dict[str, Any],
    ) -> dict[str, Any]:
        """Generate all samples; send each one as soon as it is finished."""
        for job, prompt, seed in jobs:
            params = sampling_parameters(sampling, seed)
            request = {"prompt_token_ids": prompts[prompt]}
            self._add(job, request, params)
        self._run(sample_message)
        return {}

    def _add(self, job: int, request: dict[str, Any], params: Any) -> None:  # noqa: ANN401
        engine = self.llm.llm_engine
        engine.add_request(str(job), request, params, lora_request=self.adapter)

    def _run(self, message: Callable[[Any], dict[str, Any]]) -> None:
        """Step the engine until all requests are finished; send a message for each."""
        engine = self.llm.llm_engine
        spoken = time.monotonic()
        while engine.has_unfinished_requests() and not self.watcher.closing.is_set():
            for output in engine.step():
                if output.finished:
                    self.channel.send(message(output))
                    spoken = time.monotonic()
            if time.monotonic() - spoken > _BUSY_S:
                self.channel.send({"event": "busy"})
                spoken = time.monotonic()


def sampling_fields(sampling: dict[str, Any], seed: int) -> dict[str, Any]:
    """vLLM's sampling parameters of one sample; ``sampling`` has the fields of Sampling and
    stop_ids.

    ``stop_ids`` names every id that ends a completion, so vLLM's own end token, which comes from
    files that the learner may read differently, is ignored.
    """
    return {
        **{name: sampling[name] for name in ("temperature", "top_p", "top_k", "max_tokens")},
        "seed": seed,
        "stop_token_ids": sampling["stop_ids"],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


def sampling_parameters(sampling: dict[str, Any], seed: int) -> Any:  # noqa: ANN401
    """:func:`sampling_fields` as vLLM's object."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    fields = sampling_fields(sampling, seed)
    return SamplingParams(**fields, output_kind=RequestOutputKind.FINAL_ONLY)


def sample_message(output: Any) -> dict[str, Any]:  # noqa: ANN401
    """A finished request as a message; its tokens include the one that ended it."""
    (completion,) = output.outputs
    assert completion.finish_reason in ("stop", "length"), completion.finish_reason
    tokens = list(completion.token_ids)
    logprobs = [row[t].logprob for t, row in zip(tokens, completion.logprobs, strict=True)]
    return {
        "event": "sample",
        "job": _job(output),
        "adapter": _adapter(output),
        "tokens": tokens,
        "logprobs": logprobs,
        "finish": completion.finish_reason,
    }


def scoring_parameters() -> Any:  # noqa: ANN401
    """vLLM's sampling parameters for scoring a given sequence."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=0,
        detokenize=False,
        ignore_eos=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_logprobs(output: Any) -> list[float]:  # noqa: ANN401
    """Log-probabilities of a scored sequence's tokens except the first, which has none."""
    rows = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [row[token].logprob for token, row in rows]


def scored_message(output: Any) -> dict[str, Any]:  # noqa: ANN401
    """A scored sequence as a message."""
    return {
        "event": "scored",
        "job": _job(output),
        "adapter": _adapter(output),
        "logprobs": prompt_logprobs(output),
    }


def _job(output: Any) -> int:  # noqa: ANN401
    return int(output.request_id.partition("-")[0])


def _adapter(output: Any) -> int:  # noqa: ANN401
    """Number of the adapter with which a request ran; 0 is none."""
    return output.lora_request.lora_int_id if output.lora_request is not None else 0


def main() -> None:
    """Build the engine from the first message, then serve."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    channel = Channel(socket.socket(fileno=descriptor))
    watcher = Watcher(channel, parent)
    watcher.start()
    start = watcher.messages.get()
    if start["method"] == "close":
        return
    watcher.folder = Path(start["folder"])
    try:
        server = EngineService(watcher, start["settings"])
        channel.send({"event": "ready"})
        server.serve()
    except Exception as error:  # process boundary: the parent reports it or restarts us
        traceback.print_exc()
        kind, text = type(error).__name__, f"{type(error).__name__}: {error}"
        with contextlib.suppress(ClosedError):
            channel.send({"event": "failed", "kind": kind, "text": text})
        sys.exit(1)


if __name__ == "__main__":
    main()
