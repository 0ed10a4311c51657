"""An engine beside a learner gets what the learner leaves; totals are made up."""

import re

import pytest
import torch

from rlvr.learner.optimizer import AdamW
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rl.plan import render_plan
from rlvr.rl.recipe import RLRecipe
from rlvr.rollout.build import build_engine
from rlvr.rollout.memory_share import (
    GpuMemory,
    engine_share,
    moments_to_come,
    planned_line,
    planned_share,
)
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.settings import load_settings
from tests.rollout.conftest import visible_at_start

GIB = 2**30


def vllm_accepts(memory, share):
    """vLLM's own rule (``request_memory``): what it asks for must be free."""
    return memory.free >= share * memory.total


@pytest.mark.parametrize("held", [0, 8, 30, 60])
@pytest.mark.parametrize("total", [16, 80, 140])
def test_vllm_accepts_what_is_derived_and_not_a_fixed_share(total, held):
    if held > total - 4:
        return
    memory = GpuMemory(total * GIB, (total - held) * GIB)
    share = engine_share(memory, 0, sleeps=True)
    assert vllm_accepts(memory, share)
    margin = max(1, total / 50)
    assert share * total == pytest.approx(total - held - margin, abs=total / 1000)
    assert vllm_accepts(memory, 0.9) == (held <= total / 10)


def test_what_the_learner_will_hold_and_its_updates_keep_their_room():
    memory = GpuMemory(100 * GIB, 80 * GIB)
    assert engine_share(memory, 0, sleeps=True) == 0.78
    assert engine_share(memory, 30 * GIB, sleeps=True) == 0.48
    assert engine_share(memory, 30 * GIB, sleeps=False) == 0.24
    assert planned_share(100 * GIB, 50 * GIB, sleeps=True) == 0.48


@pytest.mark.parametrize(
    ("settings", "takes_turns", "resident", "line"),
    [
        ({}, True, 30, "vLLM beside the learner: 0.605 of the GPU's 80 GiB, asleep during updates"),
        ({}, False, 30, "vLLM beside the learner: 0.302 of the GPU's 80 GiB, awake during updates"),
        ({"memory_share": 0.6}, True, 30, "vLLM beside the learner: 0.600 of the GPU's 80 GiB, as"),
        (
            {"memory_share": 0.9},
            True,
            30,
            "warning: rollout.engine.memory_share = 0.9 .* 0.62; set",
        ),
        ({}, True, 90, "warning: the learner leaves 0.0 of the GPU's 80.0 GiB"),
    ],
)
def test_a_dry_run_says_what_is_left_to_the_engine(settings, takes_turns, resident, line):
    said = planned_line(VllmEngineSettings(**settings), takes_turns, 80 * GIB, resident * GIB)
    assert re.match(line, said), said


def test_a_dry_run_on_a_machine_with_a_gpu_has_the_line(machine, tiny_folder, tmp_path):
    machine(1)
    values = {
        "output": str(tmp_path / "run"),
        "steps": 1,
        "model": {"path": str(tiny_folder)},
        "data": {"source": {"name": "arithmetic"}},
        "rollout": {"engine": {"name": "vllm"}},
    }
    recipe = load_settings(RLRecipe, values)
    plan = render_plan(recipe)
    share = re.search(r"# vLLM beside the learner: (0\.\d+) of the GPU's 80 GiB, asleep", plan)
    assert share, plan
    assert 0.96 < float(share[1]) < 0.98, "a fiftieth is the margin, and CUDA's context is there"


@pytest.mark.parametrize("sleeps", [True, False])
def test_too_little_room_is_told_with_remedies(sleeps):
    memory = GpuMemory(80 * GIB, 20 * GIB)
    with pytest.raises(
        ValueError, match=r"leaves 18\.4 of the GPU's 80\.0 GiB.*28\.0 GiB of"
    ) as it:
        engine_share(memory, 0, sleeps, weights=28 * GIB)
    assert ("rollout.engine.sleep=1" in str(it.value)) is not sleeps
    assert "vllm_server" in str(it.value)
    assert "\n" not in str(it.value)


def test_moments_are_to_come_until_the_first_step_has_made_them():
    weights = [torch.zeros(10, 10, requires_grad=True), torch.zeros(5, requires_grad=True)]
    group = {"params": weights, "model": "policy", "lr": 0.1, "betas": (0.9, 0.99)}
    optimizer = AdamW([{**group, "eps": 1e-8, "weight_decay": 0.0}], torch.float32)
    assert moments_to_come(optimizer) == 105 * 8
    made = optimizer.moments(weights[0])
    assert moments_to_come(optimizer) == 5 * 8
    assert made["exp_avg"].nbytes + made["exp_avg_sq"].nbytes == 100 * 8


@pytest.fixture
def policy(tiny_folder):
    return load_policy(ModelSettings(path=str(tiny_folder)))


@pytest.mark.parametrize(
    ("settings", "takes_turns", "share", "sleep"),
    [
        ({}, True, 0.725, 1),  # (70 - 10 - 1.6) / 80, rounded down
        ({}, False, 0.362, 0),
        ({"sleep": 0}, True, 0.362, 0),
        ({"sleep": 2}, True, 0.725, 2),
        ({"memory_share": 0.7}, True, 0.7, 1),
        ({"weight_transfer": "ipc"}, True, 0.725, 1),
    ],
)
def test_beside_a_learner_that_takes_turns_an_engine_sleeps(
    policy,
    machine,
    started,
    tmp_path,
    settings,
    takes_turns,
    share,
    sleep,
):
    machine(1)
    engine = build_engine(
        VllmEngineSettings(**settings),
        policy,
        [2],
        takes_turns=takes_turns,
        growth=lambda: 10 * GIB,
    )
    assert engine.overlaps == (not sleep and settings.get("weight_transfer") != "ipc")
    _, arguments = visible_at_start(engine, started, tmp_path)
    assert arguments["gpu_memory_utilization"] == pytest.approx(share, abs=0.006)
    assert arguments["enable_sleep_mode"] == (sleep > 0)
    assert engine.sleep == sleep


def test_memory_is_looked_at_when_the_engine_starts_and_after_caches_are_emptied(
    policy,
    machine,
    started,
    tmp_path,
    monkeypatch,
):
    machine(2)
    events = []
    free = {0: 60, 1: 40}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("empty"))

    def look(gpu):
        events.append(gpu)
        return free[gpu] * GIB, 80 * GIB

    monkeypatch.setattr(torch.cuda, "mem_get_info", look)
    engine = build_engine(VllmEngineSettings(tensor_parallel_size=2), policy, [2])
    assert not events
    _, arguments = visible_at_start(engine, started, tmp_path)
    assert events == ["empty", 0, 1]
    assert arguments["gpu_memory_utilization"] == 0.48  # (40 - 1.6) / 80: nothing is trained


def test_on_a_cpu_nothing_changes(policy, vllm_found, started, tmp_path):
    engine = build_engine(VllmEngineSettings(), policy, [2], takes_turns=True)
    variables, arguments = visible_at_start(engine, started, tmp_path)
    assert variables == {}
    assert arguments["gpu_memory_utilization"] == 0.9
    assert arguments["enable_sleep_mode"] is False
    assert engine.overlaps
