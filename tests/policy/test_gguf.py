"""The import against an oracle: a Llama written into a GGUF here must come back as it was."""

import json
import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlvr.policy.gguf import import_gguf

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "h e", "l l", "Ċ Ċ"]
TOKENS = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tiny_llama(tied=True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary halves to rotary pairs, the row order of llama.cpp's query and key projections."""
    rows, columns = weight.shape
    split = weight.reshape(heads, 2, rows // heads // 2, columns)
    return split.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    *,
    kind=gguf.GGMLQuantizationType.F32,
    architecture="llama",
    template: str | None = CHATML,
    eos: int | None = 2,
    pad: int | None = 0,
    pre="smollm",
    tokenizer=True,
    extra: dict[str, np.ndarray] | None = None,
    parts: int | None = None,
    skip: str | None = None,
) -> Path:
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_name("a name that is no path")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if parts:
        writer.add_uint16("split.count", parts)
    if tokenizer:
        control = [gguf.TokenType.CONTROL] * len(SPECIAL)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(TOKENS)
        writer.add_token_types([*control, *[gguf.TokenType.NORMAL] * (len(TOKENS) - len(SPECIAL))])
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(1)
        writer.add_add_bos_token(False)
        if eos is not None:
            writer.add_eos_token_id(eos)
        if pad is not None:
            writer.add_pad_token_id(pad)
        if template is not None:
            writer.add_chat_template(template)
    for name, weight in {**tensors(model), **(extra or {})}.items():
        if name == skip:
            continue
        quantized = weight.ndim == 2 and kind is not gguf.GGMLQuantizationType.F32
        if quantized:
            writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    state = {name: weight.numpy() for name, weight in model.state_dict().items()}
    found = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not model.config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for layer in range(model.config.num_hidden_layers):
        for ours, theirs in LAYER.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            found[f"blk.{layer}.{ours}.weight"] = np.ascontiguousarray(
                interleave(weight, heads[ours]) if ours in heads else weight
            )
    return found


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(torch.arange(40).remainder(len(TOKENS))[None]).logits.float()


@pytest.mark.parametrize("tied", [True, False])
def test_a_float_file_comes_back_as_the_model_it_was_written_from(tmp_path, tied):
    model = tiny_llama(tied)
    out = import_gguf(write_gguf(tmp_path / "m.gguf", model), tmp_path / "deep" / "out")
    again = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=0)
    assert again.config.tie_word_embeddings is tied
    shared = again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    assert shared is tied
    assert again.dtype == torch.float32
    assert (out / "model.safetensors").is_file()
    assert not {"quantization_config", "_model_name_or_path"} & set(
        json.loads((out / "config.json").read_text())
    )


def test_the_folder_can_be_trained_and_saved_again(tmp_path):
    out = import_gguf(write_gguf(tmp_path / "m.gguf", tiny_llama()), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.arange(10)[None]
    model(ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), 1.0).step()
    model.save_pretrained(tmp_path / "trained")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    torch.testing.assert_close(logits(trained), logits(model))


def test_quantized_weights_are_the_dequantized_values(tmp_path):
    model, kind = tiny_llama(), gguf.GGMLQuantizationType.Q8_0
    out = import_gguf(write_gguf(tmp_path / "m.gguf", model, kind=kind), tmp_path / "out")
    state = AutoModelForCausalLM.from_pretrained(out).state_dict()
    weight = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    expected = gguf.dequantize(gguf.quantize(weight, kind), kind)
    assert np.array_equal(state["model.layers.1.mlp.up_proj.weight"].numpy(), expected)
    assert not np.array_equal(expected, weight)


def test_another_type_can_be_asked_for(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama())
    out = import_gguf(file, tmp_path / "out", dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_the_tokenizer_splits_digits_and_knows_the_template(tmp_path):
    out = import_gguf(write_gguf(tmp_path / "m.gguf", tiny_llama()), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.tokenize("hello  54\n\n7") == ["he", "ll", "o", "ĠĠ", "5", "4", "ĊĊ", "7"]
    text = "hello  54\n\n7 été <|im_end|> don't , no"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    turn = [{"role": "user", "content": "hello"}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == ("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.model_max_length == 128
    assert len(tokenizer) == len(TOKENS)


def special_ids(out: Path):
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    generation = model.generation_config
    assert model.config.eos_token_id == generation.eos_token_id
    assert model.config.pad_token_id == generation.pad_token_id == tokenizer.pad_token_id
    assert generation.bos_token_id == tokenizer.bos_token_id == 1
    return tokenizer, generation


def test_end_and_padding_tokens_are_the_files(tmp_path):
    out = import_gguf(write_gguf(tmp_path / "m.gguf", tiny_llama()), tmp_path / "out")
    tokenizer, generation = special_ids(out)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert generation.eos_token_id == 2


def test_the_token_that_closes_a_turn_ends_generation_too(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), eos=0, pad=None)
    tokenizer, generation = special_ids(import_gguf(file, tmp_path / "out"))
    assert generation.eos_token_id == [0, 2]
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"


def test_a_base_model_without_chat_template_keeps_its_one_end_token(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), template=None, eos=0)
    tokenizer, generation = special_ids(import_gguf(file, tmp_path / "out"))
    assert generation.eos_token_id == 0
    assert tokenizer.chat_template is None


def test_generation_stops_at_the_end_token(tmp_path):
    # A final norm of zero makes every logit zero; a bias then decides every token.
    silent = {"output_norm.weight": np.zeros(64, np.float32)}
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), extra=silent)
    model = AutoModelForCausalLM.from_pretrained(import_gguf(file, tmp_path / "out"))
    assert torch.equal(logits(model), torch.zeros(1, 40, len(TOKENS)))
    end = torch.nn.functional.one_hot(torch.tensor(2), len(TOKENS)).float()
    model.lm_head.bias = torch.nn.Parameter(end)
    ids = model.generate(torch.tensor([[5, 6]]), max_new_tokens=8, do_sample=False)
    assert ids.tolist() == [[5, 6, 2]]


