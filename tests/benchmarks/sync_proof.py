"""What the proof of a sync costs, part by part.

    python -m tests.benchmarks.sync_proof --out build/sync_proof

A model of SmolLM2-135M's shape with random weights, float32, and vLLM on the CPU, one thread each.
The parts of the proof, as medians and ranges over syncs in CPU seconds of the process that does
them, which other work on the machine changes less than seconds by the clock: checksums of what is
sent, the learner's log-probabilities, checksums of what arrives (of the folder's tensors, as the
worker takes them), and the engine's log-probabilities. ``ledger`` is the checksum of the policy's
weights that the run's ledger takes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from rlvr.policy.fingerprint import fingerprint
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.arrival import noted
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.rollout.vllm_engine import VllmEngine
from rlvr.rollout.weight_sync import learner_logprobs, sent_tensors
from tests.benchmarks.memory_options import write_model


def cpu_seconds(process: psutil.Process, work: Callable[[], Any]) -> float:
    """CPU seconds that ``process`` uses while ``work`` runs."""
    before = process.cpu_times()
    work()
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--syncs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    model = options.out / "model"
    if not model.is_dir():
        write_model(model)
    policy = load_policy(ModelSettings(path=str(model)), device=torch.device("cpu"))
    settings = VllmEngineSettings(threads=1, kv_cache_gib=0.25, start_timeout_s=1800)
    engine = VllmEngine(policy, [2], settings, longest=256)
    here = psutil.Process()
    found: dict[str, list[float]] = {}
    try:
        engine.sync(policy, 0)
        child = engine._process
        assert child is not None
        there = psutil.Process(child.pid)
        store = engine._weights
        for version in range(1, options.syncs + 1):
            began = time.perf_counter()
            engine.sync(policy, version)
            whole = time.perf_counter() - began

            def noting() -> None:
                for _, tensor in sent_tensors(policy, store.dtype):
                    noted(tensor)

            tensors = load_file(store.folder.model / "model.safetensors")
            for tensor in tensors.values():
                tensor.sum()  # whoever reads a mapped file first waits for its pages

            def arriving(tensors: dict[str, torch.Tensor] = tensors) -> None:
                for tensor in tensors.values():
                    noted(tensor)

            parts = {
                "sync, by the clock": whole,
                "ledger": cpu_seconds(here, lambda: fingerprint(policy)),
                "sent": cpu_seconds(here, noting),
                "learner": cpu_seconds(here, lambda: learner_logprobs(policy, store.sequence)),
                "arrived": cpu_seconds(here, arriving),
                "engine": cpu_seconds(there, lambda: child.call("score", tokens=store.sequence)),
            }
            for name, value in parts.items():
                found.setdefault(name, []).append(value)
    finally:
        engine.close()
    for name, values in found.items():
        print(f"{name:20} {median(values):6.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()
