"""Adapters are tried before anything is trained: merged weights give what adapters give."""

import copy

import pytest
import torch

from rlvr.policy.adapters import check_adapters
from rlvr.policy.loading import load_policy
from rlvr.policy.merging import merged_weights
from rlvr.policy.saving import save_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.rollout.weight_sync import learner_logprobs, write_model
from tests.families import write_family


def adapted(folder, **lora):
    settings = LoraSettings(rank=4, **lora)
    return load_policy(ModelSettings(path=str(folder), attention="eager", lora=settings))


def test_the_trial_leaves_everything_as_it_was(tiny_folder):
    torch.manual_seed(0)
    policy = adapted(tiny_folder)
    before, state = copy.deepcopy(policy.state_dict()), torch.get_rng_state()
    check_adapters(policy)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not policy.model.base_model.model.model.layers[0].self_attn.q_proj.merged


def test_the_adapters_of_a_mixture_are_saved_and_merged(mixture_folder, tmp_path):
    policy = adapted(mixture_folder)
    experts = {
        name for name, _ in policy.named_parameters() if "experts" in name and "lora_" in name
    }
    assert experts
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    sequence = list(range(3, 40))
    expected = torch.tensor(learner_logprobs(policy, sequence))
    save_policy(policy, tmp_path)
    settings = ModelSettings(path=str(mixture_folder), attention="eager", lora=LoraSettings(rank=4))
    again = load_policy(settings, saved=tmp_path)
    assert learner_logprobs(again, sequence) == pytest.approx(expected.tolist(), abs=1e-6)
    write_model(policy, tmp_path / "merged", torch.float32)
    merged = load_policy(ModelSettings(path=str(tmp_path / "merged"), attention="eager"))
    assert learner_logprobs(merged, sequence) == pytest.approx(expected.tolist(), abs=1e-4)
    names = {name for name, _ in merged_weights(policy, torch.float32)}
    assert not any("base_layer" in name for name in names)


def test_a_target_that_cannot_be_merged_is_named(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match=r"leave out embed_tokens: .*target_modules=\[q_proj\]"):
        adapted(tiny_folder, target_modules=("embed_tokens", "q_proj"))
    write_family("mamba2", tmp_path / "mamba2")
    with pytest.raises(ValueError, match=r"leave out out_proj: .*target_modules=\[in_proj\]"):
        adapted(tmp_path / "mamba2")
    assert adapted(tmp_path / "mamba2", target_modules=("in_proj",)).has_adapters
    # Alone its adapter merges; with others it does not.
    write_family("jamba", tmp_path / "jamba")
    with pytest.raises(ValueError, match="leave out dt_proj: "):
        adapted(tmp_path / "jamba")


def test_an_untied_embedding_is_adapted_and_merged(tmp_path):
    write_family("qwen3", tmp_path)
    policy = adapted(tmp_path, target_modules=("embed_tokens", "q_proj"))
    assert any("lora_embedding_A" in name for name, _ in policy.named_parameters())
    save_policy(policy, tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter" / "adapter_model.safetensors").is_file()


def test_targets_that_do_not_exist_are_one_line(tiny_folder):
    with pytest.raises(ValueError, match=r"model\.lora cannot adapt") as refused:
        adapted(tiny_folder, target_modules=("nowhere",))
    assert "\n" not in str(refused.value)
