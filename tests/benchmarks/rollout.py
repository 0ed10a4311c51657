"""Tokens per second of the vLLM engine, of vLLM's own ``LLM.generate``, and of transformers.

    python -m tests.benchmarks.rollout --model FOLDER [--prompts 8] [--samples 8] [--rounds 3]

The same requests with the same seeds go to all three, none of which may stop before the limit, so
that all generate as many tokens. In each round every one of them is started, warmed up with a few
tokens, and timed, one after the other: at no time are two of them in memory, and other load on the
machine meets all alike. Starting is not in the figures.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from rlvr.bench.generation import raw_generate, raw_llm
from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.build import build_engine
from rlvr.rollout.engine import Engine, Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import TransformersEngineSettings, VllmEngineSettings
from rlvr.rollout.vllm_child import child_environment

NAMES = ("vllm engine", "LLM.generate", "transformers engine")


def requests(options: argparse.Namespace, seed: int) -> list[Request]:
    """Random prompts of one length, each with its seeds."""
    generator = random.Random(seed)
    return [
        Request(
            tuple(generator.randrange(5, 40_000) for _ in range(options.prompt_tokens)),
            tuple(generator.randrange(2**63) for _ in range(options.samples)),
        )
        for _ in range(options.prompts)
    ]


def timed(engine: Engine, options: argparse.Namespace, policy: Policy) -> float:
    """Tokens per second of an engine, which is started and closed."""
    engine.sync(policy, 0)
    engine.generate(requests(options, 1), Sampling(max_tokens=4))
    began = time.perf_counter()
    outputs = engine.generate(requests(options, 0), Sampling(max_tokens=options.tokens))
    seconds = time.perf_counter() - began
    engine.close()
    return sum(len(sample.token_ids) for output in outputs for sample in output) / seconds


def raw(options: argparse.Namespace) -> float:
    """Tokens per second of ``LLM.generate`` in this process."""
    llm = raw_llm(options.model, options.precision, options.prompt_tokens + options.tokens)

    def generate(asked: list[Request], tokens: int) -> int:
        pairs = [(request.prompt_ids, seed) for request in asked for seed in request.seeds]
        return raw_generate(llm, pairs, max_tokens=tokens, ignore_eos=True)

    generate(requests(options, 1), 4)
    began = time.perf_counter()
    count = generate(requests(options, 0), options.tokens)
    return count / (time.perf_counter() - began)


def measure(name: str, options: argparse.Namespace) -> float:
    """Tokens per second of one of the three."""
    if name == "LLM.generate":
        command = [sys.executable, "-m", "tests.benchmarks.rollout", "--raw", *sys.argv[1:]]
        environment = child_environment(os.environ, options.threads)
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=1800
        )
        return float(json.loads(done.stdout.splitlines()[-1]))
    settings = ModelSettings(path=options.model, precision=options.precision)
    policy = load_policy(settings, device=torch.device("cpu"))
    chosen = (
        VllmEngineSettings(threads=options.threads)
        if name == "vllm engine"
        else TransformersEngineSettings()
    )
    longest = options.prompt_tokens + options.tokens
    return timed(build_engine(chosen, policy, [], longest), options, policy)


def main() -> None:
    """Measure in rounds and print the medians, each round's figures and the load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--raw", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raw:
        print(json.dumps(raw(options)))
        return
    torch.set_num_threads(options.threads)
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(options.rounds):
        for name in NAMES:
            found[name].append(measure(name, options))
            load = Path("/proc/loadavg").read_text().split()[0]
            print(f"round {number}  {name:20} {found[name][-1]:8.1f} tokens/s  load {load}")
            sys.stdout.flush()
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    for name, median in medians.items():
        print(f"median   {name:20} {median:8.1f} tokens/s")
    ours = medians["vllm engine"]
    print(f"vllm engine / LLM.generate         {ours / medians['LLM.generate']:.3f}")
    print(f"vllm engine / transformers engine  {ours / medians['transformers engine']:.2f}")


if __name__ == "__main__":
    main()
