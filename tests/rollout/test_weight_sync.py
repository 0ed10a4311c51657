"""Weights on their way: merged exactly, kept in a folder that never outlives its owner."""

import copy
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext

import pytest
import torch
from safetensors.torch import load_file

from rlvr.policy.loading import load_policy
from rlvr.policy.merging import merged_weights
from rlvr.policy.model import Policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.ranks import Ranks
from rlvr.rollout import weight_sync
from rlvr.rollout.weight_store import WeightStore
from rlvr.rollout.weight_sync import (
    Difference,
    StaleWeightsError,
    WeightFolder,
    export_model,
    learner_logprobs,
    measure_difference,
    proof_sequence,
    prove,
    sweep,
    write_model,
)
from tests.data.byte_tokenizers import CHATML, build


@pytest.fixture
def adapted(tiny_folder):
    """A policy with adapters that do something."""
    policy = load_policy(ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2)))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return policy


def test_adapters_are_merged_as_peft_merges_them_and_stay_as_they_are(adapted):
    before = copy.deepcopy(adapted.state_dict())
    merged = dict(merged_weights(adapted, torch.float32))
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())
    expected = copy.deepcopy(adapted.model).merge_and_unload().state_dict()
    assert set(merged) == set(expected) - {"lm_head.weight"}
    for name, tensor in merged.items():
        assert torch.equal(tensor, expected[name]), name


class Sharding:
    """What a sharding learner does: parameters are empty but within a context, and say so."""

    def __init__(self, policy):
        self.whole = {parameter: parameter.data for parameter in policy.parameters()}
        self.gathers = []
        for parameter, data in self.whole.items():
            parameter.ds_numel, parameter.ds_shape = data.numel(), data.shape
            parameter.data = torch.empty(0)
        policy.gathered = self.gathered

    @contextmanager
    def gathered(self, parameters):
        self.gathers.append(sum(self.whole[parameter].numel() for parameter in parameters))
        for parameter in parameters:
            parameter.data = self.whole[parameter]
        yield
        for parameter in parameters:
            parameter.data = torch.empty(0)


