"""A thousand completions of a finished run, sampled again from its files.

    python -m tests.benchmarks.replay --out build/replay                       # both engines
    python -m tests.benchmarks.replay --out build/replay --engine transformers
    python -m tests.benchmarks.replay --out build/replay --engine vllm --alone
    python -m tests.benchmarks.replay --out build/replay --engine vllm --precision bfloat16 --alone

Two runs of a tiny model on the CPU: an asynchronous one with vLLM, whose rollouts are one version
old, and one with the transformers engine and ``learner.exact``. Completions are drawn at random
from the ledger of each, and ``rlvr.rl.replay`` samples them again, training forward from the
nearest checkpoint where it has to. OUT/results.json has a row for each run; the same rows are
printed. A run that is finished is used again.

vLLM rounds otherwise in another batch, and then now and then draws another token. ``--alone`` asks
it for each prompt's completions without the rest of their round. Where ids differ, ``ties`` has how
far the two tokens were apart in that draw, in nats: a draw takes the largest of log p_i + g_i with
Gumbel noise g_i, which the seed gives, so two runs that differ by rounding can only disagree where
two of these are as close.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rlvr.files import write_atomically
from rlvr.learner.checkpoint import checkpoints_of
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.rl import replay
from rlvr.rl.replay import Replayed, replay_completions
from rlvr.rollout.engine import Sample
from rlvr.rollout.vllm_engine import engine_seed
from rlvr.runs.ledger import LedgerCompletion, read_ledger
from tests.training import run, small_recipe

ENGINES = ("vllm", "transformers")
_LENGTH = {"function": "length", "parameters": {"target": 16}}


def recipe(engine: str, precision: str, model: Path, output: Path) -> dict[str, Any]:
    """A run of six steps with 192 completions each."""
    values = small_recipe(model, output)
    values["model"]["precision"] = precision
    values["rollout"] = {
        "prompts_per_step": 24,
        "samples_per_prompt": 8,
        "sampling": {"max_tokens": 32},
        "engine": _engine(engine, output),
        "max_staleness": 1 if engine == "vllm" else 0,
    }
    # A random model is never right, so that length is what it learns from.
    values["reward"] = {"functions": [{"function": "accuracy"}, _LENGTH]}
    values["learner"]["exact"] = engine == "transformers"
    values["checkpoint"] = {"every": 2, "keep": 2}
    values["evaluation"] = {"every": 6, "sets": {}}
    values["log"] = {"ledger": "tokens"}
    return values


def _engine(name: str, output: Path) -> dict[str, Any]:
    """Settings of the engine; vLLM's may wait long for a processor that others have."""
    if name != "vllm":
        return {"name": name}
    log = output.parent / "vllm.log"
    patience = {"start_timeout_s": 1800, "silence_timeout_s": 1800}
    return {"name": name, "threads": 1, "kv_cache_gib": 0.25, "log": str(log), **patience}


def measured(options: argparse.Namespace, engine: str) -> dict[str, Any]:
    """Train, draw completions, replay them; a row of the table."""
    # vLLM's attention on a CPU takes heads that are 32 wide.
    width = 64 if engine == "vllm" else 32
    out, model = options.out, options.out / f"model-{width}"
    if not model.is_dir():
        shape = TinySettings(hidden_size=width, layers=2, heads=2, key_value_heads=2)
        write_tiny_model(model, 0, shape)
    name = engine if options.precision == "float32" else f"{engine}-{options.precision}"
    folder, began = out / name, time.perf_counter()
    if not checkpoints_of(folder / "checkpoints"):
        run(recipe(engine, options.precision, model, folder))
    trained = time.perf_counter()
    ids = [item.id for item in read_ledger(folder).completions()]
    drawn = random.Random(0).sample(ids, min(options.completions, len(ids)))
    with _watching(options.alone) as ties:
        found = replay_completions(folder, drawn)
    seconds = {"run": trained - began, "replay": time.perf_counter() - trained}
    asked = {"engine": engine, "precision": options.precision, "alone": options.alone}
    return (
        asked
        | summary(found)
        | {"ties": ties, "sampled": len(ids)}
        | {what: round(value, 1) for what, value in seconds.items()}
    )


@contextmanager
def _watching(alone: bool) -> Iterator[list[dict[str, Any]]]:
    """Collect the draws that came out otherwise; ``alone`` asks for each prompt by itself."""
    ties: list[dict[str, Any]] = []
    calls, compared = replay._calls, replay.compared

    def each(run: Any, ledger: Any, groups: Any, names: set[str]) -> Any:
        own = [[item for item in group if item.id in names] for group in groups]
        return [[group] for group in own if group]

    def compare(item: LedgerCompletion, sample: Sample) -> Replayed:
        result = compared(item, sample)
        if not result.same_ids:
            ties.append(tie(item, sample))
        return result

    replay._calls, replay.compared = (each if alone else calls), compare
    try:
        yield ties
    finally:
        replay._calls, replay.compared = calls, compared


def tie(item: LedgerCompletion, sample: Sample) -> dict[str, Any]:
    """How far apart in a draw, in nats, were the recorded token and the one sampled again?"""
    ids, logprobs = item.row["ids"], item.row["logprobs"]
    pairs = enumerate(zip(ids, sample.token_ids, strict=False))
    place = next(i for i, (one, other) in pairs if one != other)
    generator = torch.Generator().manual_seed(engine_seed(int(item.row["seed"], 16)))
    for _ in range(place + 1):  # one number of the request's generator for each token
        seed = torch.randint(0, 2**31, (1,), generator=generator)
    between = logprobs[place] - sample.logprobs[place]
    noise = _noise_between(ids[place], sample.token_ids[place], seed)
    return {"id": item.id, "position": place, "apart": abs(between + noise)}


def _noise_between(one: int, other: int, seed: torch.Tensor) -> float:
    """The Gumbel noise of a token less that of another in a draw of vLLM's; by bisection."""
    import vllm._custom_ops  # noqa: F401  it loads the operator

    low, high = -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        logits_NV = torch.full((1, max(one, other) + 1), -1e30)
        logits_NV[0, one], logits_NV[0, other] = middle, 0.0
        first = int(torch.ops._C.fused_gumbel_argmax(logits_NV, seed)) == one
        low, high = (low, middle) if first else (middle, high)
    return -middle


def summary(found: list[Replayed]) -> dict[str, Any]:
    """Counts over replayed completions; differences in nats, each the largest of a completion."""
    apart = [result.largest for result in found if result.largest is not None]
    return {
        "replayed": len(found),
        "not_sampled": sum(result.fault is not None for result in found),
        "same_ids": sum(result.same_ids for result in found),
        "same_logprobs": sum(result.same_logprobs for result in found),
        "median": median(apart) if apart else None,
        "largest": max(apart, default=None),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--completions", type=int, default=1000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [measured(options, engine) for engine in options.engine or ENGINES]
    write_atomically(options.out / "results.json", json.dumps(rows, indent=1))
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
