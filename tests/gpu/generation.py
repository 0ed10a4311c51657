"""Tokens per second of generation with the learner's own module (engine ``transformers``)."""

import time
from collections.abc import Iterator
from functools import partial

import torch

from rlvr.bench.generation import requests_of
from rlvr.bench.size import Size
from rlvr.policy.model import Policy
from rlvr.policy.vocabulary import vocab_size
from rlvr.rollout.build import build_engine
from rlvr.rollout.engine import Engine
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import TransformersEngineSettings
from tests.gpu.kit import Row, Setting, attempt
from tests.gpu.shapes import QWEN2, QWEN3, forget, peak_gib, policy_of, synchronize

_SAMPLES = 8
_WARM_UP = 4
"""Tokens of each row that are generated before the clock runs."""


def measure(setting: Setting) -> Iterator[Row]:
    """A row for each model and number of rows; every completion has the same length."""
    prompt, tokens = setting.pick((4, 6), (128, 256))
    for model in (QWEN3, QWEN2):
        policy = policy_of(model, setting)
        for rows in setting.pick((8,), (64, 512)):
            size = Size(rows // _SAMPLES, _SAMPLES, prompt, tokens)
            shape = {"model": model, "rows": rows, "prompt": prompt, "tokens": tokens}
            yield attempt(shape, partial(timed, policy, size))
        del policy
        forget()


def timed(policy: Policy, size: Size) -> Row:
    """Seconds and peak memory of a rollout."""
    settings = TransformersEngineSettings(max_rows=size.completions)
    engine = build_engine(settings, policy, [], size.prompt_tokens + size.tokens)
    try:
        engine.sync(policy, 0)
        _generate(engine, policy, size, _WARM_UP)
        forget()
        seconds = _generate(engine, policy, size, size.tokens)
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}
    finally:
        engine.close()
    return {
        "seconds": seconds,
        "tokens_per_second": size.completions * size.tokens / seconds,
        "peak_gib": peak_gib(),
    }


def _generate(engine: Engine, policy: Policy, size: Size, tokens: int) -> float:
    requests = requests_of(size, vocab_size(policy), 0)
    synchronize()
    began = time.perf_counter()
    engine.generate(requests, Sampling(max_tokens=tokens))
    synchronize()
    return time.perf_counter() - began
