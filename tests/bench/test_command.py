"""``rlvr bench`` and ``rlvr plan`` from the outside."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlvr.bench.command import run_benchmark
from rlvr.bench.memory import tree_gib
from rlvr.bench.size import Size
from tests.command import call, refused

ROOT = Path(__file__).parents[2]


def test_a_tiny_model_is_measured_and_written(tmp_path):
    out = tmp_path / "deep" / "bench.json"
    size = ("--prompts", "1", "--samples", "4", "--tokens", "8", "--prompt-tokens", "4")
    done = call("bench", *size, "--repeats", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "GFLOP/s" in done.stdout
    found = json.loads(out.read_text())
    assert [row["workload"] for row in found["updates"]] == ["uniform", "lognormal", "outlier"]
    tokens = found["generation"]["tokens_per_second"] * found["generation"]["seconds"]
    assert tokens == pytest.approx(4 * 8)
    assert found["ceilings"]["matmul_flops"] > 1e8


def test_a_run_is_parted_into_phases(tiny_folder, tmp_path):
    source = {"name": "arithmetic", "digits": 1, "size": 20}
    recipe = tmp_path / "recipe.yaml"
    values = {
        "output": "unused",
        "steps": 99,
        "model": {"path": str(tiny_folder)},
        "data": {"source": source, "template": "plain", "max_prompt_tokens": 16},
        "rollout": {
            "prompts_per_step": 2,
            "samples_per_prompt": 2,
            "sampling": {"max_tokens": 4},
        },
        "checkpoint": {"every": 2},
    }
    recipe.write_text(yaml.safe_dump(values))
    found = run_benchmark(
        str(tiny_folder),
        parts=["run"],
        workloads=["uniform"],
        engine="transformers",
        precision="float32",
        size=Size(),
        repeats=1,
        recipe=recipe,
        overrides=[],
        steps=3,
    )["run"]
    assert found["steps"] == 2
    assert sum(found["phases"].values()) == pytest.approx(found["step_seconds"], rel=0.2)
    assert 0 < found["start_seconds"] < found["total_seconds"]
    assert found["peak_gib"] > 0.1
    assert found["checkpoint_seconds"] > 0


def test_memory_of_a_process_and_its_children_is_seen():
    import psutil

    code = "b = bytearray(200 * 2**20); import time; print('ready', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        assert 0.19 < tree_gib(psutil.Process(child.pid)) < 0.5
    finally:
        child.kill()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["bench", "--parts", "generat"], "generation, update, run"),
        (["bench", "--workloads", "normal"], "uniform, lognormal, outlier"),
        (["bench", "--engine", "tgi"], "transformers, vllm"),
        (["bench", "--parts", "run"], "--recipe"),
        (["bench", "./nowhere"], "./nowhere"),
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (["plan", "recipes/plan/example_7b.yaml", "--gpus", "x"], "1,8,64"),
        (["plan", "recipes/plan/example_7b.yaml", "decode=3"], "decode_s"),
        (["plan", "recipes/plan/example_7b.yaml", "--gpus", "2"], "too few"),
    ],
)
def test_mistakes_are_named_in_one_line(arguments, part):
    assert part in refused(*arguments, folder=ROOT)
