"""Weights from GPU to GPU, as far as it can be seen without one; and an engine that sleeps."""

import json
from types import SimpleNamespace

import pytest
import torch

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.rl.recipe import RLRecipe
from rlvr.rollout.build import build_engine
from rlvr.rollout.engine import Request
from rlvr.rollout.nccl_transfer import nccl_arguments, own_address
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.serve import serve_command
from rlvr.rollout.settings import VllmEngineSettings, VllmServerEngineSettings
from rlvr.rollout.vllm_engine import VllmEngine
from rlvr.rollout.weight_transfer import PolicySource, ProcessClient, decode, encode, ipc_sender
from rlvr.settings import load_settings
from tests.rollout.test_weight_sync import Sharding

# The arguments by which a process maps another's GPU memory, as torch makes them.
HANDLE = (
    *(torch.Tensor, torch.Size([4096]), (1,), 0, torch.storage.TypedStorage, torch.uint8, 0),
    *(b"\x00handle\xff" * 8, 4096, 0, False, b"counter", 3, b"event\x00", True),
)


@pytest.fixture
def policy(tiny_folder):
    return load_policy(ModelSettings(path=str(tiny_folder)))


def test_what_goes_over_a_handle_arrives_through_json_as_it_was():
    update = {
        "names": ["a", "b"],
        "dtype_names": ["bfloat16", "float32"],
        "shapes": [[2, 3], [4]],
        "ipc_handles": {"GPU-0": HANDLE},
        "tensor_sizes": [12, 16],
        "ipc_handles_pickled": None,
    }
    calls = []
    ProcessClient(lambda method, **it: calls.append((method, it))).update_weights(update)
    ((method, arguments),) = json.loads(json.dumps(calls))
    assert (method, arguments["step"]) == ("transfer", "update")
    assert decode(arguments["info"]) == update


@pytest.mark.parametrize(
    "value",
    [{"type": "Popen"}, {"dtype": "load"}, {"dtype": "nothing"}, {"call": ["os.system", "true"]}],
)
def test_nothing_but_what_belongs_into_an_update_is_read(value):
    with pytest.raises(ValueError, match="not part of a weight update"):
        decode(value)


def test_nothing_but_what_belongs_into_an_update_is_sent():
    with pytest.raises(TypeError, match="function cannot occur"):
        encode({"a": [lambda: None]})


@pytest.mark.vllm
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
@pytest.mark.parametrize("sharded", [False, True])
def test_shapes_are_told_before_anything_is_gathered_and_hold(tiny_folder, lora, sharded):
    policy = load_policy(ModelSettings(path=str(tiny_folder), lora=lora))
    sharding = Sharding(policy) if sharded else None
    source = PolicySource(policy, torch.bfloat16)
    told = [(it.name, it.dtype, it.shape) for it in source.metadata()]
    assert sharding is None or not sharding.gathers
    assert told == [(name, t.dtype, tuple(t.shape)) for name, t in source]
    assert source.largest() == max(
        torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in told
    )
    assert source.buffer_bytes() == 2**28


