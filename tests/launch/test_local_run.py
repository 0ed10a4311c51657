"""Whole runs by ``rlvr launch --local``: one process, and learner with a vLLM server."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.runs.log import read_metrics
from tests.launch.cluster import free_ports

ROOT = Path(__file__).parents[2]


def recipe(tmp_path, steps):
    shape = TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1)
    write_tiny_model(tmp_path / "tiny", 0, shape)
    values = {
        "output": str(tmp_path / "run"),
        "steps": steps,
        "model": {"path": str(tmp_path / "tiny")},
        "data": {
            "source": {"name": "arithmetic", "digits": 1, "size": 40},
            "template": "plain",
            "max_prompt_tokens": 16,
        },
        "rollout": {
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "sampling": {"max_tokens": 8},
        },
        "regularisers": [{"name": "entropy", "coefficient": -1.0}],
        "checkpoint": {"every": 1000},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(path, *arguments):
    ports = free_ports(2)
    line = [sys.executable, "-m", "rlvr", "launch", str(path), "--local", "--gpus-per-node", "0"]
    line += ["--main-port", str(ports[0]), "--server-port", str(ports[1]), *arguments]
    return subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def steps(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [row["step"] for row in rows if "reward/mean" in row]


@pytest.mark.slow
def test_a_run_in_one_process_stops_upon_ctrl_c_and_goes_on(tmp_path):
    path, folder = recipe(tmp_path, 100000), tmp_path / "run"
    process = start(path)
    deadline = time.monotonic() + 120
    while not steps(folder):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not psutil.wait_procs(below, timeout=5)[1]
    saved = [int(p.name[5:]) for p in (folder / "checkpoints").glob("step_*")]
    assert saved == [steps(folder)[-1]]
    done = start(path, f"steps={saved[0] + 2}", "--resume")
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
    assert f"resuming after step {saved[0]}" in said
    assert steps(folder) == list(range(1, saved[0] + 3))


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_learner_and_a_server_on_one_machine(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    process = start(recipe(tmp_path, 2), "--nodes", "2", "--rollout-nodes", "1")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert steps(tmp_path / "run") == [1, 2]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert max(row.get("engine/servers", 0) for row in rows) == 1
    line = str(tmp_path / "tiny")
    assert not [p for p in psutil.process_iter(["cmdline"]) if line in (p.info["cmdline"] or [])]
