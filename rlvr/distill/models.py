"""The two models of a generation: loaded for inference, checked for what the caches need."""

import os
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import Field

from rlvr.policy import (
    ModelSettings,
    default_device,
    end_token_ids,
    load_causal_lm,
    load_tokenizer,
)
from rlvr.policy.model import check_local
from rlvr.settings import Settings

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


class TraceModel(Settings):
    """A model that takes part in generating traces."""

    path: str
    """Local folder or Hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    tokenizer: str | None = None
    """Folder or Hub id of the tokenizer; null takes the model's."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Precision of weights and computation."""
    device: str | None = Field(None, pattern=r"^(cpu|cuda(:\d+)?)$")
    """"cpu", "cuda" or "cuda:1"; null takes the CPU or the first GPU, under a launcher each
    process its own."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """transformers' attention implementation."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for repositories you have read."""

    @property
    def model_settings(self) -> ModelSettings:
        """As the policy room knows a model."""
        return ModelSettings(
            path=self.path,
            revision=self.revision,
            tokenizer=self.tokenizer,
            attention=self.attention,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer; ``model`` is None where only the tokenizer is needed."""

    tokenizer: Any
    model: Any
    stop_ids: tuple[int, ...]
    context: int | None
    vocabulary: int


def load_trace_model(settings: TraceModel) -> Loaded:
    """Load a model and its tokenizer.

    Raises:
        ValueError: There is none, or its layers are not all full attention.
    """
    tokenizer = load_tokenizer(settings.model_settings)
    device = torch.device(settings.device) if settings.device else own_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {settings.device!r} needs a GPU, and there is none; use cpu")
    model = load_causal_lm(settings.model_settings, _DTYPES[settings.precision]).to(device).eval()
    check_full_attention(model, settings.path)
    config = model.config.get_text_config()
    return Loaded(
        tokenizer,
        model,
        end_token_ids(model.generation_config, tokenizer),
        getattr(config, "max_position_embeddings", None),
        model.get_output_embeddings().weight.shape[0],
    )


def own_device() -> torch.device:
    """The first GPU or the CPU; of a launcher's processes each its own GPU."""
    device = default_device()
    if device.type != "cuda":
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def describe_trace_model(settings: TraceModel) -> Loaded:
    """A model's tokenizer and figures without its weights.

    Raises:
        ValueError: There is none.
    """
    from transformers import AutoConfig, GenerationConfig

    tokenizer = load_tokenizer(settings.model_settings)
    where = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(check_local(settings.path), **where).get_text_config()
    except (OSError, ValueError) as error:
        raise ValueError(f"no model at {settings.path!r}; give a folder or a Hub id") from error
    bare = SimpleNamespace(generation_config=None)
    with suppress(OSError):  # a model need not have one
        bare.generation_config = GenerationConfig.from_pretrained(
            check_local(settings.path), revision=settings.revision
        )
    context = getattr(config, "max_position_embeddings", None)
    ends = end_token_ids(bare.generation_config, tokenizer)
    return Loaded(tokenizer, None, ends, context, config.vocab_size)


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
            f"model {path!r} has layers of other kinds than full attention "
            f"({', '.join(sorted(kinds))}), which engine transformers cannot roll back; use engine "
            "vllm or another model"
        )
