"""Tiny random models of every causal LM family of transformers, built from its configuration.

Sizes go by the names that families give them. ``tests/benchmarks/families.py`` goes through all of
them; ``tests/policy/test_families.py`` trains a few.
"""

import inspect
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlvr.policy.batching import padded_inputs
from rlvr.policy.model import Policy
from rlvr.policy.tiny import character_tokenizer
from rlvr.rollout.engine import Engine, Request
from rlvr.rollout.sampling import Sampling

FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

_WIDTH = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "word_embed_proj_dim")
_LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "decoder_layers",
    "encoder_layers",
    "num_blocks",
)
_HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "decoder_attention_heads",
    "encoder_attention_heads",
)
_INNER = (
    "intermediate_size",
    "ffn_dim",
    "decoder_ffn_dim",
    "encoder_ffn_dim",
    "n_inner",
    "ffn_hidden_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "intermediate_size_mlp",
    "attention_hidden_size",
    "dim_ff",
)
_TINY: dict[str, Any] = {
    **dict.fromkeys(_WIDTH, 32),
    **dict.fromkeys(_LAYERS, 2),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_INNER, 64),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "is_decoder": True,
}
# What some families call otherwise, need besides, or check against each other.
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
_LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8}
_LATENT |= {"qk_nope_head_dim": 8, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_LATENT |= {"index_head_dim": 16, "index_n_heads": 16, "index_topk": 8, "first_k_dense_replace": 1}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
_LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
_LINEAR |= {"layer_types": ["linear_attention", "full_attention"]}
_ANY: dict[str, Any] = {
    **_MAMBA,
    **_LATENT,
    "embedding_size": 32,
    "type_vocab_size": 2,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "rotary_dim": 4,
}
_OF: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_chunk_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_chunk_size": 8},
    "falcon_mamba": {"state_size": 8},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 1,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [64] * 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "kimi_linear": _LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"expert_ffn_hidden_size": 32, "ffn_hidden_size": 64, "zero_expert_num": 1},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "qwen4_exp_text": {**_LINEAR, "ple_layer_ids": []},
    "qwen3_next": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": _LINEAR,
    "olmo_hybrid": _LINEAR,
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "attention_head_size": 8,
        "feed_forward_size": 64,
        "local_attn_chunk_length": 4,
    },
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
    "rwkv": {"attention_hidden_size": 32},
    "xlstm": {"num_heads": 2, "embedding_dim": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"layer_types": ["linear_attention", "hybrid"], "n_mamba_heads": 2},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "chunk_size": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}
_SAME_HEADS = ("kv_lora_rank",)
"""Where keys are compressed, every head has its own: no groups."""


def tiny_config(family: str, **values: Any) -> Any:
    """A configuration of the family, small in every size that it names.

    ``values`` are set where the family has such settings.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return _shrunk(CONFIG_MAPPING[family], values)


def _shrunk(kind: Any, own: dict[str, Any]) -> Any:
    names = inspect.signature(kind.__init__).parameters
    values = {**_TINY, **_ANY, "vocab_size": len(character_tokenizer()), **own}
    values = {name: value for name, value in values.items() if name in names}
    for name, sub in getattr(kind, "sub_configs", {}).items():
        if name in names and hasattr(sub, "model_type"):
            values[name] = _shrunk(sub, own).to_dict()
    if any(name in names for name in _SAME_HEADS) and "num_key_value_heads" in names:
        values["num_key_value_heads"] = values["num_attention_heads"]
    return kind(**{**values, **_OF.get(kind.model_type, {})})


def build_family(family: str, seed: int = 0, **values: Any) -> Any:
    """The family's model with random weights, float32.

    Raises:
        Exception: Whatever transformers raises where the configuration does not fit.
    """
    config = tiny_config(family, **values)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 5_000_000:
        raise ValueError(f"{size:,} parameters are not tiny")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def write_family(family: str, folder: Path, **values: Any) -> None:
    """The tiny model as a folder, with the character tokenizer."""
    build_family(family, **values).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


def largest_difference(policy: Policy, engine: Engine, max_tokens: int = 40) -> float:
    """In nats, between an engine's samples and the learner, over rows of many lengths."""
    generator = random.Random(1)
    requests = [
        Request(
            tuple(generator.randrange(3, 80) for _ in range(generator.randrange(2, 24))),
            tuple(generator.randrange(2**60) for _ in range(3)),
        )
        for _ in range(6)
    ]
    outputs = engine.generate(requests, Sampling(max_tokens=max_tokens, temperature=1.0))
    prompts = [request.prompt_ids for request in requests for _ in request.seeds]
    samples = [sample for output in outputs for sample in output]
    inputs = padded_inputs(prompts, [x.token_ids for x in samples], range(len(samples)))
    with torch.no_grad():
        learner = policy.eval()(inputs).logprobs_N
    found = torch.tensor([value for sample in samples for value in sample.logprobs])
    return float((learner - found).abs().max())