@pytest.mark.parametrize("most", [1, 20_000, 10**9])
def test_sharded_weights_are_gathered_by_bucket_and_come_out_whole(adapted, most):
    expected = {name: value.clone() for name, value in merged_weights(adapted, torch.float32)}
    largest = max(value.numel() for value in expected.values())
    sharding = Sharding(adapted)
    found = {name: value.clone() for name, value in merged_weights(adapted, torch.float32, most)}
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    buckets = len(sharding.gathers)
    low, high = {1: (len(expected),) * 2, 20_000: (2, len(expected) - 1)}.get(most, (1, 1))
    assert low <= buckets <= high
    if most == 20_000:
        adapters = 12_000  # at most in a bucket, of rank 2
        assert max(sharding.gathers) <= max(most // 4, largest) + adapters
    assert all(parameter.numel() == 0 for parameter in adapted.parameters())


def test_a_folder_of_several_files_is_the_policy_too(adapted, tmp_path):
    write_model(adapted, tmp_path, torch.float32, 20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = load_policy(ModelSettings(path=str(tmp_path)))
    sequence = proof_sequence(80, None)
    difference = measure_difference(
        learner_logprobs(again, sequence), learner_logprobs(adapted, sequence)
    )
    assert difference.mean < 1e-5
    assert difference.largest < 1e-4  # adapters are merged in float32
    assert adapted.causal_lm.config.dtype == torch.float32


def test_the_written_folder_is_the_policy(adapted, tmp_path):
    folder = WeightFolder(1000, tmp_path)
    folder.write(adapted, 3, torch.float32)
    assert folder.version == 3
    again = load_policy(ModelSettings(path=str(folder.model)))
    sequence = proof_sequence(80, None)
    difference = measure_difference(
        learner_logprobs(again, sequence), learner_logprobs(adapted, sequence)
    )
    assert difference.largest < 1e-4  # merged weights round otherwise than weights and adapters
    with adapted.reference():
        bare = learner_logprobs(adapted, sequence)
    assert measure_difference(bare, learner_logprobs(adapted, sequence)).mean > 1e-3
    folder.write(adapted, 4, torch.bfloat16)
    tensors = load_file(folder.model / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    folder.remove()
    assert not list(tmp_path.iterdir())


def test_a_model_folder_stops_where_the_template_closes_a_turn(tiny_folder, tmp_path):
    policy, tokenizer = load_policy(ModelSettings(path=str(tiny_folder))), build(CHATML)
    before = policy.causal_lm.generation_config.eos_token_id
    export_model(policy, tokenizer, tmp_path / "model", Ranks())
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in written["eos_token_id"]
    assert policy.causal_lm.generation_config.eos_token_id == before


def test_a_proof_leaves_training_mode_and_gradients_alone(exact_policy):
    exact_policy.train()
    exact_policy.zero_grad()
    learner_logprobs(exact_policy, [1, 2, 3])
    assert exact_policy.training
    assert not any(p.grad is not None for p in exact_policy.parameters())


@pytest.mark.parametrize("mean", [0.0011, 0.5, float("nan")])
def test_a_difference_above_the_tolerance_stops_and_names_both_numbers(mean):
    prove(Difference(0.001, 0.1, -4.0, -4.0), 7, "float32", 0.001)
    with pytest.raises(StaleWeightsError, match=r"version 7 .*-4\.25000 .*-4\.75000 .*0\.001"):
        prove(Difference(mean, 0.5, -4.25, -4.75), 7, "float32", 0.001)


def test_attention_in_tf32_is_tolerated_on_a_gpu_alone(adapted, monkeypatch):
    tf32 = Difference(0.0017, 0.0058, -4.0, -4.0)  # tests/benchmarks/tf32_attention.py
    stale = Difference(0.12, 0.43, -4.0, -4.0)  # docs/rollout.md, weights moved by 1e-2
    for device, passes in (("cuda", True), ("cpu", False)):
        monkeypatch.setattr(Policy, "device", torch.device(device))
        store = WeightStore(adapted, "float32", None, None, None)
        with nullcontext() if passes else pytest.raises(StaleWeightsError):
            prove(tf32, 1, "float32", store.tolerance)
        with pytest.raises(StaleWeightsError):
            prove(stale, 1, "float32", store.tolerance)
        assert WeightStore(adapted, "bfloat16", None, None, None).tolerance == 0.25
        assert WeightStore(adapted, "float32", None, 0.5, None).tolerance == 0.5


def test_the_proof_sequence_is_fixed_and_fits():
    assert proof_sequence(100, None) == proof_sequence(100, None)
    assert len(proof_sequence(100, None)) == 64
    assert len(proof_sequence(100, 10)) == 10
    assert max(proof_sequence(7, None)) < 7


OWNER = """
import sys, time
from pathlib import Path
from rlvr.rollout.weight_sync import WeightFolder
folder = WeightFolder(10, Path(sys.argv[1]))
print(folder.path, flush=True)
time.sleep(60)
"""


def test_a_folder_whose_owner_was_killed_is_swept_and_a_living_ones_is_not(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    path = process.stdout.readline().strip()
    old = time.time() - 1000
    os.utime(path, (old, old))
    assert sweep(tmp_path) == []
    process.kill()
    process.wait(timeout=30)
    assert [str(folder) for folder in sweep(tmp_path)] == [path]
    assert not os.path.exists(path)
    process.stdout.close()


def test_weights_too_large_for_shared_memory_go_to_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_sync.tempfile, "gettempdir", lambda: str(tmp_path))
    assert weight_sync._roomy(2**60) == tmp_path
    monkeypatch.setattr(weight_sync, "SHARED_MEMORY", tmp_path / "none")
    assert weight_sync._roomy(1) == tmp_path
