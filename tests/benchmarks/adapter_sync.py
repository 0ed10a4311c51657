"""Seconds and bytes of a sync with vLLM, and tokens per second: adapters against merged weights.

    python -m tests.benchmarks.adapter_sync [--precision bfloat16] [--rank 16] [--rounds 10]

A Llama of SmolLM2-135M's shape with random weights and adapters on all linear layers. Two engines
run side by side, one per route. In every round the adapters are moved and each engine is given the
new version, one after the other, so that other load on the machine meets both alike. Then both
generate the same requests, none of which may stop early, in ``--speed-rounds`` rounds. Starting is
not in the figures. Each figure is a median with the smallest and largest value.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.rollout.adapter_sync import AdapterStore
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.rollout.vllm_engine import VllmEngine
from tests.benchmarks.update_memory import SHAPES

ROUTES = ("merged", "adapter")
_PROMPT_TOKENS = 64


def random_policy(folder: Path, options: argparse.Namespace) -> Policy:
    """A policy of the shape, saved to ``folder`` without its adapters."""
    vocabulary, hidden, intermediate, layers, heads, kv_heads = SHAPES[options.shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    lora = LoraSettings(rank=options.rank, alpha=2 * options.rank)
    settings = ModelSettings(path=str(folder), precision=options.precision, lora=lora)
    return load_policy(settings, device=torch.device("cpu"))


def move(policy: Policy, seed: int) -> None:
    """What an update does, roughly: every matrix of the adapters changes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.add_(1e-3 * torch.randn(parameter.shape, generator=generator))


def sent_bytes(engine: VllmEngine) -> int:
    """Bytes of the files that the last sync wrote."""
    store = engine._weights
    adapters = isinstance(store, AdapterStore) and store.newest
    folder = adapters.folder if adapters else store.folder.model
    return sum(path.stat().st_size for path in folder.iterdir())


def speed(engine: VllmEngine, options: argparse.Namespace, seed: int) -> float:
    """Tokens per second."""
    generator = random.Random(seed)
    asked = [
        Request(
            tuple(generator.randrange(5, 16_000) for _ in range(_PROMPT_TOKENS)),
            tuple(generator.randrange(2**63) for _ in range(options.samples)),
        )
        for _ in range(options.prompts)
    ]
    began = time.perf_counter()
    engine.generate(asked, Sampling(max_tokens=options.tokens))
    count = options.prompts * options.samples * options.tokens
    return count / (time.perf_counter() - began)


def measure(options: argparse.Namespace, place: Path) -> dict[str, dict[str, list[float]]]:
    """All figures of both routes."""
    policy = random_policy(place / "model", options)
    found: dict[str, dict[str, list[float]]] = {route: {} for route in ROUTES}

    def note(route: str, **values: float) -> None:
        print(route, json.dumps(values), file=sys.stderr, flush=True)
        for name, value in values.items():
            found[route].setdefault(name, []).append(value)

    engines = {
        route: VllmEngine(
            policy,
            [],
            VllmEngineSettings(lora=route, kv_cache_gib=0.5, threads=options.threads),
            longest=_PROMPT_TOKENS + options.tokens,
        )
        for route in ROUTES
    }
    try:
        for route, engine in engines.items():
            engine.sync(policy, 0)
            print(f"{route}: started", file=sys.stderr, flush=True)
        for version in range(1, options.rounds + 1):
            move(policy, version)
            for route, engine in engines.items():
                began = time.perf_counter()
                metrics = engine.sync(policy, version)
                note(
                    route,
                    seconds=time.perf_counter() - began,
                    write=metrics["sync/write_seconds"],
                    load=metrics["sync/load_seconds"],
                    difference=metrics["sync/difference"],
                    megabytes=sent_bytes(engine) / 1e6,
                )
        for turn in range(options.speed_rounds + 1):
            for route, engine in engines.items():
                value = speed(engine, options, turn)
                if turn:  # the first one warms up
                    note(route, tokens_per_second=value)
    finally:
        for engine in engines.values():
            engine.close()
    return found


def shown(values: list[float]) -> str:
    """Median, smallest and largest value."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    """Measure and print a table; the last line is everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--speed-rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found: dict[str, Any] = measure(options, Path(place))
    print("| | merged | adapter |\n|---|---|---|")
    for name in found["merged"]:
        print(f"| {name} | {shown(found['merged'][name])} | {shown(found['adapter'][name])} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
