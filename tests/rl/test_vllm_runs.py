"""Whole runs with vLLM: sampling ahead, and an engine that is killed again and again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.runs.log import read_metrics

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STEPS, PROMPTS, SAMPLES = 8, 8, 8


@pytest.fixture(scope="module", autouse=True)
def _vllm():
    pytest.importorskip("vllm", reason="vLLM is not installed")


@pytest.fixture
def recipe(tmp_path):
    """Eight steps of a tiny model whose heads are 32 wide, which vLLM's attention takes."""
    shape = TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1)
    write_tiny_model(tmp_path / "tiny", 0, shape)
    place = tmp_path / "weights"
    place.mkdir()
    values = {
        "output": str(tmp_path / "run"),
        "steps": STEPS,
        "model": {"path": str(tmp_path / "tiny")},
        "data": {
            "source": {"name": "arithmetic", "digits": 1, "size": 80},
            "template": "plain",
            "max_prompt_tokens": 16,
        },
        "rollout": {
            "engine": {
                "name": "vllm",
                "threads": 1,
                "kv_cache_gib": 0.25,
                "weights_folder": str(place),
                "max_restarts": 5,
            },
            "prompts_per_step": PROMPTS,
            "samples_per_prompt": SAMPLES,
            "max_staleness": 1,
            "sampling": {"max_tokens": 96},
        },
        # A random model earns no reward; the bonus is what moves its weights.
        "regularisers": [{"name": "entropy", "coefficient": -1.0}],
        "learner": {"lr": 0.003, "old_logprobs_from": "rollout"},
        "log": {"completions_per_step": PROMPTS * SAMPLES},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def engine_of(process):
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # which a zombie is, too
            if "rlvr.rollout.vllm_process" in " ".join(child.cmdline()):
                return child.pid
    return None


def test_an_engine_killed_three_times_costs_no_group(recipe, tmp_path):
    output = (tmp_path / "output").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "rlvr", "train", str(recipe)],
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    timeline = tmp_path / "run" / "timeline.jsonl"
    draw, kills, seen = random.Random(0), 0, None
    while process.poll() is None and kills < 3:
        time.sleep(0.2)
        pid = engine_of(process)
        started = timeline.exists() and "generate" in timeline.read_text()
        if pid is None or pid == seen or not started:
            continue
        time.sleep(draw.uniform(0.5, 3.0))
        if process.poll() is None:
            os.kill(pid, signal.SIGKILL)
            seen, kills = pid, kills + 1
    assert process.wait(timeout=600) == 0, (tmp_path / "output").read_text()
    assert kills == 3
    steps = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "reward/mean" in r]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert max(row.get("engine/restarts", 0) for row in steps) >= 2
    assert all(row["rollout/staleness_max"] <= 1 for row in steps)
    for step in range(1, STEPS + 1):
        path = tmp_path / "run" / "completions" / f"step_{step:06d}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len({(row["problem_id"], row["sample"]) for row in rows}) == PROMPTS * SAMPLES
    assert not list((tmp_path / "weights").iterdir())
