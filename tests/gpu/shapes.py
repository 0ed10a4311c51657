"""Models of published shapes with random weights, on the device; no file and no network."""

import gc
import resource
from typing import Any

import torch

from rlvr.policy.held import hold
from rlvr.policy.loading import default_device, load_policy
from rlvr.policy.model import Policy
from rlvr.policy.settings import ModelSettings
from tests.gpu.kit import SEED, Setting

QWEN3, QWEN2 = "Qwen3-0.6B", "Qwen2.5-1.5B"
_COMMON = {
    "vocab_size": 151_936,
    "num_hidden_layers": 28,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131_072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "rms_norm_eps": 1e-6,
}
SHAPES: dict[str, dict[str, Any]] = {
    QWEN3: {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        **_COMMON,
    },
    QWEN2: {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        **_COMMON,
    },
}
"""As their configurations on the Hub say, but for the longest position."""
_TINY = {
    "vocab_size": 512,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def device_of() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return default_device()


def config_of(name: str, *, tiny: bool, **changes: Any) -> Any:
    """The configuration of a shape; ``tiny`` keeps its family alone."""
    from transformers import AutoConfig

    values = {**SHAPES[name], **(_TINY if tiny else {}), **changes}
    if tiny and "head_dim" in values:
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    return AutoConfig.for_model(values.pop("model_type"), **values)


def random_model(config: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model with random weights, made where it will be."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def policy_of(name: str, setting: Setting, **model: Any) -> Policy:
    """A policy as the learner trains it, in bfloat16 unless ``model`` says otherwise.

    Weights in fewer bits are rounded after loading, which refuses to round a model in memory.

    Args:
        name: One of :data:`SHAPES`.
        setting: Tiny or not.
        model: Settings of the model.
    """
    device = device_of()
    settings = ModelSettings.model_validate({"path": name, "precision": "bfloat16", **model})
    whole = settings.model_copy(update={"weights": "float32"})
    own = random_model(config_of(name, tiny=setting.tiny), device)
    policy = load_policy(whole, device=device, model=own)
    hold(policy.causal_lm, settings)
    return policy


def synchronize() -> None:
    """Wait until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def forget() -> None:
    """Give back what nothing holds any more, and count the peak from here on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """Most memory of tensors since :func:`forget`; on a CPU that of the process since its start."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
