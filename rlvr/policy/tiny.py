"""A tiny Llama with a character tokenizer, from scratch: for the quickstart and for tests.

341 thousand parameters with the defaults; it learns three-digit addition on two CPU cores in
minutes. With ``experts`` it is a tiny Qwen3-MoE instead. It is saved as an ordinary Hugging Face
folder, so everything that loads a model loads it.
"""

import string
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from rlvr.settings import Settings

BOX = "\\boxed{"
_SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


class TinySettings(Settings):
    """Shape of the model."""

    hidden_size: int = 96
    """Width of the residual stream."""
    layers: int = 3
    """Transformer blocks."""
    heads: int = 4
    """Attention heads."""
    key_value_heads: int = 4
    """Heads of keys and values; fewer than heads is grouped-query attention."""
    context: int = 256
    """Longest sequence in tokens."""
    experts: int = Field(0, ge=0)
    """Experts of every layer; 0 is a dense model."""
    experts_per_token: int = Field(2, ge=1)
    """Experts that a token goes to."""
    expert_size: int = Field(128, ge=1)
    """Width of an expert: two of the default do as much for a token as the dense layer does."""

    @model_validator(mode="after")
    def _enough_experts(self) -> "TinySettings":
        if self.experts and self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token = {self.experts_per_token} of {self.experts} experts; lower it"
            )
        return self


def write_tiny_model(folder: Path, seed: int, settings: TinySettings | None = None) -> None:
    """Write a randomly initialised model and its tokenizer; ``seed`` sets the weights."""
    tokenizer = character_tokenizer()
    build_tiny_model(seed, len(tokenizer), settings or TinySettings()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_tiny_model(seed: int, vocabulary: int, settings: TinySettings) -> Any:  # noqa: ANN401
    """The model alone, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape = {
        "vocab_size": vocabulary,
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.hidden_size * 8 // 3,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.key_value_heads,
        "max_position_embeddings": settings.context,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if not settings.experts:
            return LlamaForCausalLM(LlamaConfig(**shape))
        mixture = {
            "head_dim": settings.hidden_size // settings.heads,
            "num_experts": settings.experts,
            "num_experts_per_tok": settings.experts_per_token,
            "moe_intermediate_size": settings.expert_size,
            "norm_topk_prob": True,
        }
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **mixture))


def character_tokenizer() -> Any:  # noqa: ANN401
    r"""One token a character, save ``\boxed{``, which is one token itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [*string.digits, *"+-*=(){}., \n?:;/^_", *string.ascii_letters, "\\"]
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, BOX, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
