"""A thousand completions of a finished run, sampled again from its files.

    python -m tests.benchmarks.replay --out build/replay                       # both engines
    python -m tests.benchmarks.replay --out build/replay --engine transformers

Two runs of a tiny model on the CPU: an asynchronous one with vLLM, whose rollouts are one version
old, and one with the transformers engine and ``learner.exact``. Completions are drawn at random
from the ledger of each, and ``rlvr.rl.replay`` samples them again, training forward from the
nearest checkpoint where it has to. OUT/results.json has a row for each run; the same rows are
printed. vLLM batches requests by the moment at which they arrive, so its rounding, and now and
then a token, is another one.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from rlvr.files import write_atomically
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.rl.replay import Replayed, replay_completions
from rlvr.runs.ledger import read_ledger
from tests.training import run, small_recipe

ENGINES = ("vllm", "transformers")
_LENGTH = {"function": "length", "parameters": {"target": 16}}


def recipe(engine: str, model: Path, output: Path) -> dict[str, Any]:
    """A run of six steps with 192 completions each."""
    values = small_recipe(model, output)
    values["rollout"] = {
        "prompts_per_step": 24,
        "samples_per_prompt": 8,
        "sampling": {"max_tokens": 32},
        "engine": {"name": engine},
        "max_staleness": 1 if engine == "vllm" else 0,
    }
    # A random model is never right, so that length is what it learns from.
    values["reward"] = {"functions": [{"function": "accuracy"}, _LENGTH]}
    values["learner"]["exact"] = engine == "transformers"
    values["checkpoint"] = {"every": 2, "keep": 2}
    values["evaluation"] = {"every": 6, "sets": {}}
    values["log"] = {"ledger": "tokens"}
    return values


def measured(engine: str, out: Path, count: int) -> dict[str, Any]:
    """Train, draw completions, replay them; a row of the table."""
    model = out / "model"
    if not model.is_dir():
        write_tiny_model(
            model, 0, TinySettings(hidden_size=32, layers=2, heads=2, key_value_heads=2)
        )
    began = time.perf_counter()
    folder, _ = run(recipe(engine, model, out / engine))
    trained = time.perf_counter()
    ids = [item.id for item in read_ledger(folder).completions()]
    drawn = random.Random(0).sample(ids, min(count, len(ids)))
    found = replay_completions(folder, drawn)
    seconds = {"run": trained - began, "replay": time.perf_counter() - trained}
    return summary(found) | {
        "engine": engine,
        "sampled": len(ids),
        **{name: round(value, 1) for name, value in seconds.items()},
    }


def summary(found: list[Replayed]) -> dict[str, Any]:
    """Counts over replayed completions; differences in nats."""
    apart = [result.largest for result in found if result.largest is not None]
    return {
        "replayed": len(found),
        "not_sampled": sum(result.fault is not None for result in found),
        "same_ids": sum(result.same_ids for result in found),
        "same_logprobs": sum(result.same_logprobs for result in found),
        "largest": max(apart, default=None),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--completions", type=int, default=1000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [
        measured(engine, options.out, options.completions) for engine in options.engine or ENGINES
    ]
    write_atomically(options.out / "results.json", json.dumps(rows, indent=1))
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
