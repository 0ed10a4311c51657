"""What a model path names: adapters, checkpoints, runs, GGUF files and vision-language models."""

import json

import pytest
import torch

from rlvr.policy.folders import find_model
from rlvr.policy.loading import load_policy, load_tokenizer, model_notes
from rlvr.policy.model_check import probe_ids
from rlvr.policy.saving import save_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.policy.tiny import character_tokenizer


def logits(policy):
    with torch.no_grad():
        return policy.eval().causal_lm(input_ids=probe_ids(policy, 8)[None]).logits


@pytest.fixture(scope="module")
def adapted(tiny_folder, tmp_path_factory):
    """An adapter's folder, and the logits of its base with it."""
    policy = load_policy(ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2)))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    folder = tmp_path_factory.mktemp("adapted")
    save_policy(policy, folder)
    return folder / "adapter", logits(policy)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_an_adapter_is_merged_into_its_base(adapted, tiny_folder, lora):
    folder, expected = adapted
    settings = ModelSettings(path=str(folder), lora=lora)
    policy = load_policy(settings)
    assert torch.allclose(logits(policy), expected, atol=1e-5)
    assert policy.has_adapters == (lora is not None)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained) == (lora is not None)
    (note,) = model_notes(settings)
    assert "is an adapter of" in note
    assert str(tiny_folder) in note
    assert len(load_tokenizer(settings)) == len(character_tokenizer())


def test_an_adapter_of_an_adapter_is_merged_into_both(adapted, tmp_path):
    policy = load_policy(ModelSettings(path=str(adapted[0]), lora=LoraSettings(rank=2)))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    save_policy(policy, tmp_path)
    again = load_policy(ModelSettings(path=str(tmp_path / "adapter")))
    assert not torch.allclose(logits(again), adapted[1], atol=1e-3)
    assert torch.allclose(logits(again), logits(policy), atol=1e-5)


def edited(folder, tmp_path, **values):
    """A copy of an adapter's folder with another configuration."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **values}))
    return ModelSettings(path=str(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model_name_or_path": None}, "does not say of which model"),
        ({"base_model_name_or_path": "/nowhere/base"}, "'/nowhere/base' does not exist"),
        ({"peft_type": "PREFIX_TUNING"}, "cannot be merged into its base"),
        ({"r": 7}, "does not fit its base model"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(adapted, tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        load_policy(edited(adapted[0], tmp_path, **values))


def test_a_folder_of_a_model_and_an_adapter_is_refused(adapted, tiny_folder, tmp_path):
    settings = edited(adapted[0], tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="both a model and an adapter"):
        load_policy(settings)


def test_a_checkpoint_and_a_run_stand_for_their_model(adapted, tiny_folder, tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step_000004"
    checkpoint.mkdir(parents=True)
    (tmp_path / "recipe.yaml").write_text("task: rl\n")
    with pytest.raises(ValueError, match=r"has no final model yet; .*step_000004"):
        find_model(ModelSettings(path=str(tmp_path)))
    for name in ("state.json", "MANIFEST.json"):
        (checkpoint / name).write_text("{}")
    (checkpoint / "adapter").symlink_to(adapted[0])
    settings = ModelSettings(path=str(checkpoint))
    assert torch.allclose(logits(load_policy(settings)), adapted[1], atol=1e-5)
    assert "checkpoint of a run" in model_notes(settings)[0]
    (tmp_path / "model").symlink_to(tiny_folder)
    found = find_model(ModelSettings(path=str(tmp_path)))
    assert found.path == str(tmp_path / "model")
    assert "run folder" in found.notes[0]


def test_a_gguf_file_is_to_be_unpacked_first(tmp_path):
    file = tmp_path / "small model.gguf"
    file.write_bytes(b"GGUF")
    for path in (file, tmp_path):
        with pytest.raises(
            ValueError, match=r"rlvr import-gguf '.*small model.gguf' 'small model'"
        ):
            load_policy(ModelSettings(path=str(path)))


def tiny_llava():
    """A tiny Llava around a Llama, whose weights are random."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text = LlamaConfig(
        **sizes, num_attention_heads=4, vocab_size=len(character_tokenizer()), eos_token_id=2
    )
    vision = CLIPVisionConfig(**sizes, num_attention_heads=4, image_size=8, patch_size=4)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=5, tie_word_embeddings=True
    )
    return Llava(config).eval()


def test_the_text_model_of_a_vision_language_model_is_trained(tmp_path):
    whole = tiny_llava()
    whole.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    settings = ModelSettings(path=str(tmp_path))
    policy = load_policy(settings)
    assert policy.causal_lm.config.model_type == "llama"
    ids = probe_ids(policy, 8).clamp_min(6)[None]  # no image's token
    with torch.no_grad():
        expected = whole(input_ids=ids).logits
        found = policy.causal_lm(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    embedding = policy.causal_lm.get_input_embeddings().weight
    assert (policy.causal_lm.get_output_embeddings().weight is embedding) is bool(
        whole.config.tie_word_embeddings
    )
    assert "its text model (llama) is trained, without images" in model_notes(settings)[0]
    save_policy(policy, tmp_path / "saved")
    again = load_policy(settings, saved=tmp_path / "saved")
    assert torch.equal(logits(again), logits(policy))


def test_weights_that_are_missing_are_not_made_up(tiny_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tiny_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights for 'model.layers.1.mlp.up_proj.weight'"):
        load_policy(ModelSettings(path=str(tmp_path)))
