"""Updates of the house's learner at 4k, 16k and 64k tokens: seconds and peak memory.

A micro-batch holds all tokens of an update. ``one`` is a single sequence of that length, which is
what prime-rl publishes (Qwen3-0.6B, 16k: 16.4k tokens/s and 12.5 GiB on an H100); ``groups`` are
prompts of 256 tokens with 8 completions of 480 each, packed. bfloat16 autocast over float32
weights, activations recomputed, AdamW. One update warms up; the median of the others counts.
"""

import statistics
import time
from collections.abc import Iterator, Sequence

import torch

from rlvr.bench.workloads import made_up_batch
from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.policy.model import Policy
from rlvr.policy.vocabulary import vocab_size
from rlvr.types import Batch
from tests.gpu.kit import Row, Setting
from tests.gpu.shapes import QWEN2, QWEN3, forget, peak_gib, policy_of, synchronize

PUBLISHED = {"tokens_per_second": 16_400.0, "peak_gib": 12.5}
_GROUP, _PROMPT, _COMPLETION = 8, 256, 480
LAYOUTS = {"one": "padded", "groups": "packed"}
_REPEATS = 3


def measure(setting: Setting) -> Iterator[Row]:
    """A row for each model, workload and length, the published one first."""
    lengths = setting.pick((64, 128), (16_384, 4_096, 65_536))
    for model in (QWEN3, QWEN2):
        for workload in LAYOUTS:
            for tokens in lengths:
                row = {"model": model, "workload": workload, "tokens": tokens}
                yield row | one_update(setting, model, workload, tokens)
                forget()


def one_update(setting: Setting, model: str, workload: str, tokens: int) -> Row:
    """Seconds, rates and peak memory of an update."""
    forget()
    policy = policy_of(model, setting, gradient_checkpointing=True)
    try:
        learner = learner_of(policy, workload, tokens)
        batch = batch_of(workload, tokens, vocab_size(policy), setting)
        seconds = list(updates(learner, batch, setting))
    except (torch.OutOfMemoryError, ValueError) as error:
        return {"note": str(error)[:200]}
    if learner.budget.retries:
        return {"note": "out of memory with all tokens in one micro-batch"}
    middle = statistics.median(seconds)
    flops = training_flops(policy, tokens, workload)
    row: Row = {
        "repeats": len(seconds),
        "seconds": middle,
        "seconds_least": min(seconds),
        "seconds_most": max(seconds),
        "tokens_per_second": tokens / middle,
        "peak_gib": peak_gib(),
        "tflops": flops / middle / 1e12,
    }
    if (model, workload, tokens) == (QWEN3, "one", 16_384):
        row["times_published"] = row["tokens_per_second"] / PUBLISHED["tokens_per_second"]
    return row


def learner_of(policy: Policy, workload: str, tokens: int) -> Learner:
    """GRPO's learner, with all tokens of an update in one micro-batch."""
    settings = LearnerSettings.model_validate(
        {"lr": 1e-6, "tokens_per_micro_batch": tokens, "layout": LAYOUTS[workload]}
    )
    return Learner(policy, Objective(Clip(), (), TokenMean()), settings)


def batch_of(workload: str, tokens: int, words: int, setting: Setting) -> Batch:
    """A batch that runs ``tokens`` positions."""
    prompt, completion = setting.pick((8, 7), (_PROMPT, _COMPLETION))
    if workload == "one":
        lengths: Sequence[int] = [tokens - prompt]
        return made_up_batch([*lengths], prompt_tokens=prompt, group_size=1, vocab_size=words)
    groups = tokens // (prompt + _GROUP * completion)
    lengths = [completion] * (groups * _GROUP)
    return made_up_batch([*lengths], prompt_tokens=prompt, group_size=_GROUP, vocab_size=words)


def updates(learner: Learner, batch: Batch, setting: Setting) -> Iterator[float]:
    """Seconds of updates after the first, whose memory does not count; as many as time allows."""
    first = _seconds(learner, batch)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for turn in range(_REPEATS):
        if turn and setting.left < 3 * first:
            return
        yield _seconds(learner, batch)


def _seconds(learner: Learner, batch: Batch) -> float:
    synchronize()
    began = time.perf_counter()
    metrics = learner.update(batch)
    synchronize()
    assert metrics["learner/skipped_updates"] == 0, "the gradient is not finite"
    return time.perf_counter() - began


def training_flops(policy: Policy, tokens: int, workload: str) -> float:
    """Operations of forward and backward without recomputing: 6 a weight and token, and attention.

    An embedding that is also the head counts once; attention is 12 x layers x heads x head size for
    each pair of a query and a key that it sees.
    """
    config = policy.causal_lm.config
    weights = sum(weight.numel() for weight in policy.model.parameters())
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_hidden_layers * config.num_attention_heads * size
    seen = tokens / 2 if workload == "one" else _PROMPT + _COMPLETION / 2
    return tokens * (6 * weights + 12 * width * seen)
