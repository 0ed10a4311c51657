"""Where a training run's seconds go: run a recipe for a few steps in a separate process."""

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
from rlvr.files import read_lines

PHASES = ("generate", "verify", "wait", "statistics", "update", "sync")
"""The phases of a step; evaluation and checkpoints are separate."""


def benchmark_run(recipe: Path, overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """Train for ``steps`` steps and return how long each phase took.

    The run's folder is temporary. The first step warms up; it counts as part of the start and not
    in the medians.

    Raises:
        ValueError: The run failed; the message contains its last line.
    """
    if steps < 2:
        raise ValueError(
            f"{steps} steps leave none after the first, which only warms up; use at least 2"
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
            raise ValueError(f"rlvr train {recipe} failed: {(said or ['no output'])[-1]}")
        return phase_medians(folder, began, time.time() - began) | {"peak_gib": memory.gib}


def phase_medians(folder: Path, began: float, total_s: float) -> dict[str, Any]:
    """Median seconds of each phase of a finished run.

    Args:
        folder: Folder of the run.
        began: Start time of its process, in seconds since the epoch.
        total_s: Total seconds of the process.
    """
    steps: dict[int, dict[str, float]] = {}
    for row in read_lines(folder / "metrics.jsonl").objects:
        steps.setdefault(row["step"], {}).update(row)
    counted = [row for step, row in sorted(steps.items()) if step > 1]
    first = min(span["begin"] for span in read_lines(folder / "timeline.jsonl").objects)

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
    """Each phase as a share of the machine's limit, if the limit was measured.

    Generation is compared with vLLM's tokens per second, and a sync with one copy of the float32
    weights.
    """
    shares: dict[str, float] = {}
    generated = found["generated_tokens_per_second"]
    if ceilings.vllm_tokens and generated:
        shares["generate"] = generated / ceilings.vllm_tokens
    sync = found["phases"].get("sync")
    if sync:
        shares["sync"] = 4 * parameters / ceilings.copy_bytes / sync
    return shares
