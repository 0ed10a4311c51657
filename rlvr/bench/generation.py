"""Tokens per second of a rollout engine, and of vLLM without our code.

All requests run to the token limit, so that all engines draw the same number of tokens.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from rlvr.bench.size import Size
from rlvr.policy.model import Policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.vocabulary import vocab_size
from rlvr.rollout.build import build_engine
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import EngineSettings
from rlvr.rollout.vllm_child import child_environment
from rlvr.rollout.vllm_engine import engine_seed


def requests_of(size: Size, vocab_size: int, seed: int) -> list[Request]:
    """Random prompts with one seed per sample."""
    generator = torch.Generator().manual_seed(seed)

    def whole(limit: int, count: int) -> tuple[int, ...]:
        return tuple(torch.randint(limit, (count,), generator=generator).tolist())

    return [
        Request(whole(vocab_size, size.prompt_tokens), whole(2**62, size.samples))
        for _ in range(size.prompts)
    ]


def time_generation(
    settings: EngineSettings, policy: Policy, size: Size, repeats: int
) -> dict[str, float]:
    """Start an engine, warm it up, time ``repeats`` rollouts of ``size``, and close it."""
    vocabulary = vocab_size(policy)
    began = time.perf_counter()
    engine = build_engine(settings, policy, [], size.prompt_tokens + size.tokens)
    try:
        started = time.perf_counter() - began
        sampling = Sampling(max_tokens=size.tokens)
        syncs, seconds = [], []
        for turn in range(repeats + 1):
            began = time.perf_counter()
            engine.sync(policy, turn)  # this also drops the cached prompts
            syncs.append(time.perf_counter() - began)
            began = time.perf_counter()
            engine.generate(requests_of(size, vocabulary, turn), sampling)
            seconds.append(time.perf_counter() - began)
    finally:
        engine.close()
    middle = statistics.median(seconds[1:])
    return {
        "start_seconds": started,
        "sync_seconds": statistics.median(syncs),
        "seconds": middle,
        "seconds_least": min(seconds[1:]),
        "seconds_most": max(seconds[1:]),
        "tokens_per_second": size.completions * size.tokens / middle,
    }


def raw_vllm_tokens(model: ModelSettings, size: Size, repeats: int) -> float:
    """Tokens per second of ``LLM.generate`` on the same requests, in a separate process.

    Raises:
        ValueError: vLLM does not run on this machine.
    """
    asked = {
        "model": str(model.path),
        "precision": model.precision,
        "repeats": repeats,
        "size": [size.prompts, size.samples, size.prompt_tokens, size.tokens],
    }
    threads = torch.get_num_threads()
    done = subprocess.run(
        [sys.executable, "-m", "rlvr.bench.generation", json.dumps(asked)],
        env=child_environment(os.environ, threads),
        capture_output=True,
        text=True,
        timeout=3600,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"vLLM's LLM.generate failed here: {last}; see rlvr doctor")
    return float(json.loads(done.stdout.splitlines()[-1]))


def raw_llm(model: str, precision: str, longest: int) -> Any:  # noqa: ANN401
    """vLLM in this process, with our engine's settings."""
    from vllm import LLM

    return LLM(
        model=model,
        dtype=precision,
        enforce_eager=True,
        max_model_len=longest,
        max_num_seqs=128,
        kv_cache_memory_bytes=2**30,
        block_size=32,
        enable_chunked_prefill=False,
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
    )


def raw_generate(
    llm: Any,  # noqa: ANN401
    pairs: Sequence[tuple[Sequence[int], int]],
    **sampling: Any,  # noqa: ANN401
) -> int:
    """Number of tokens that ``LLM.generate`` returns for (prompt, seed) pairs."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": list(prompt)} for prompt, _ in pairs]
    params = [
        SamplingParams(seed=engine_seed(seed), logprobs=0, detokenize=False, **sampling)
        for _, seed in pairs
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def _raw(asked: dict[str, Any]) -> float:
    size = Size(*asked["size"])
    llm = raw_llm(asked["model"], asked["precision"], size.prompt_tokens + size.tokens)
    vocab_size = llm.llm_engine.model_config.get_vocab_size()
    rates = []
    for turn in range(asked["repeats"] + 1):
        wanted = requests_of(size, vocab_size, turn)
        pairs = [(request.prompt_ids, seed) for request in wanted for seed in request.seeds]
        llm.reset_prefix_cache()
        began = time.perf_counter()
        count = raw_generate(llm, pairs, max_tokens=size.tokens, ignore_eos=True)
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates[1:])


if __name__ == "__main__":
    print(json.dumps(_raw(json.loads(sys.argv[1]))))
