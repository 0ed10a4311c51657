"""Faults planted in syncs of vLLM itself: each is caught, and the message says what it is.

The same faults as in ``test_sync_faults``, whose engine is a stand-in. All tests of a policy share
one engine process, which a refused sync leaves as it is here. An engine that computes in another
dtype needs a process of its own, and is tested there alone; a server that answers with another
model is in ``test_vllm_server_engine``.
"""

import random
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlvr.policy.batching import padded_inputs
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.rollout import vllm_child
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.rollout.vllm_engine import VllmEngine
from rlvr.rollout.weight_sync import StaleWeightsError, write_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

MLP = "model.layers.1.mlp.down_proj.weight"
O = "model.layers.1.self_attn.o_proj.weight"  # noqa: E741


class Sut:
    """An engine that has been synced twice, and its policy."""

    def __init__(self, policy, place):
        settings = VllmEngineSettings(threads=1, kv_cache_gib=0.25, weights_folder=place)
        self.policy, self.version = policy, 0
        self.engine = VllmEngine(policy, [2, 7], settings, longest=128)
        self.sync()
        self.sync()

    @property
    def file(self):
        return self.engine._weights.folder.model / "model.safetensors"

    def publish(self, scale=0.05):
        self.version += 1
        generator = torch.Generator().manual_seed(self.version)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        self.engine.publish(self.policy, self.version)

    def sync(self, scale=0.05):
        self.publish(scale)
        return self.engine._load()

    def rewrite(self, change):
        """A fault of the writing, or on the way: the tensors are changed before they are read."""
        tensors = {name: tensor.clone() for name, tensor in load_file(self.file).items()}
        change(tensors)
        save_file(tensors, self.file, metadata={"format": "pt"})

    def plant(self, fault):
        self.engine._process.call("plant", fault=fault)

    def said(self, fault=lambda: None, scale=0.05):
        """What a sync with a fault is refused with; the next one, without it, is accepted."""
        self.publish(scale)
        fault()
        with pytest.raises(StaleWeightsError) as raised:
            self.engine._load()
        self.plant(None)
        assert self.sync().mean < 1e-4
        message = str(raised.value)
        assert f"after the sync of version {self.version - 1}" in message
        return message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny_model(folder, 0, TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1))
    return folder


@pytest.fixture(scope="module")
def _faulty():
    """Engine processes that can be told to do something wrong."""
    start = subprocess.Popen

    def popen(command, **options):
        known = "rlvr.rollout.vllm_process"
        command = [word.replace(known, "tests.rollout.faulty_vllm_process") for word in command]
        return start(command, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_child.subprocess, "Popen", popen)
        yield


