"""Attention kernels without float32, as FlashAttention's: models are tried as they compute."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from rlvr.policy import loading, model
from rlvr.policy.loading import load_policy
from rlvr.policy.model import half_only
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from tests.families import largest_difference

NAME = "half_on_a_cpu"


@pytest.fixture(scope="module", autouse=True)
def flash_on_a_cpu():
    """An attention of transformers that refuses float32 in FlashAttention's words."""
    dtypes = set()

    def attention(module, query, key, value, *args, **kwargs):
        if torch.is_autocast_enabled("cpu"):  # transformers rounds what is still float32 then
            query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
        if value.dtype == torch.float32:
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        dtypes.add(value.dtype)
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return dtypes


@pytest.fixture(autouse=True)
def _known_to_be_half_only(monkeypatch):
    # transformers would look for FlashAttention itself behind a name like its own.
    for module in (model, loading):
        monkeypatch.setattr(module, "half_only", lambda name: name == NAME or half_only(name))


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_a_model_is_loaded_and_sampled_from_in_its_own_precision(tiny_folder, flash_on_a_cpu, lora):
    settings = ModelSettings(path=str(tiny_folder), attention=NAME, precision="bfloat16", lora=lora)
    policy = load_policy(settings)
    assert policy.precision == "bfloat16"
    assert policy.logit_scale == 1.0
    assert not policy.stays_in_evaluation
    engine = TransformersEngine(policy, [2])
    assert engine.caching.kind == "growing"
    requests = [Request((5, 6, 7), (1, 2)), Request((9,), (3,))]
    outputs = engine.generate(requests, Sampling(max_tokens=8))
    assert [len(samples) for samples in outputs] == [2, 1]
    assert largest_difference(policy, engine) < 0.25
    assert flash_on_a_cpu == {torch.bfloat16}


def test_float32_is_refused_with_both_remedies(tiny_folder):
    settings = ModelSettings(path=str(tiny_folder), attention=NAME)
    told = r"model.attention = 'half_on_a_cpu' has no kernels for .*precision=bfloat16.*=sdpa"
    with pytest.raises(ValueError, match=told):
        load_policy(settings)


@pytest.mark.parametrize(
    ("attention", "found"),
    [
        *(("flash_attention_2", True), ("flash_attention_3", True)),
        *(("kernels-community/vllm-flash-attn3", True), ("sdpa", False)),
        *(("eager", False), ("flex_attention", False)),
    ],
)
def test_kernels_are_known_by_their_names(attention, found):
    assert half_only(attention) == found
