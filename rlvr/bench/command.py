"""``rlvr bench``: measure a model on this machine, everything in one run."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from rlvr.bench.ceilings import measure_ceilings
from rlvr.bench.generation import raw_vllm_tokens, time_generation
from rlvr.bench.run import benchmark_run, shares
from rlvr.bench.updates import Size, time_updates
from rlvr.bench.workloads import WORKLOADS
from rlvr.policy import ModelSettings, load_policy
from rlvr.policy.tiny import write_tiny_model
from rlvr.rollout import TransformersEngineSettings, VllmEngineSettings
from rlvr.rollout.build import AnyEngineSettings

PARTS = ("generation", "update", "run")
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
    """Ceilings of the machine, then what is asked for of ``parts``.

    Args:
        model: Folder or Hub id; empty is a tiny model with random weights.
        parts: generation, update, run.
        workloads: Shapes of the updates.
        engine: transformers or vllm, for generation.
        precision: float32 or bfloat16.
        size: Of a step of generation and update.
        repeats: Measurements of each, after one that is not counted.
        recipe: What ``run`` trains.
        overrides: Settings that replace the recipe's.
        steps: Steps of it.

    Raises:
        ValueError: An unknown part, workload or engine; a run without a recipe; a model that cannot
            be loaded.
    """
    _check("part", parts, PARTS)
    _check("workload", workloads, WORKLOADS)
    _check("engine", [engine], tuple(ENGINES))
    if "run" in parts and recipe is None:
        raise ValueError("the part 'run' trains a recipe for a few steps; name it with --recipe")
    with tempfile.TemporaryDirectory() as place:
        if not model:
            model = str(Path(place) / "tiny")
            write_tiny_model(Path(model), seed=0)
        settings = ModelSettings.model_validate({"path": model, "precision": precision})
        policy = load_policy(settings)
        config = policy.causal_lm.config.get_text_config()
        parameters = sum(weight.numel() for weight in policy.model.parameters())
        ceilings = measure_ceilings(
            config.hidden_size, config.intermediate_size, 512, precision, policy.device
        )
        if engine == "vllm":
            ceilings = replace(ceilings, vllm_tokens=raw_vllm_tokens(settings, size, repeats))
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
            found["generation"] = time_generation(ENGINES[engine](), policy, size, repeats)
            if ceilings.vllm_tokens:
                rate = found["generation"]["tokens_per_second"]
                found["generation"]["of_raw_vllm"] = rate / ceilings.vllm_tokens
        if "update" in parts:
            found["updates"] = time_updates(policy, list(workloads), size, repeats, ceilings)
        del policy
        if recipe is not None and "run" in parts:
            run = benchmark_run(recipe, overrides, steps)
            found["run"] = run | {"shares": shares(run, ceilings, parameters)}
    return found


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; the known ones are {', '.join(known)}")
