r"""A GGUF file in, a Hugging Face folder out: weights unpacked, tokenizer and end tokens right.

The unpacking is transformers' (its ``gguf_file`` loader). What this file adds is the part that
makes the result trainable and trustworthy:

- transformers marks the loaded model as quantized and refuses to save it, so the weights move into
  a fresh model built from the same configuration without that mark.
- Tensors that the loader drops (scaled rotary frequencies, biases the configuration does not know)
  are noticed by counting weights; a model that would silently compute something else is refused.
- Byte-level vocabularies that were trained with single digits split off (``smollm`` and its
  relatives) get that split, which the loader leaves out: without it two spaces before a number
  become two tokens where the model has always seen one.
- The end tokens in the generation configuration are the file's own and the one with which the chat
  template closes a turn.
- Before the folder takes its name it is loaded again and must give the same logits and ids.

Not covered: files in several parts, vision towers, adapters in GGUF form.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rlvr.data.turns import turn_end
from rlvr.files import replacing_folder

Dtype = Literal["float32", "bfloat16", "float16"]

_MAGIC = b"GGUF"
# Names of llama.cpp pre-tokenizers that split off every single digit, then split as GPT-2 does.
_SINGLE_DIGITS = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
# Pre-tokenizers that are GPT-2's, which is what the loader falls back to.
_GPT2_SPLIT = frozenset({"gpt-2", "gpt2", "default", "phi-2", "mpt", "olmo", "jais"})
# Vocabularies that begin a text with the begin token where the file does not say.
_BEGINS = frozenset({"llama3", "llama-v3", "llama-bpe"})
_PROBE = "Hello, world!  54+94 = 148\n\n7 \u00e9t\u00e9"


@dataclass(frozen=True)
class _Header:
    """What the file says about itself; sizes in elements."""

    architecture: str
    split: str | None
    context_length: int | None
    tokenizer_kind: str | None
    pre_tokenizer: str
    add_bos: bool
    end_ids: tuple[int, ...]
    sizes: dict[str, int]


def import_gguf(file: Path, out: Path, dtype: Dtype = "float32") -> Path:
    """Unpack a GGUF file into a folder that ``from_pretrained`` and vLLM read.

    The folder appears under its name only when it is complete and has passed the check (loaded
    again, same logits, same token ids); an interrupted import leaves nothing behind.

    Args:
        file: A single-file GGUF of a causal language model.
        out: The folder to make; it may exist only if it is empty.
        dtype: The type in which the weights are stored.

    Returns:
        ``out``: config, generation config, safetensors weights, tokenizer with chat template.

    Raises:
        ValueError: No such file, not (a whole) GGUF, several parts, an architecture that
            transformers cannot unpack, weights that it would drop, ``out`` not empty.
    """
    header = _read_header(file)
    _refuse_occupied(out)
    with replacing_folder(out) as folder:
        unpacked = _unpacked_model(file, header, getattr(torch, dtype))
        model, tokenizer = _plain_model(unpacked), _tokenizer(file, header)
        _settle_special_tokens(model, tokenizer, header)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _check(folder, unpacked, tokenizer)
    return out


def _read_header(file: Path) -> _Header:
    if not file.is_file():
        raise ValueError(f"{str(file)!r} is not a file; give the path of a .gguf file")
    with file.open("rb") as stream:
        magic = stream.read(len(_MAGIC))
    if magic != _MAGIC:
        raise ValueError(
            f"{str(file)!r} is not a GGUF file: it begins with {magic!r}, not {_MAGIC!r}"
        )
    header = _parse_header(file)
    if header.split:
        raise ValueError(
            f"{str(file)!r} is one of {header.split} parts of a model; join them first with "
            "`llama-gguf-split --merge`"
        )
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = sorted({*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS})
    if header.architecture not in known:
        raise ValueError(
            f"{str(file)!r} holds a model of architecture {header.architecture!r}, which "
            f"transformers cannot unpack; it can: {', '.join(known)}"
        )
    if header.tokenizer_kind is None:
        raise ValueError(
            f"{str(file)!r} holds no tokenizer (tokenizer.ggml.model); import a file that has one"
        )
    return header


def _parse_header(file: Path) -> _Header:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())

        def value(key: str) -> Any:  # noqa: ANN401  (metadata holds anything)
            field = reader.fields.get(key)
            return None if field is None else field.contents()

        ends = [value(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
        parts = value("split.count")
        kind, pre = value("tokenizer.ggml.model"), value("tokenizer.ggml.pre") or "default"
        add_bos = value("tokenizer.ggml.add_bos_token")
        return _Header(
            architecture=architecture,
            split=str(parts) if parts and parts > 1 else None,
            context_length=value(f"{architecture}.context_length"),
            tokenizer_kind=kind,
            pre_tokenizer=pre,
            add_bos=kind == "llama" or pre in _BEGINS if add_bos is None else bool(add_bos),
            end_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
            sizes={str(tensor.name): int(tensor.n_elements) for tensor in reader.tensors},
        )
    # What the parser happens to trip over in a file that ends early or holds nonsense.
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{str(file)!r} is a truncated or damaged GGUF file "
            f"({type(error).__name__}: {reason}); fetch it again"
        ) from None


def _refuse_occupied(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"output {str(out)!r} exists and is not an empty folder; choose another")


def _unpacked_model(file: Path, header: _Header, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The model as transformers unpacks it (marked as quantized, which forbids saving)."""
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    config = AutoConfig.from_pretrained(**place)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{str(file)!r} holds a {config.model_type!r} model, which is no causal language model"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            **place, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
        )
    except NotImplementedError as error:
        raise ValueError(
            f"{str(file)!r} cannot be unpacked: {error}; use a Q8_0 or F16 file"
        ) from None
    _refuse_dropped_weights(file, header, model)
    return model.eval()


