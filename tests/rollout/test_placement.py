"""Every rank's engine sees its own GPUs, whoever starts it; the GPUs are made up."""

import pytest
import torch

import eval.run
from rlvr.distill.settings import TraceModel, VllmTraceSettings
from rlvr.distill.vllm_decode_batch import VllmDecodeModel
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.ranks import Ranks
from rlvr.rollout.build import build_engine
from rlvr.rollout.placement import choose_gpus, engine_gpus, engine_variables
from rlvr.rollout.settings import VllmEngineSettings
from tests.rollout.conftest import visible_at_start


@pytest.fixture
def policy(tiny_folder):
    return load_policy(ModelSettings(path=str(tiny_folder)))


def test_in_training_and_evaluation_every_rank_has_its_own_gpu(policy, machine, started, tmp_path):
    shown = []
    for rank in range(2):
        machine(2, processes=2, rank=rank)
        engine = build_engine(VllmEngineSettings(), policy, [2])  # the call of training and eval
        shown.append(visible_at_start(engine, started, tmp_path)[0])
    assert shown == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]


def test_evaluation_puts_each_rank_on_its_own_gpu(machine, monkeypatch):
    machine(2, processes=2, rank=1)
    ranks = Ranks()
    ranks.count, ranks.local_rank = 2, 1
    assert engine_gpus(eval.run._device(ranks), 1) == [1]


@pytest.mark.parametrize(
    ("device", "rank", "width", "gpus"),
    [(None, 1, 1, "1"), ("cuda:1", 0, 1, "1"), ("cuda:1", 0, 2, "1,0"), ("cuda", 0, 1, "0")],
)
def test_a_trace_model_has_its_devices(machine, started, tiny_folder, device, rank, width, gpus):
    machine(3 if rank else 2, processes=2 if rank else 1, rank=rank)
    model = TraceModel(path=str(tiny_folder), device=device)
    settings = VllmTraceSettings(tensor_parallel_size=width)
    with pytest.raises(ValueError, match="enough"):
        VllmDecodeModel(model, settings, 20, 64)
    assert started[0][0] == {"CUDA_VISIBLE_DEVICES": gpus}


def test_a_trace_model_on_the_cpu_is_shown_nothing_else(machine, started, tiny_folder):
    machine(2)
    with pytest.raises(ValueError, match="enough"):
        VllmDecodeModel(
            TraceModel(path=str(tiny_folder), device="cpu"), VllmTraceSettings(), 20, 64
        )
    variables, settings = started[0]
    assert (variables, settings["block_size"]) == ({}, 32)


@pytest.mark.parametrize(
    ("width", "count", "processes", "engines"),
    [
        (1, 4, 4, [[0], [1], [2], [3]]),
        (4, 4, 1, [[0, 1, 2, 3]]),
        (2, 4, 2, [[0, 2], [1, 3]]),
        (3, 8, 2, [[0, 2, 3], [1, 4, 5]]),
        (1, 1, 2, [[0], [0]]),
    ],
)
def test_split_engines_share_out_the_gpus_without_a_learner(width, count, processes, engines):
    found = [choose_gpus(rank % count, width, count, processes) for rank in range(processes)]
    assert found == engines
    if processes <= count:
        flat = [gpu for gpus in found for gpu in gpus]
        assert len(set(flat)) == len(flat)


@pytest.mark.parametrize(("width", "count", "processes"), [(2, 1, 1), (2, 4, 4), (4, 4, 2)])
def test_too_few_gpus_are_told_before_anything_starts(policy, machine, width, count, processes):
    machine(count, processes, rank=processes - 1)
    settings = VllmEngineSettings(tensor_parallel_size=width)
    told = rf"tensor_parallel_size = {width} with {processes} process.* {count} are visible; set it"
    with pytest.raises(ValueError, match=told):
        build_engine(settings, policy, [2])


@pytest.mark.parametrize(
    ("shown", "seen"),
    [(None, "1,3"), ("4, 5,6,7", "5,7"), ("GPU-a,GPU-b,MIG-c,GPU-d", "GPU-b,GPU-d")],
)
def test_gpus_are_named_as_this_process_was_shown_them(machine, shown, seen):
    machine(4, shown=shown)
    assert engine_variables([1, 3]) == {"CUDA_VISIBLE_DEVICES": seen}
    assert engine_variables([]) == {}


def test_without_a_gpu_nothing_is_chosen():
    assert engine_gpus(torch.device("cpu"), 4) == []
