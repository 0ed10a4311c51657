"""Settings of a model: which one, how precise, and what of it is trained."""

import shlex
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rlvr.settings import Settings

Precision = Literal["float32", "bfloat16"]
FrozenWeights = Literal["float32", "bfloat16", "int8", "nf4"]


class LoraSettings(Settings):
    """Low-rank adapters through peft; the base stays frozen and serves as the reference."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the adapters' product is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input while training."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers to adapt."""


class ModelSettings(Settings):
    """Which causal language model to train, and how it is held."""

    path: str
    """Local folder or Hub id: a model, a LoRA adapter, or a run or checkpoint of one."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    tokenizer: str | None = None
    """Folder or Hub id of the tokenizer; null takes the model's."""
    precision: Precision = "float32"
    """Compute precision. How weights are held is said by weights and frozen_weights."""
    weights: Precision = "float32"
    """How trained weights, and their gradients, are held. bfloat16: linear layers and embeddings
    take 2 bytes a weight instead of 4, and an update is rounded up or down at random, so that small
    ones are kept on average; norms and biases stay float32."""
    frozen_weights: FrozenWeights | None = None
    """How weights that are not trained are held: the base under adapters, a reference. bfloat16:
    linear layers and embeddings; int8, nf4 (QLoRA): the linear layers of the blocks, with the
    embedding and the head in bfloat16. null rounds nothing: with precision bfloat16, weights that
    are bfloat16 numbers already are held as such, and all else as float32."""
    attention: str = "sdpa"
    """transformers' attention implementation (sdpa, eager, flash_attention_2, ...). On a GPU,
    flex_attention skips what packed completions do not see of each other."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the transformer for the update with torch.compile; the first steps then take longer.
    Generation is left as it is."""
    logits: Literal["auto", "chunked", "kernel"] = "auto"
    """How log-probabilities and entropies are read off hidden states. chunked: logits of a few
    tokens at a time. kernel: by a Triton kernel on a GPU, whose logits never reach memory; passes
    that read more off them, and those of a learner.logits_chunk, stay chunked. auto: the kernel
    for bfloat16 on a GPU, where it agrees with the chunks in a trial."""
    liger: bool = False
    """Use liger-kernel's fused norms, rotary embedding and MLP on a GPU (package liger-kernel)."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout while training, wherever the model has dropout; null has none, whatever the model's
    configuration says. Refused where passes are compared: ratios, a reference."""
    lora: LoraSettings | None = None
    """Train adapters instead of all weights."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for repositories you have read."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.lora is not None and self.weights != "float32":
            raise ValueError(
                f"weights = {self.weights!r} with lora: adapters are too small for it to save "
                "anything; leave it out, and set frozen_weights for the base"
            )
        return self

    def dropout_faults(self, compares: str) -> list[str]:
        """Why there may be no dropout, where there is some.

        Args:
            compares: What compares log-probabilities of several passes.
        """
        asked = {"model.dropout": self.dropout}
        asked["model.lora.dropout"] = self.lora.dropout if self.lora else None
        return [
            f"{name} = {value}: {compares} compares log-probabilities of several passes, in each "
            f"of which dropout would draw others; set {name} to 0"
            for name, value in asked.items()
            if value
        ]


def check_local(path: str) -> str:
    """The path with ``~`` written out; one that looks local and is not there is a typo, no Hub id.

    Raises:
        ValueError: It is a file, or looks local and is not there, or holds nothing but GGUF files.
    """
    folder = Path(path).expanduser()
    packed = _gguf_file(folder)
    if packed is not None:
        raise ValueError(
            f"model path {path!r} is a GGUF file, which holds rounded weights; unpack it first: "
            f"rlvr import-gguf {shlex.quote(str(packed))} {shlex.quote(packed.stem)}, then set "
            f"model.path={packed.stem}"
        )
    if folder.is_file():
        raise ValueError(f"model path {path!r} is a file; give a folder or a Hub id")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not folder.is_dir():
        raise ValueError(f"model folder {path!r} does not exist; give a folder or a Hub id")
    return str(folder) if path.startswith("~") else path


def _gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path is, or the first of a folder that holds no other model."""
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    return min(path.glob("*.gguf"), default=None)