def _plain_model(unpacked: Any) -> Any:  # noqa: ANN401
    """The same weights in a model without the mark; they are taken over, not copied."""
    from transformers import AutoModelForCausalLM

    marks = ("quantization_config", "_model_name_or_path")
    settings = {k: v for k, v in unpacked.config.to_dict().items() if k not in marks}
    config = type(unpacked.config).from_dict(settings)
    model = AutoModelForCausalLM.from_config(config, dtype=unpacked.dtype)
    model.load_state_dict(unpacked.state_dict(), strict=True, assign=True)
    model.tie_weights()
    return model.eval()


def _refuse_dropped_weights(file: Path, header: _Header, model: Any) -> None:  # noqa: ANN401
    """Every weight of the file must have a place in the model, and the other way round.

    Blocks beyond the model's depth are extra prediction heads, which the model class leaves out.
    """
    depth = model.config.num_hidden_layers

    def in_model(name: str) -> bool:
        part = name.split(".")
        return not (part[0] == "blk" and part[1].isdigit() and int(part[1]) >= depth)

    stored = sum(size for name, size in header.sizes.items() if in_model(name))
    used = sum(parameter.numel() for parameter in model.parameters())
    if stored != used:
        odd = [name for name in header.sizes if not name.startswith("blk.")]
        raise ValueError(
            f"{str(file)!r} holds {stored} weights but transformers' {model.config.model_type!r} "
            f"model has {used}: the import would change what the model computes (tensors outside "
            f"the layers: {', '.join(odd)}); get the original safetensors folder instead"
        )


def _tokenizer(file: Path, header: _Header) -> Any:  # noqa: ANN401
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    kind, split = header.tokenizer_kind, header.pre_tokenizer
    if kind == "gpt2" and split in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif kind == "gpt2" and split not in _GPT2_SPLIT and split not in GGUF_PRE_TOKENIZER_SPLITS:
        warnings.warn(
            f"the pre-tokenizer {split!r} of {str(file)!r} is not known; text is split as GPT-2 "
            "does, which may differ around digits and spaces from what the model was trained on",
            stacklevel=3,
        )
    if header.context_length is not None:
        tokenizer.model_max_length = int(header.context_length)
    if tokenizer.bos_token is not None:
        tokenizer.add_bos_token = header.add_bos
    return tokenizer


def _settle_special_tokens(model: Any, tokenizer: Any, header: _Header) -> None:  # noqa: ANN401
    """End, padding and begin ids, the same in config, generation config and tokenizer.

    The end ids are the file's, then the token that closes a turn in the chat template (some models
    keep the end of a text and the end of a turn apart; generation must stop at either).
    """
    ends = list(header.end_ids)
    closing = turn_end(tokenizer)
    if closing is not None and closing not in ends:
        ends.append(closing)
    if not ends:
        raise ValueError(
            "the file names no end token (tokenizer.ggml.eos_token_id) and its chat template "
            "closes no turn with one; generation could never stop"
        )
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    eos = ends[0] if len(ends) == 1 else ends
    for config in (model.config, model.generation_config):
        config.eos_token_id = eos
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id


@torch.no_grad()
def _check(folder: Path, unpacked: Any, tokenizer: Any) -> None:  # noqa: ANN401
    """What is on disk must compute and tokenize what was unpacked."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(_PROBE)
    if again.encode(_PROBE) != ids or again.chat_template != tokenizer.chat_template:
        raise ValueError(f"the saved tokenizer encodes {_PROBE!r} otherwise than the file's")
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=unpacked.dtype).eval()
    probe = torch.tensor([[token % unpacked.config.vocab_size for token in ids]])
    gap = (reloaded(probe).logits - unpacked(probe).logits).abs().max().item()
    # The same weights through the same code: any gap at all beyond summation order is a fault.
    if not gap <= 1e-4:
        raise ValueError(f"the saved model's logits differ from the unpacked one's by {gap:.3g}")
