"""Traces in lock-step against one at a time, and against the two models' own forward passes.

    python -m tests.benchmarks.distill [--teacher FOLDER --student FOLDER] [--rows 64] [--rounds 3]

Without folders, tiny models from nothing. No token ends a trace, so that all have the same length,
and every setting generates the same traces. In each round lock-step, one at a time, and plain
forward passes of each model (transformers' own cache, the same number of rows, positions and
threads) are timed one after the other, so that other load on the machine meets all alike; medians
are printed.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from rlvr.distill.acceptance_rule import AcceptanceRule
from rlvr.distill.decode_batch import TransformersDecodeModel
from rlvr.distill.lockstep import LockstepEngine
from rlvr.distill.settings import TraceModel, TransformersTraceSettings
from rlvr.distill.trace_model import load_trace_model
from rlvr.distill.trace_request import TraceRequest
from rlvr.distill.vocabulary_match import Vocabulary
from rlvr.policy.tiny import TinySettings, build_tiny_model


def models(options: argparse.Namespace) -> tuple[Any, Any]:
    """Teacher and student."""
    if options.teacher is None:
        shapes = (TinySettings(), TinySettings(hidden_size=64, layers=2))
        teacher, student = (build_tiny_model(i, 86, shape).eval() for i, shape in enumerate(shapes))
        return teacher, student
    loaded = [
        load_trace_model(TraceModel(path=str(path), precision=options.precision, device="cpu"))
        for path in (options.teacher, options.student)
    ]
    return loaded[0].model, loaded[1].model


def requests(options: argparse.Namespace, count: int, vocabulary: int) -> list[TraceRequest]:
    """Traces of random prompts, four of each."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(
        5, vocabulary, (count // 4 + 1, options.prompt_tokens), generator=generator
    )
    ids = [tuple(row) for row in prompts.tolist()]
    return [TraceRequest(f"p{i // 4}", i % 4, ids[i // 4], ids[i // 4]) for i in range(count)]


def traced(
    teacher: Any, student: Any, options: argparse.Namespace, rows: int, count: int, block: int = 1
) -> dict[str, float]:
    """Generate ``count`` traces; seconds per token and where they went."""
    engine = LockstepEngine(
        TransformersDecodeModel(teacher),
        TransformersDecodeModel(student),
        Vocabulary("same", None, None, {}),
        AcceptanceRule(),
        (),
        options.tokens,
        0,
        TransformersTraceSettings(rows=rows, block=block),
    )
    began = time.perf_counter()
    tokens = sum(
        len(item.token_ids)
        for item in engine.generate(requests(options, count, teacher.config.vocab_size))
    )
    seconds = time.perf_counter() - began
    assert tokens == count * options.tokens
    found = engine.metrics()
    parts = {
        name: found[f"distill/{name}"] / tokens for name in ("teacher_s", "student_s", "rule_s")
    }
    return {"seconds": seconds / tokens, "fallbacks": found["distill/fallback_rate"], **parts}


@torch.no_grad()
def forward(model: Any, options: argparse.Namespace, rows: int) -> float:
    """Seconds per token of plain decoding passes with transformers' own cache, prefill left out."""
    generator = torch.Generator().manual_seed(1)
    shape = (rows, options.prompt_tokens - 1)
    ids = torch.randint(5, model.config.vocab_size, shape, generator=generator)
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    tokens = ids[:, :1]
    began = time.perf_counter()
    for _ in range(options.tokens):
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
        tokens = logits[:, -1].argmax(-1, keepdim=True)
    return (time.perf_counter() - began) / (rows * options.tokens)


def one_round(
    teacher: Any, student: Any, options: argparse.Namespace
) -> Iterator[tuple[str, float]]:
    """Every figure of a round, in seconds per token."""
    many = traced(teacher, student, options, options.rows, options.rows)
    yield from ((f"lock-step: {name}", value) for name, value in many.items())
    yield "one at a time", traced(teacher, student, options, 1, options.alone)["seconds"]
    for block in options.blocks:
        found = traced(teacher, student, options, options.rows, options.rows, block)
        yield f"lock-step, block {block}", found["seconds"]
    for name, model in (("teacher", teacher), ("student", student)):
        yield f"{name}'s forward, {options.rows} rows", forward(model, options, options.rows)
        yield f"{name}'s forward, 1 row", forward(model, options, 1)


def main() -> None:
    """Run and print medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--alone", type=int, default=4, help="traces generated one at a time")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--blocks", type=int, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    teacher, student = models(options)
    list(one_round(teacher, student, argparse.Namespace(**{**vars(options), "tokens": 2})))
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, value in one_round(teacher, student, options):
            found.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in found.items()}
    own = sum(medians[f"{name}'s forward, {options.rows} rows"] for name in ("teacher", "student"))
    medians["speed-up of lock-step"] = medians["one at a time"] / medians["lock-step: seconds"]
    medians["lock-step / both forward passes"] = medians["lock-step: seconds"] / own
    print(json.dumps({name: float(f"{value:.4g}") for name, value in medians.items()}, indent=1))


if __name__ == "__main__":
    main()
