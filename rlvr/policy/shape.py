"""The numbers of a model that an estimate of memory needs, from its configuration alone."""

from collections import Counter
from typing import Any

from torch import nn

from rlvr.memory import ModelShape
from rlvr.policy.mixture import model_size
from rlvr.policy.settings import ModelSettings
from rlvr.policy.unloaded import unloaded_model


def read_shape(settings: ModelSettings) -> ModelShape:
    """Read a model's configuration and count its parameters without allocating them.

    Raises:
        ValueError: There is none, or loading would refuse the model.
    """
    model = unloaded_model(settings)
    causal_lm = model if settings.lora is None else model.get_base_model()
    size, text = model_size(causal_lm), causal_lm.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1  # recurrent models have none
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    dense = _largest(getattr(text, "intermediate_size", None)) or 4 * text.hidden_size
    # What a token goes through: of a mixture, its experts.
    expert = _largest(getattr(text, "moe_intermediate_size", None)) or dense
    linear, plain = _plain_weights(causal_lm)
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    return ModelShape(
        parameters=size.total,
        trained=sum(trained),
        linear=linear,
        plain=plain,
        largest=max(trained),
        hidden=text.hidden_size,
        intermediate=expert * size.experts_per_token if size.experts else dense,
        layers=text.num_hidden_layers,
        key_value_width=head_size * (getattr(text, "num_key_value_heads", None) or heads),
        vocabulary=text.vocab_size,
        active=size.active,
        text=size.text,
        context=getattr(text, "max_position_embeddings", None),
        stored=str(getattr(causal_lm.config, "dtype", None) or "float32").removeprefix("torch."),
    )


def _plain_weights(causal_lm: Any) -> tuple[int, int]:  # noqa: ANN401
    """Weights of linear layers inside, and of those with output head and embeddings; no adapters'.

    What :mod:`rlvr.policy.held` can hold in int8 or nf4, and in bfloat16.
    """
    head, tied = causal_lm.get_output_embeddings(), Counter[int]()
    plain: dict[int, nn.Parameter] = {}
    outside: set[int] = set()
    for name, module in causal_lm.named_modules():
        if type(module) in (nn.Linear, nn.Embedding) and ".lora_" not in name:
            key = id(module.weight)
            plain[key] = module.weight
            tied[key] += 1
            if module is head or type(module) is nn.Embedding:
                outside.add(key)
    inner = [p for key, p in plain.items() if key not in outside and tied[key] == 1]
    return sum(p.numel() for p in inner), sum(p.numel() for p in plain.values())


def _largest(sizes: int | list[int] | None) -> int | None:
    """Some families give one for every layer."""
    return max(sizes) if isinstance(sizes, list) else sizes
