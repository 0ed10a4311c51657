"""The two models of trace generation: load them for inference, check what the caches need."""

import os
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from rlvr.distill.settings import TraceModel
from rlvr.policy.families import family_of, load_config
from rlvr.policy.folders import find_model
from rlvr.policy.loading import default_device, load_causal_lm, load_tokenizer, text_end_ids

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer; ``model`` is None if only the tokenizer is needed."""

    tokenizer: Any
    model: Any
    stop_ids: tuple[int, ...]
    context: int | None
    vocab_size: int


def load_trace_model(settings: TraceModel) -> LoadedModel:
    """Load a model and its tokenizer.

    Raises:
        ValueError: There is no such model, or not all of its layers are full attention.
    """
    tokenizer = load_tokenizer(settings.model_settings)
    device = torch.device(settings.device) if settings.device else own_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {settings.device!r} needs a GPU, but there is none; use cpu")
    model = load_causal_lm(settings.model_settings, _DTYPES[settings.precision]).to(device).eval()
    check_full_attention(model, settings.path)
    config = model.config.get_text_config()
    return LoadedModel(
        tokenizer,
        model,
        text_end_ids(model.generation_config, tokenizer),
        getattr(config, "max_position_embeddings", None),
        model.get_output_embeddings().weight.shape[0],
    )


def own_device() -> torch.device:
    """The CPU or the first GPU; under a launcher, this process's GPU."""
    device = default_device()
    if device.type != "cuda":
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def describe_trace_model(settings: TraceModel) -> LoadedModel:
    """A model's tokenizer and sizes, without its weights.

    Raises:
        ValueError: There is no such model.
    """
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(settings.model_settings)
    config = family_of(load_config(settings.model_settings)).config
    source = find_model(settings.model_settings)
    bare = SimpleNamespace(generation_config=None)
    with suppress(OSError):  # the file is optional
        bare.generation_config = GenerationConfig.from_pretrained(
            source.path, revision=source.revision
        )
    context = getattr(config, "max_position_embeddings", None)
    ends = text_end_ids(bare.generation_config, tokenizer)
    return LoadedModel(tokenizer, None, ends, context, config.vocab_size)


def check_full_attention(model: Any, path: str) -> None:  # noqa: ANN401
    """Refuse layers whose caches cannot be rolled back row by row.

    Raises:
        ValueError: A layer is a sliding window, linear attention or a state-space model.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) and getattr(
        config, "use_sliding_window", True
    )
    if kinds != {"full_attention"} or (sliding and not getattr(config, "layer_types", None)):
        raise ValueError(
            f"model {path!r} has layers that are not full attention ({', '.join(sorted(kinds))}), "
            "which engine transformers cannot roll back; use engine vllm or another model"
        )
