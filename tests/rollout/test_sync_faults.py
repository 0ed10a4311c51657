"""Faults planted in a sync: each is caught, and the message says what it is.

The engine is a model of transformers in this process, which loads what the learner wrote and really
computes with it, or with what a fault leaves of it.
"""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.rollout.sync_diagnosis import repaired
from rlvr.rollout.vllm_process import EngineService
from rlvr.rollout.weight_store import WeightStore
from rlvr.rollout.weight_sync import StaleWeightsError

Q, K = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk")
MLP = "model.layers.1.mlp.down_proj.weight"
O = "model.layers.1.self_attn.o_proj.weight"  # noqa: E741


class TransformersStandIn:
    """Loads the store's folder and scores its sequence."""

    def __init__(self, store):
        self.store, self.model, self.heals = store, None, None

    def load(self, dtype=None):
        folder = self.store.folder.model
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def score(self):
        ids = torch.tensor(self.store.sequence)
        with torch.no_grad():
            logprobs = self.model(ids[None]).logits[0, :-1].float().log_softmax(-1)
        return logprobs.gather(-1, ids[1:, None])[:, 0].tolist()

    def sync(self, policy, version, fault=lambda engine: None, **load):
        """Write, load, let a fault happen, and prove."""
        self.store.write(policy, version)
        self.load(**load)
        fault(self)
        return self.store.check(self.score(), lambda: repaired(self.call, self.store))

    def call(self, method, **arguments):
        """What vLLM's process is asked for after a failure."""
        if method == "settle" and self.heals == "settle":
            self.model.tie_weights()
        if method == "reload" and self.heals == "reload":
            self.load()
        return {"logprobs": self.score()}


def move(policy, scale=0.05, seed=0):
    """An update of everything that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def proving(policy, tmp_path):
    store = WeightStore(policy, "float32", tmp_path, None, None)
    return TransformersStandIn(store)


@pytest.fixture
def policy(tiny_folder):
    return load_policy(ModelSettings(path=str(tiny_folder)))


@pytest.fixture
def engine(policy, tmp_path):
    """An engine that has been synced twice, of a policy that moved."""
    engine = proving(policy, tmp_path)
    for version in range(2):
        move(policy, seed=version)
        assert engine.sync(policy, version).mean < 1e-4
    yield engine
    engine.store.close()


def rewritten(engine, change):
    """A fault of the writing: the folder's tensors are changed before they are read."""
    path = engine.store.folder.model / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    engine.load()


def said(engine, policy, fault, seed=9, **load):
    move(policy, seed=seed)
    with pytest.raises(StaleWeightsError) as raised:
        engine.sync(policy, 2, fault, **load)
    assert "after the sync of version 2" in str(raised.value)
    return str(raised.value).partition(". Most likely ")[2]


def test_a_tensor_that_was_not_sent(engine, policy):
    assert f"{MLP} was not written" in said(
        engine, policy, lambda e: rewritten(e, lambda tensors: tensors.pop(MLP))
    )


def test_two_tensors_swapped(engine, policy):
    a, b = O, O.replace("layers.1", "layers.0")

    def swap(tensors):
        tensors[a], tensors[b] = tensors[b], tensors[a]

    words = said(engine, policy, lambda e: rewritten(e, swap))
    assert f"{a} holds the values of {b}" in words or f"{b} holds the values of {a}" in words


def test_a_shard_of_a_rank_that_is_missing(engine, policy):
    def drop(tensors):
        rows = len(tensors[MLP])
        tensors[MLP][rows // 2 :] = 0

    assert f"rows 16 to 31 of {MLP} did not arrive" in said(
        engine, policy, lambda e: rewritten(e, drop)
    )


def test_weights_written_in_another_dtype(engine, policy):
    def halve(tensors):
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    assert "was written as bfloat16" in said(
        engine, policy, lambda e: (rewritten(e, halve), e.model.bfloat16())
    )


def test_an_engine_that_computes_in_another_dtype(engine, policy):
    words = said(engine, policy, lambda e: e.load(dtype=torch.bfloat16))
    assert "it may compute in bfloat16" in words


def test_weights_that_are_one_version_old(engine, policy):
    old = copy.deepcopy(engine.model)
    words = said(engine, policy, lambda e: setattr(e, "model", old))
    assert "it answers as the version before" in words


def test_an_output_head_that_is_stale(engine, policy):
    """As vLLM's packed copy on a CPU, of a head that is tied to the embedding."""
    old = copy.deepcopy(engine.model.get_output_embeddings())
    engine.heals = "settle"
    words = said(engine, policy, lambda e: e.model.set_output_embeddings(old))
    assert "a stale copy of its output head" in words


def test_a_reload_that_read_only_some_of_the_weights(engine, policy):
    old = copy.deepcopy(engine.model.model.layers[0])
    engine.heals = "reload"
    words = said(engine, policy, lambda e: e.model.model.layers.__setitem__(0, old))
    assert "it had read only some of the weights" in words


def test_an_embedding_that_is_stale(engine, policy):
    old = copy.deepcopy(engine.model.get_input_embeddings())
    words = said(engine, policy, lambda e: e.model.set_input_embeddings(old))
    assert "it answers as no policy" in words


def test_another_model(engine, policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "model"
    write_tiny_model(folder, 5, TinySettings(hidden_size=32, layers=2, heads=4, key_value_heads=2))
    other = AutoModelForCausalLM.from_pretrained(folder).eval()
    words = said(engine, policy, lambda e: setattr(e, "model", other))
    assert words.startswith("it runs another model, or only some of the weights")


@pytest.fixture
def adapted(tiny_folder, tmp_path):
    policy = load_policy(ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=4)))
    engine = proving(policy, tmp_path)
    move(policy, 0.3)
    engine.sync(policy, 0)
    yield engine, policy
    engine.store.close()


def test_a_merged_adapter_that_is_stale(adapted):
    engine, policy = adapted
    old = copy.deepcopy(engine.model)
    move(policy, 0.3, seed=3)
    engine.sync(policy, 1)
    stale = copy.deepcopy(engine.model)
    words = said(engine, policy, lambda e: setattr(e, "model", stale))
    assert "it answers as the version before" in words
    words = said(engine, policy, lambda e: setattr(e, "model", old), seed=4)
    assert "it answers as the weights that it began with" in words


def test_the_base_in_place_of_the_adapter(adapted, tiny_folder):
    engine, policy = adapted
    base = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    words = said(engine, policy, lambda e: setattr(e, "model", base))
    assert "it answers as the base without its adapters" in words


def test_a_prefix_cache_of_the_old_version_is_refused():
    """vLLM's process asserts that the cache is empty; scores of a proof never read from it."""

    class InUse:
        def collective_rpc(self, method):
            return [1]

        def reset_prefix_cache(self):
            return False

    process = object.__new__(EngineService)
    process.llm = InUse()
    with pytest.raises(AssertionError, match="prefix cache was in use"):
        process.on_settle(repair=True)


def test_a_sync_without_fault_is_diagnosed_by_nothing(engine, policy, monkeypatch):
    def never(self, logprobs):
        raise AssertionError("a diagnosis costs time, and nothing had failed")

    monkeypatch.setattr(WeightStore, "diagnosis", never)
    move(policy, seed=7)
    engine.sync(policy, 2)
