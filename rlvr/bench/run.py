"""Where a training run's seconds go: a recipe, run for a few steps in a process of its own."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlvr.bench.ceilings import Ceilings
from rlvr.bench.memory import PeakMemory

PHASES = ("generate", "verify", "wait", "statistics", "update", "sync")
"""What a step consists of; evaluation and checkpoints are beside it."""


def benchmark_run(recipe: Path, overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """Train for ``steps`` steps and say how long each phase took.

    The run's folder is temporary. The first step, in which much happens for the first time, counts
    to the start and not to the medians.

    Raises:
        ValueError: The run failed; with its last line.
    """
    if steps < 2:
        raise ValueError(
            f"{steps} steps leave nothing after the first, which only warms up; take 2"
        )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        command = [sys.executable, "-m", "rlvr", "train", str(recipe), *overrides]
        command += [f"steps={steps}", f"output={folder}"]
        began = time.time()
        with (Path(place) / "output").open("wb+") as output:
            child = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ})
            with PeakMemory(child.pid) as memory:
                code = child.wait()
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
        if code:
            raise ValueError(f"rlvr train {recipe} failed: {(said or ['it said nothing'])[-1]}")
        return summary(folder, began, time.time() - began) | {"peak_gib": memory.gib}


def summary(folder: Path, began: float, total_s: float) -> dict[str, Any]:
    """Median seconds of each phase of a finished run.

    Args:
        folder: The run's.
        began: When its process was started, seconds since the epoch.
        total_s: How long it took, all in all.
    """
    steps: dict[int, dict[str, float]] = {}
    for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        steps.setdefault(row["step"], {}).update(row)
    counted = [row for step, row in sorted(steps.items()) if step > 1]
    spans = (folder / "timeline.jsonl").read_text(encoding="utf-8").splitlines()
    first = min(json.loads(span)["begin"] for span in spans)

    def middle(name: str, rows: Sequence[dict[str, float]] = counted) -> float | None:
        found = [row[name] for row in rows if name in row]
        return statistics.median(found) if found else None

    taken = {phase: middle(f"time/{phase}") for phase in PHASES}
    seconds = {phase: value for phase, value in taken.items() if value is not None}
    whole = middle("time/step")
    assert whole is not None
    seconds["other"] = max(0.0, whole - sum(seconds.values()))
    length = middle("completion/length_mean")
    count = middle("throughput/trained_tokens_per_second")
    everything = list(steps.values())
    return {
        "steps": len(counted),
        "step_seconds": whole,
        "step_seconds_least": min(row["time/step"] for row in counted),
        "step_seconds_most": max(row["time/step"] for row in counted),
        "phases": seconds,
        "neither_generation_nor_update": 1
        - (seconds.get("generate", 0.0) + seconds["update"]) / whole,
        "completion_length": length,
        "trained_tokens_per_second": count,
        "generated_tokens_per_second": middle("throughput/generated_tokens_per_second"),
        "pad_fraction": middle("learner/pad_fraction"),
        "start_seconds": first - began,
        "checkpoint_seconds": middle("time/checkpoint", everything),
        "evaluate_seconds": middle("time/evaluate", everything),
        "total_seconds": total_s,
    }


def shares(found: dict[str, Any], ceilings: Ceilings, parameters: int) -> dict[str, float]:
    """Each phase as a share of what the bare machine could do, where there is such a rate.

    Generation against vLLM's own tokens a second; a sync against one copy of float32 weights.
    """
    shares: dict[str, float] = {}
    generated = found["generated_tokens_per_second"]
    if ceilings.vllm_tokens and generated:
        shares["generate"] = generated / ceilings.vllm_tokens
    sync = found["phases"].get("sync")
    if sync:
        shares["sync"] = 4 * parameters / ceilings.copy_bytes / sync
    return shares