@pytest.mark.vllm
def test_each_process_sends_to_its_own_engine_without_the_others(policy, monkeypatch):
    from vllm.distributed.weight_transfer import ipc_engine

    collectives, steps = [], []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    for name in ("all_gather_object", "barrier"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, own=name: collectives.append(own))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    gpu = SimpleNamespace(uuid="GPU-0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)

    def chunks(iterator, gpu_uuid, **_):
        for name, tensor in iterator:
            yield SimpleNamespace(
                names=[name],
                shapes=[list(tensor.shape)],
                dtype_names=["bfloat16"],
                tensor_sizes=[tensor.nbytes],
                ipc_handle={gpu_uuid: HANDLE},
            )

    monkeypatch.setattr(ipc_engine, "packed_ipc_producer", chunks)
    source = PolicySource(policy, torch.bfloat16)
    sender = ipc_sender(lambda _, step, info: steps.append(step), source)
    for _ in range(2):  # the second time, after its engine was restarted, say
        sender.send_weights()
    one = ["start", *["update"] * len(source.shapes()), "finish"]
    assert steps == ["init", *one, *one]
    assert collectives == []


def test_a_copy_outlives_its_bucket(policy):
    Sharding(policy)
    tensors = list(PolicySource(policy, torch.float32))
    assert all(tensor.numel() for _, tensor in tensors)
    whole = {parameter.data_ptr() for parameter in policy.parameters()}
    assert not whole & {tensor.data_ptr() for _, tensor in tensors}


def test_workers_meet_the_learner_at_its_own_address():
    assert own_address("http://127.0.0.1:8000") == "127.0.0.1"
    arguments = nccl_arguments("http://127.0.0.1:8000", 4, 2**28)
    assert arguments["master_address"] == "127.0.0.1"
    assert arguments["world_size"] == 5
    assert arguments["master_port"] > 1023
    command = serve_command("m", nccl=True)
    chosen = command[command.index("--weight-transfer-config") + 1]
    assert json.loads(chosen) == {"backend": "nccl"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (VllmEngineSettings(weight_transfer="ipc"), r"weight_transfer = 'ipc' .*'cpu'; use 'fold"),
        (VllmServerEngineSettings(weight_transfer="nccl"), r"weight_transfer = 'nccl' .*'cpu'"),
        (VllmEngineSettings(sleep=1), r"sleep = 1 frees the memory of a GPU.*'cpu'; use 0"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(policy, vllm_found, settings, message):
    with pytest.raises(ValueError, match=message):
        build_engine(settings, policy, [2])


@pytest.mark.parametrize(
    "engine",
    [
        {"name": "vllm", "sleep": 2},
        {"name": "vllm", "weight_transfer": "ipc"},
        {"name": "vllm_server", "weight_transfer": "nccl"},
        {"name": "transformers"},
    ],
)
def test_an_engine_that_cannot_overlap_is_not_asked_to(tmp_path, engine):
    values = {
        "output": str(tmp_path / "run"),
        "steps": 1,
        "model": {"path": "x/y"},
        "data": {"source": {"name": "arithmetic"}},
        "rollout": {"engine": engine, "max_staleness": 1},
    }
    with pytest.raises(ValueError, match=f"rollout.engine '{engine['name']}' has no weights"):
        load_settings(RLRecipe, values)


class Recorder:
    """An engine process that writes down what it is asked for, and says what the proof wants."""

    def __init__(self, engine):
        self.engine, self.asked = engine, []

    def call(self, method, **arguments):
        detail = "+".join(str(value) for value in arguments.values())
        self.asked.append(method if method == "score" else f"{method} {detail}".strip())
        weights = self.engine._weights
        noted = [{"tensors": weights._sent, "missed": []}]
        return {"logprobs": weights._expected, "noted": noted, "cached": 0}

    def stream(self, method, **_):
        self.asked.append(method)
        return iter(())

    def close(self):
        pass


def take(process):
    asked, process.asked = process.asked, []
    return asked


@pytest.mark.parametrize("level", [1, 2])
def test_a_sleeping_engine_wakes_in_two_steps_around_its_new_weights(
    policy, tmp_path, monkeypatch, vllm_found, level
):
    engine = VllmEngine(policy, [2], VllmEngineSettings(weights_folder=tmp_path))
    engine.sleep = level
    process = engine._process = Recorder(engine)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: process.asked.append("empty_cache"))
    engine.sync(policy, 0)
    assert take(process) == ["reload", "settle True", "score"]
    engine.generate([], Sampling(max_tokens=8))
    assert take(process) == ["generate", f"sleep {level}"]
    engine.generate([], Sampling(max_tokens=8))  # evaluation, say: with the weights it has had
    wake = ["empty_cache", "wake ['weights']", "wake ['kv_cache']"]
    again = [*wake[:2], "reload", wake[2], "settle True", "score"] if level == 2 else wake
    assert take(process) == [*again, "generate", f"sleep {level}"]
    engine.sync(policy, 1)
    assert take(process) == [*wake[:2], "reload", wake[2], "settle True", "score"]
    engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{"weight_transfer": "ipc"}, {"sleep": 1}, {"sleep": 2}])
def test_on_a_gpu_the_weights_arrive(policy, tmp_path, settings):
    chosen = VllmEngineSettings(weights_folder=tmp_path, **settings)
    engine = VllmEngine(policy.to("cuda"), [2], chosen, longest=128)
    asked = [Request((1, 2, 3), tuple(range(8)))]
    try:
        for version in range(3):
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.mul_(1.05)
            assert engine.sync(policy, version)["sync/difference"] < 1e-3
            first = engine.generate(asked, Sampling(max_tokens=16))
            assert engine.generate(asked, Sampling(max_tokens=16)) == first
    finally:
        engine.close()
