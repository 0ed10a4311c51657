"""Sizes of models, dense and sparse, against what a token can be seen to touch."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig

from rlvr.policy.loading import add_adapters, load_policy
from rlvr.policy.mixture import model_size
from rlvr.policy.settings import ModelSettings


def test_a_dense_model_is_all_active(exact_policy):
    size = model_size(exact_policy.causal_lm)
    assert size.total == size.active == sum(p.numel() for p in exact_policy.parameters())
    assert size.sparsity == 0
    assert size.card == {"parameters": size.total, "forward_flops_per_token": 2 * size.total}
    assert "active" not in size.text


def test_a_token_touches_as_many_weights_as_are_called_active(mixture):
    """One position's gradient reaches K experts of each layer; everything else is shared."""
    size = model_size(mixture.causal_lm)
    mixture.causal_lm(input_ids=torch.tensor([[7]])).logits.sum().backward()
    touched = 0
    for name, parameter in mixture.causal_lm.named_parameters():
        whole = parameter.grad if "experts" in name else None
        used = whole.abs().sum((1, 2)) > 0 if whole is not None else None
        touched += parameter.numel() if used is None else parameter[used].numel()
    assert size.active == touched < size.total
    assert (size.experts, size.experts_per_token, size.sparse_layers) == (6, 2, 2)
    assert size.sparsity == pytest.approx(2 / 3)
    assert size.card["sparsity"] == pytest.approx(2 / 3, abs=1e-6)
    assert "2 of 6 experts in 2 layers" in size.text


def test_adapters_count_for_nothing_and_no_weights_are_needed(mixture_folder):
    plain = load_policy(ModelSettings(path=str(mixture_folder)))
    size = model_size(plain.causal_lm)
    adapted = add_adapters(plain.causal_lm, ModelSettings(path="", lora={}).lora)
    assert model_size(adapted.get_base_model()) == size
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    with torch.device("meta"):
        size = model_size(AutoModelForCausalLM.from_config(config))
    assert size.total - size.active == 3 * 6 * 3 * 16 * 24
