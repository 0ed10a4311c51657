"""``rlvr bench``: measure a model on this machine in one run."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from rlvr.bench.ceilings import Ceilings, measure_ceilings
from rlvr.bench.generation import raw_vllm_tokens, time_generation
from rlvr.bench.run import benchmark_run, shares
from rlvr.bench.size import Size, check_names
from rlvr.bench.updates import time_updates
from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import write_tiny_model
from rlvr.progress import watching
from rlvr.rollout.settings import AnyEngineSettings, TransformersEngineSettings, VllmEngineSettings

ENGINES: dict[str, type[AnyEngineSettings]] = {
    "transformers": TransformersEngineSettings,
    "vllm": VllmEngineSettings,
}


def run_benchmark(
    model: str,
    *,
    parts: Sequence[str],
    workloads: Sequence[str],
    engine: str,
    precision: str,
    size: Size,
    repeats: int,
    recipe: Path | None,
    overrides: Sequence[str],
    steps: int,
) -> dict[str, Any]:
    """Measure the limits of the machine, then the requested ``parts``.

    Args:
        model: Folder or Hub id; empty is a tiny model with random weights.
        parts: generation, update, run.
        workloads: Shapes of the batches of the updates.
        engine: transformers or vllm, for generation.
        precision: float32 or bfloat16.
        size: Size of a step of generation and update.
        repeats: Number of measurements of each, after one that is not counted.
        recipe: Recipe that the part ``run`` trains.
        overrides: Settings that replace the recipe's.
        steps: Number of steps of that run.

    Raises:
        ValueError: A part, workload or engine is unknown, ``run`` has no recipe, or the model
            cannot be loaded.
    """
    check_names(parts, workloads, engine, recipe)
    with tempfile.TemporaryDirectory() as place:
        if not model:
            model = str(Path(place) / "tiny")
            write_tiny_model(Path(model), seed=0)
        settings = ModelSettings.model_validate({"path": model, "precision": precision})
        with watching(f"loading {model}"):
            policy = load_policy(settings)
        parameters = sum(weight.numel() for weight in policy.model.parameters())
        with watching("measuring the limits of the machine"):
            ceilings = _ceilings(policy, settings, size, repeats, with_vllm=engine == "vllm")
        found: dict[str, Any] = {
            "model": model,
            "parameters": parameters,
            "precision": precision,
            "engine": engine,
            "threads": torch.get_num_threads(),
            "size": asdict(size),
            "ceilings": asdict(ceilings),
        }
        if "generation" in parts:
            with watching("measuring generation"):
                found["generation"] = _generation(engine, policy, size, repeats, ceilings)
        if "update" in parts:
            with watching("measuring updates"):
                found["updates"] = time_updates(policy, list(workloads), size, repeats, ceilings)
        del policy
        if recipe is not None and "run" in parts:
            with watching("measuring a run"):
                run = benchmark_run(recipe, overrides, steps)
            found["run"] = run | {"shares": shares(run, ceilings, parameters)}
    return found


def _ceilings(
    policy: Policy, settings: ModelSettings, size: Size, repeats: int, *, with_vllm: bool
) -> Ceilings:
    config = policy.causal_lm.config.get_text_config()
    shape = (config.hidden_size, config.intermediate_size, 512)
    ceilings = measure_ceilings(*shape, settings.precision, policy.device)
    if not with_vllm:
        return ceilings
    return replace(ceilings, vllm_tokens=raw_vllm_tokens(settings, size, repeats))


def _generation(
    engine: str, policy: Policy, size: Size, repeats: int, ceilings: Ceilings
) -> dict[str, float]:
    found = time_generation(ENGINES[engine](), policy, size, repeats)
    if ceilings.vllm_tokens:
        found["of_raw_vllm"] = found["tokens_per_second"] / ceilings.vllm_tokens
    return found
