"""Loading: adapters, reference, plain heads, and faults named in one line."""

import json

import pytest
import torch

from rlvr.policy.batching import padded_inputs
from rlvr.policy.loading import load_policy, load_tokenizer, stop_token_ids
from rlvr.policy.model import packing_is_exact
from rlvr.policy.saving import export_policy, save_policy
from rlvr.policy.settings import LoraSettings, ModelSettings

PROMPTS, COMPLETIONS = [[1, 6, 7], [1, 8]], [[9, 2], [10, 11, 2]]


def logprobs(policy):
    with torch.no_grad():
        return policy(padded_inputs(PROMPTS, COMPLETIONS, (0, 1))).logprobs_N


def perturbed(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return policy


def test_saved_weights_come_back_bitwise(tiny_folder, tmp_path):
    settings = ModelSettings(path=str(tiny_folder))
    policy = perturbed(load_policy(settings))
    save_policy(policy, tmp_path)
    assert torch.equal(logprobs(load_policy(settings, saved=tmp_path)), logprobs(policy))


def test_adapters_train_alone_and_their_base_is_the_reference(tiny_folder, tmp_path):
    plain = load_policy(ModelSettings(path=str(tiny_folder)))
    settings = ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2))
    policy = perturbed(load_policy(settings))
    assert all("lora" in n for n, p in policy.named_parameters() if p.requires_grad)
    assert not torch.allclose(logprobs(policy), logprobs(plain))
    with policy.reference():
        assert torch.equal(logprobs(policy), logprobs(plain))
    save_policy(policy, tmp_path)
    assert torch.equal(logprobs(load_policy(settings, saved=tmp_path)), logprobs(policy))
    before = logprobs(policy)
    export_policy(policy, tmp_path / "merged")
    merged = load_policy(ModelSettings(path=str(tmp_path / "merged")))
    assert torch.allclose(logprobs(merged), before, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_on_float32_weights(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder), precision="bfloat16"))
    exact = load_policy(ModelSettings(path=str(tiny_folder)))
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    difference = (logprobs(policy) - logprobs(exact)).abs().max()
    assert 0 < difference < 0.05


def test_models_that_mix_positions_by_the_row_are_not_packed(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    assert packing_is_exact(policy)
    policy.causal_lm.config.layer_types = ["sliding_attention", "full_attention"]
    assert not packing_is_exact(policy)


def test_the_generation_configs_end_tokens_stop_too(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    tokenizer = load_tokenizer(ModelSettings(path=str(tiny_folder)))
    policy.causal_lm.generation_config.eos_token_id = [7, 9]
    assert stop_token_ids(policy, tokenizer) == (2, 7, 9)


def test_a_model_that_caps_its_logits_is_refused(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.05,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"gemma2\) transforms its logits"):
        load_policy(ModelSettings(path=str(tmp_path)))


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_missing_folder_is_named(path):
    for load in (load_policy, load_tokenizer):
        with pytest.raises(ValueError, match="does not exist; give a folder or a Hub id"):
            load(ModelSettings(path=path))


def test_a_folder_without_weights_or_end_token_is_named(tiny_folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tiny_folder / name).read_text())
    with pytest.raises(ValueError, match="no causal language model at"):
        load_policy(ModelSettings(path=str(tmp_path)))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    with pytest.raises(ValueError, match="names no end token"):
        load_tokenizer(ModelSettings(path=str(tmp_path)))


def test_an_adapter_on_the_output_head_is_refused(tiny_folder):
    """The statistics read the head's own weight: such an adapter would sample but never learn."""
    lora = LoraSettings(rank=2, target_modules=("q_proj", "lm_head"))
    with pytest.raises(ValueError, match="names the output head"):
        load_policy(ModelSettings(path=str(tiny_folder), lora=lora))


def test_a_path_may_begin_at_the_home_folder(tiny_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    settings = ModelSettings(path=f"~/{tiny_folder.name}")
    assert load_tokenizer(settings).eos_token_id == 2
    assert load_policy(settings).context_length == 256