def refused(file: Path, out: Path, *words: str) -> None:
    before = set(out.parent.iterdir())
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        import_gguf(file, out)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert set(out.parent.iterdir()) == before, "nothing may be left behind"


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "none.gguf", tmp_path / "out", "none.gguf", "is not a file")


def test_a_file_of_another_format_is_refused(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04 something else")
    refused(file, tmp_path / "out", "not a GGUF file", "PK")


@pytest.mark.parametrize("kept", [6, 20, 300, 5000, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, kept):
    whole = write_gguf(tmp_path / "m.gguf", tiny_llama()).read_bytes()
    file = tmp_path / "short.gguf"
    file.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    refused(file, tmp_path / "out", "truncated or damaged", "fetch it again")


def test_an_unknown_version_is_refused(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 99, 0, 0) + bytes(64))
    refused(file, tmp_path / "out", "version 99")


def test_an_architecture_without_a_loader_is_refused_with_those_that_have_one(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), architecture="wavtokenizer-dec")
    refused(file, tmp_path / "out", "'wavtokenizer-dec'", "cannot unpack", "llama", "qwen3")


def test_an_encoder_decoder_is_no_causal_language_model(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), architecture="t5")
    refused(file, tmp_path / "out", "'t5'", "no causal language model")


def test_one_of_several_parts_is_refused(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), parts=3)
    refused(file, tmp_path / "out", "one of 3 parts", "llama-gguf-split --merge")


def test_a_file_without_a_tokenizer_is_refused(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer=False)
    refused(file, tmp_path / "out", "holds no tokenizer")


def test_a_file_that_names_no_end_token_is_refused(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), eos=None, template=None)
    refused(file, tmp_path / "out", "names no end token")


def test_an_end_token_only_in_the_template_is_found(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), eos=None)
    tokenizer, generation = special_ids(import_gguf(file, tmp_path / "out"))
    assert generation.eos_token_id == 2
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.1.attn_q.bias"])
def test_weights_that_the_loader_would_drop_are_noticed(tmp_path, name):
    extra = {name: np.ones(8, np.float32)}
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), extra=extra)
    refused(file, tmp_path / "out", "would change what the model computes", "original")


def test_a_missing_tensor_is_noticed(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), skip="blk.1.ffn_up.weight")
    refused(file, tmp_path / "out", "would change what the model computes")


def test_prediction_heads_beyond_the_last_layer_are_left_out(tmp_path):
    extra = {"blk.2.nextn.eh_proj.weight": np.ones((8, 16), np.float32)}
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), extra=extra)
    assert (import_gguf(file, tmp_path / "out") / "config.json").is_file()


def test_an_unknown_pre_tokenizer_is_warned_about(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), pre="martian")
    with pytest.warns(UserWarning, match="'martian'.*not known"):
        import_gguf(file, tmp_path / "out")


def test_an_existing_folder_or_file_is_never_overwritten(tmp_path):
    file, out = write_gguf(tmp_path / "m.gguf", tiny_llama()), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    refused(file, out, "not an empty folder", "choose another")
    assert (out / "mine.txt").read_text() == "kept"
    refused(file, file, "not an empty folder")


def test_an_empty_folder_is_filled(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    import_gguf(write_gguf(tmp_path / "m.gguf", tiny_llama()), out)
    assert (out / "tokenizer.json").is_file()


def test_an_interrupted_import_leaves_nothing_behind(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama())

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        import_gguf(file, tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["m.gguf"]


def test_a_folder_that_reads_back_otherwise_does_not_get_its_name(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama())
    save = LlamaForCausalLM.save_pretrained

    def skewed(self, folder, **kwargs):
        with torch.no_grad():
            self.model.norm.weight.mul_(1.01)
        save(self, folder, **kwargs)
        with torch.no_grad():
            self.model.norm.weight.div_(1.01)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", skewed)
    refused(file, tmp_path / "out", "logits differ")