def started(folder, tmp_path_factory, **settings):
    policy = load_policy(ModelSettings(path=str(folder), **settings), device=torch.device("cpu"))
    return Sut(policy, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def sut(folder, _faulty, tmp_path_factory):
    sut = started(folder, tmp_path_factory)
    yield sut
    sut.engine.close()


@pytest.fixture(scope="module")
def adapted(folder, _faulty, tmp_path_factory):
    sut = started(folder, tmp_path_factory, lora=LoraSettings(rank=4))
    yield sut
    sut.engine.close()


def test_a_tensor_that_was_not_sent(sut):
    words = sut.said(lambda: sut.rewrite(lambda tensors: tensors.pop(MLP)))
    assert f"{MLP} was not written" in words


def test_two_tensors_swapped(sut):
    other = O.replace("layers.1", "layers.0")

    def swap(tensors):
        tensors[O], tensors[other] = tensors[other], tensors[O]

    words = sut.said(lambda: sut.rewrite(swap))
    assert (
        f"{O} holds the values of {other}" in words or f"{other} holds the values of {O}" in words
    )


def test_a_shard_of_a_rank_that_is_missing(sut):
    def drop(tensors):
        tensors[MLP][32:] = 0

    words = sut.said(lambda: sut.rewrite(drop))
    assert f"rows 32 to 63 of {MLP} did not arrive" in words


def test_weights_written_in_another_dtype(sut):
    def halve(tensors):
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    assert "was written as bfloat16" in sut.said(lambda: sut.rewrite(halve))


def test_weights_that_are_one_version_old(sut):
    """The folder of the version before, and a reload that does not read the new one."""
    before = sut.file.read_bytes()
    words = sut.said(lambda: sut.file.write_bytes(before))
    assert "arrived as in the version before; it answers as the version before" in words
    words = sut.said(lambda: sut.plant("no_reload"))
    assert "arrived as in the version before; it answers as the version before" in words


def test_an_output_head_that_is_stale(sut, monkeypatch):
    monkeypatch.setattr(sut.engine, "_repair", False)
    sut.publish()
    with pytest.raises(StaleWeightsError, match="a stale copy of its output head"):
        sut.engine._load()
    monkeypatch.undo()
    assert sut.sync().mean < 1e-4


def test_an_update_that_log_probabilities_cannot_see(sut):
    """One row of one tensor moves by less than rounding shows, and does not arrive."""
    old = load_file(sut.file)[MLP].clone()
    sut.version += 1
    with torch.no_grad():
        sut.policy.causal_lm.get_parameter(MLP)[3] += 1e-6
    sut.engine.publish(sut.policy, sut.version)
    sut.rewrite(lambda tensors: tensors[MLP].copy_(old))
    store = sut.engine._weights
    kept, store.check_arrival = store.check_arrival, lambda *_: None
    assert sut.engine._load().mean < 1e-5  # log-probabilities alone accept it
    store.check_arrival = kept
    store.serial += 1
    with pytest.raises(StaleWeightsError, match=f"rows 3 to 3 of {MLP} did not arrive"):
        sut.engine._load()
    assert sut.sync().mean < 1e-4


def cached_sample(sut, prompt):
    """The engine's log-probabilities of a sample, and the learner's of the same tokens."""
    ((sample,),) = sut.engine.generate([Request(prompt, (5,))], Sampling(max_tokens=8))
    inputs = padded_inputs([list(prompt)], [list(sample.token_ids)], (0,))
    with torch.no_grad():
        expected = sut.policy(inputs).logprobs_N
    return torch.tensor(sample.logprobs) - expected


def test_a_prefix_cache_of_the_old_version(sut, monkeypatch):
    generator = random.Random(0)
    prompt = tuple(generator.randrange(3, 80) for _ in range(70))
    assert cached_sample(sut, prompt).abs().max() < 1e-4
    sut.plant("cache_kept")
    sut.publish(0.2)
    with pytest.raises(StaleWeightsError, match=r"prefix cache still holds .* \(\d+ left\)"):
        sut.engine._load()
    # What the fault does, were it not caught: log-probabilities of a sequence cannot show it.
    monkeypatch.setattr("rlvr.rollout.weight_store.check_cache", lambda *_: None)
    assert sut.engine._load().mean < 1e-4
    assert cached_sample(sut, prompt).abs().max() > 0.01
    monkeypatch.undo()
    sut.plant(None)
    assert sut.sync().mean < 1e-4
    assert cached_sample(sut, prompt).abs().max() < 1e-4


def test_a_merged_adapter_that_is_stale(adapted):
    before = adapted.file.read_bytes()
    words = adapted.said(lambda: adapted.file.write_bytes(before), 0.3)
    assert "proj.weight" in words
    assert "arrived as in the version before; it answers as the version before" in words


def test_the_base_in_place_of_the_adapter(adapted):
    def base():
        folder = adapted.file.parent
        shutil.rmtree(folder)
        write_model(adapted.policy, folder, torch.float32, adapters=False)

    words = adapted.said(base, 0.3)
    assert "proj.weight" in words
    assert "it answers as the base without its adapters" in words


def test_another_model(sut, tmp_path):
    """An engine that computes with the weights of another folder than it says."""
    write_tiny_model(
        tmp_path / "other", 7, TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1)
    )
    words = sut.said(lambda: shutil.copy(tmp_path / "other" / "model.safetensors", sut.file))
    assert "arrived with other values" in words
