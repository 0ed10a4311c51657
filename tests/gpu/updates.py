"""Updates of the house's learner at 4k, 16k and 64k tokens: seconds and peak memory.

A micro-batch holds that many: ``one`` sequence, or ``groups`` of prompts of 256 tokens with 8
completions of 480 each, packed. bfloat16 autocast over float32 weights, activations recomputed,
AdamW. One update warms up; the median of the others counts.

prime-rl publishes for Qwen3-0.6B on an H100 (benchmarks/baselines of its repository, rl-full,
Recompute, flash_attention_3, 16384): 1.992 s for a step of two micro-batches of 16,384 tokens,
which are 16.4k tokens/s, and 12.5 GiB. The first case is that one.
"""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

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
from tests.gpu.kit import Row, Setting, attempt
from tests.gpu.shapes import (
    QWEN2,
    QWEN3,
    device_of,
    forget,
    peak_gib,
    policy_of,
    synchronize,
)

PUBLISHED_TOKENS_PER_SECOND = 16_400.0
_GROUP, _PROMPT, _COMPLETION = 8, 256, 480
LAYOUTS = {"one": "padded", "groups": "packed"}
_REPEATS, _LONG_S = 3, 5.0


class Variant(NamedTuple):
    """Settings that differ from the defaults, of the model and of the learner."""

    model: dict[str, Any] = {}  # noqa: RUF012
    learner: dict[str, Any] = {}  # noqa: RUF012


VARIANTS = {
    "defaults": Variant(),
    "head in chunks": Variant({"logits": "chunked"}),
    "fewer bits": Variant(
        {"weights": "bfloat16"}, {"optimizer_states": "int8", "in_backward": "per_tensor"}
    ),
    "flex attention": Variant({"attention": "flex_attention"}),
}
_ON_A_GPU = frozenset({"flex attention"})


class Case(NamedTuple):
    """What is measured."""

    model: str
    workload: str
    tokens: int
    variant: str = "defaults"
    micro_batches: int = 1


CASES = (
    Case(QWEN3, "one", 16_384, "defaults", 2),
    Case(QWEN3, "one", 16_384),
    Case(QWEN3, "one", 16_384, "fewer bits"),
    Case(QWEN3, "one", 16_384, "head in chunks"),
    Case(QWEN3, "groups", 16_384),
    Case(QWEN3, "groups", 16_384, "flex attention"),
    Case(QWEN3, "one", 4_096),
    Case(QWEN3, "one", 65_536),
    Case(QWEN2, "one", 16_384),
    Case(QWEN2, "one", 4_096),
    Case(QWEN2, "one", 65_536),
    Case(QWEN2, "groups", 16_384),
    Case(QWEN3, "groups", 65_536, "flex attention"),
    Case(QWEN3, "groups", 65_536),
)
PUBLISHED = CASES[0]
TINY = (
    Case(QWEN3, "one", 64, "defaults", 2),
    *(Case(QWEN3, "one", 64, variant) for variant in VARIANTS),
    Case(QWEN3, "groups", 128),
    Case(QWEN2, "one", 64),
    Case(QWEN2, "groups", 128),
)


def measure(setting: Setting) -> Iterator[Row]:
    """A row for each case that this device runs."""
    gpu = device_of().type == "cuda"
    for case in setting.pick(TINY, CASES):
        if gpu or case.variant not in _ON_A_GPU:
            yield attempt(case._asdict(), partial(one_update, setting, case))
            forget()


def one_update(setting: Setting, case: Case) -> Row:
    """Seconds, rates and peak memory of an update."""
    forget()
    variant = VARIANTS[case.variant]
    policy = policy_of(case.model, setting, gradient_checkpointing=True, **variant.model)
    learner = learner_of(policy, case.workload, case.tokens, **variant.learner)
    words, count = vocab_size(policy), case.micro_batches
    batch = batch_of(case.workload, case.tokens, words, setting, count)
    try:
        seconds = list(updates(learner, batch, setting))
    except (torch.OutOfMemoryError, ValueError) as error:
        if "out of memory" not in str(error):
            raise
        return {"note": "out of memory"}
    if learner.budget.retries:
        return {"note": "out of memory with all tokens in one micro-batch"}
    middle, tokens = statistics.median(seconds), case.tokens * count
    flops = count * training_flops(policy, case.tokens, case.workload)
    row: Row = {
        "head": policy.head.logits,
        "repeats": len(seconds),
        "seconds": middle,
        "seconds_least": min(seconds),
        "seconds_most": max(seconds),
        "tokens_per_second": tokens / middle,
        "peak_gib": peak_gib(),
        "tflops": flops / middle / 1e12,
    }
    if case == PUBLISHED:
        row["times_published"] = row["tokens_per_second"] / PUBLISHED_TOKENS_PER_SECOND
    return row


def learner_of(policy: Policy, workload: str, tokens: int, **more: Any) -> Learner:
    """GRPO's learner, with all tokens of an update in one micro-batch.

    Args:
        policy: To train.
        workload: Whose layout is taken.
        tokens: Of an update.
        more: Settings of the learner.
    """
    settings = {"lr": 1e-6, "tokens_per_micro_batch": tokens, "layout": LAYOUTS[workload], **more}
    objective = Objective(Clip(), (), TokenMean())
    return Learner(policy, objective, LearnerSettings.model_validate(settings))


def batch_of(
    workload: str, tokens: int, words: int, setting: Setting, micro_batches: int = 1
) -> Batch:
    """A batch that runs ``tokens`` positions in each micro-batch."""
    prompt, completion = setting.pick((8, 7), (_PROMPT, _COMPLETION))
    if workload == "one":
        lengths = [tokens - prompt] * micro_batches
        return made_up_batch(lengths, prompt_tokens=prompt, group_size=1, vocab_size=words)
    groups = tokens // (prompt + _GROUP * completion) * micro_batches
    lengths = [completion] * (groups * _GROUP)
    return made_up_batch(lengths, prompt_tokens=prompt, group_size=_GROUP, vocab_size=words)


def updates(learner: Learner, batch: Batch, setting: Setting) -> Iterator[float]:
    """Seconds of updates after the first, whose memory does not count; as many as time allows."""
    first = _seconds(learner, batch)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for turn in range(_REPEATS):
        if turn and (first > _LONG_S or setting.left < 3 * first):
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
