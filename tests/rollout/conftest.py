"""Made-up GPUs, and a stand-in for the start of vLLM."""

import importlib.util

import pytest
import torch

from rlvr.policy.model import Policy
from rlvr.rollout import vllm_engine


@pytest.fixture
def vllm_found(monkeypatch):
    """Have engines believe that vLLM is installed."""
    real = importlib.util.find_spec

    def find_spec(name, *package):
        return object() if name == "vllm" else real(name, *package)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)


@pytest.fixture
def machine(monkeypatch, vllm_found):
    """Have this process be one of several on a machine with some GPUs."""

    def set_up(gpus, processes=1, rank=0, shown=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu=0: (70 * 2**30, 80 * 2**30))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(Policy, "device", torch.device("cuda", rank))
        for name, value in {
            "LOCAL_RANK": rank if processes > 1 else None,
            "LOCAL_WORLD_SIZE": processes if processes > 1 else None,
            "CUDA_VISIBLE_DEVICES": shown,
        }.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))

    return set_up


@pytest.fixture
def started(monkeypatch):
    """What processes were started with, instead of vLLM."""
    seen = []

    def start(settings, folder, **options):
        seen.append((options["variables"], settings))
        raise ValueError("enough")

    monkeypatch.setattr(vllm_engine, "EngineProcess", start)
    monkeypatch.setattr("rlvr.distill.vllm_decode_batch.EngineProcess", start)
    return seen


def visible_at_start(engine, started, tmp_path):
    class Folder:
        path = model = tmp_path

    with pytest.raises(ValueError, match="enough"):
        engine._start(Folder)
    engine.close()
    variables, settings = started.pop()
    return variables, settings
