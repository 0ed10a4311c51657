"""Models and tokenizers from folders or the Hub, checked for what the chunked statistics need."""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rlvr.data.turns import turn_end
from rlvr.policy.adapters import (
    add_adapters,
    check_adapters,
    check_without_adapters,
    load_adapters,
    merge_adapters,
)
from rlvr.policy.dropout import draws_in_training, set_adapter_dropout, set_dropout
from rlvr.policy.families import family_of, load_config, text_model
from rlvr.policy.finite import check_loaded
from rlvr.policy.folders import find_model
from rlvr.policy.head_choice import choose_logits
from rlvr.policy.held import check_bitsandbytes, hold
from rlvr.policy.in_memory import adopt
from rlvr.policy.model import Policy, first_line, half_only, in_float32
from rlvr.policy.model_check import check_model, probe_ids
from rlvr.policy.settings import ModelSettings, check_local
from rlvr.policy.tree_attention import recompute_contexts


def load_policy(
    settings: ModelSettings,
    *,
    saved: Path | None = None,
    device: torch.device | None = None,
    model: Any = None,  # noqa: ANN401
    trained: bool = True,
) -> Policy:
    """Load a causal LM, add adapters if asked, and try what training relies on.

    Args:
        settings: Which model.
        saved: A folder that :func:`save_policy` wrote, to take the weights from instead.
        device: Where to put it; None takes the first GPU or the CPU.
        model: The model that ``settings`` name, where it is in memory already: it is trained as it
            is (:func:`rlvr.policy.in_memory.adopt`), with the weights of ``saved`` where there are.
        trained: Whether it is to be trained; else it is frozen, and in evaluation mode.

    Raises:
        ValueError: No such model, no causal LM, logits that are not head(hidden state), numbers
            that depend on other rows or later tokens, adapters that cannot be merged, a kernel
            that was asked for and does not run.
    """
    check_bitsandbytes(settings)
    device = device or default_device()
    _check_attention(settings, device)
    if settings.precision == "float32" and half_only(settings.attention):
        raise ValueError(
            f"model.attention = {settings.attention!r} has no kernels for model.precision = "
            "'float32'; set model.precision=bfloat16, or model.attention=sdpa"
        )
    full_weights = saved is not None and settings.lora is None
    given = None if model is None else adopt(model, settings)
    if given is None or full_weights:
        model = load_causal_lm(
            settings.model_copy(update={"path": str(saved / "model"), "revision": None})
            if saved is not None and full_weights
            else settings
        )
    if given is not None:
        if full_weights:
            given.load_state_dict(model.state_dict())
        model = given
    if settings.gradient_checkpointing:
        # A compiled model attends by the mask, and takes no contexts.
        told = {} if settings.compile else {"context_fn": recompute_contexts}
        model.gradient_checkpointing_enable({"use_reentrant": False, **told})
    if settings.lora is not None:
        model.name_or_path = settings.path
        model = (
            add_adapters(model, settings.lora)
            if saved is None
            else load_adapters(model, saved / "adapter", trainable=True)
        )
        set_adapter_dropout(model, settings.lora.dropout)
        check_head_is_not_adapted(model)
        if saved is not None:
            check_loaded(model, str(saved / "adapter"))
    if not trained:
        model.requires_grad_(False)
    if given is None:
        hold(model, settings)
    policy = Policy(model, settings.precision).to(device)
    try:
        check_model(policy, settings.path)
    except ValueError as error:
        if settings.lora is not None:
            check_without_adapters(policy, settings.path, settings.lora, error)
        raise
    if settings.lora is not None and saved is None:
        check_adapters(policy)
    if not settings.dropout and (settings.lora is None or not settings.lora.dropout):
        _silence(policy, settings.path)
    choose_logits(policy, settings.logits)
    if settings.liger:
        _use_liger(policy)
    if settings.compile:
        policy.compile_backbone()
    return policy if trained else policy.eval()


def _check_attention(settings: ModelSettings, device: torch.device) -> None:
    if settings.attention == "flex_attention" and device.type == "cpu":
        raise ValueError(
            "model.attention=flex_attention has no gradient on a CPU; set it to sdpa, which runs "
            "packed rows piece by piece there"
        )


def model_notes(settings: ModelSettings) -> list[str]:
    """What is to be said of a path that names an adapter, a run or a larger model.

    Raises:
        ValueError: There is no such model.
    """
    note = family_of(load_config(settings)).note
    own = [] if note is None else [f"model {settings.path!r} is a larger model: {note}"]
    return [*find_model(settings).notes, *own]


def load_causal_lm(settings: ModelSettings, dtype: torch.dtype = torch.float32) -> Any:  # noqa: ANN401
    """A bare causal LM of transformers, on the CPU; adapters that the path names are merged.

    Raises:
        ValueError: There is none, or it holds no weights for a part of the model.
    """
    source = find_model(settings)
    options = {
        "revision": source.revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    config = load_config(settings)
    family = family_of(config)
    if family.refusal is not None:
        raise ValueError(f"model {settings.path!r} ({config.model_type}) {family.refusal}")
    try:
        model, info = family.loader.from_pretrained(
            source.path,
            **options,
            dtype=dtype,
            attn_implementation=settings.attention,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise no_such_model(settings, config, error) from error
    if info["missing_keys"]:
        lacking = sorted(info["missing_keys"])
        raise ValueError(
            f"model {settings.path!r} holds no weights for {lacking[0]!r}"
            f"{f' and {len(lacking) - 1} more' if len(lacking) > 1 else ''}: it is no "
            f"{type(model).__name__}, and what is missing would be random; give a causal language "
            "model"
        )
    check_loaded(model, source.path, source.revision)
    if family.within:
        model = text_model(model, settings)
    for folder in source.adapters:
        model = merge_adapters(model, Path(folder))
    set_dropout(model, settings.dropout)
    return model


def no_such_model(settings: ModelSettings, config: Any, error: Exception) -> ValueError:  # noqa: ANN401
    """What transformers' refusal to build or load a model means for the recipe."""
    if "does not support an attention implementation" in str(error):
        return ValueError(
            f"model {settings.path!r} ({config.model_type}) does not support attention "
            f"{settings.attention!r}; set model.attention=eager"
        )
    return ValueError(
        f"no causal language model at {settings.path!r} ({first_line(error)}); give "
        "model.path a folder with config.json and safetensors weights, or a Hub id"
    )


def _use_liger(policy: Policy) -> None:
    """Replace norms, rotary embedding and MLP by fused kernels; the head's loss stays ours.

    Raises:
        ValueError: No GPU, no package, or a family that it does not know.
    """
    if policy.device.type != "cuda":
        raise ValueError("model.liger needs a GPU; set it to false")
    if find_spec("liger_kernel") is None:
        raise ValueError("model.liger needs liger-kernel; run: pip install liger-kernel")
    from liger_kernel.transformers import (  # type: ignore[import-not-found]
        _apply_liger_kernel_to_instance,
    )
    from liger_kernel.transformers.monkey_patch import (  # type: ignore[import-not-found]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
    )

    family = policy.causal_lm.config.model_type
    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"liger-kernel has no kernels for {family!r}; set model.liger to false")
    _apply_liger_kernel_to_instance(
        model=policy.causal_lm, fused_linear_cross_entropy=False, cross_entropy=False
    )


def _silence(policy: Policy, path: str) -> None:
    """See that training mode gives what evaluation mode does, or keep the policy in the latter."""
    ids_RL = probe_ids(policy, 4)[None]
    with in_float32(policy):
        if not draws_in_training(policy, ids_RL):
            return
        policy.stays_in_evaluation = True
        still_draws = draws_in_training(policy, ids_RL)
    if still_draws:
        family = policy.causal_lm.config.model_type
        raise ValueError(
            f"model {path!r} ({family}) draws at random in training where "
            "model.gradient_checkpointing keeps its layers in training mode; set it to false"
        )


def check_head_is_not_adapted(model: Any) -> None:  # noqa: ANN401
    """The chunked statistics read the head's own weight, which an adapter leaves as it is."""
    if hasattr(model.get_base_model().get_output_embeddings(), "lora_A"):
        raise ValueError(
            "model.lora.target_modules names the output head, whose adapter would not be trained; "
            "leave it out"
        )


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(settings: ModelSettings) -> Any:  # noqa: ANN401
    """The tokenizer of the model, or the one named beside it.

    Raises:
        ValueError: It cannot be loaded, or it names no end token.
    """
    from transformers import AutoTokenizer

    source = (
        check_local(settings.tokenizer) if settings.tokenizer else find_model(settings).tokenizer
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            revision=settings.revision if source == settings.path else None,
            trust_remote_code=settings.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        remedy = "give model.tokenizer a folder or Hub id that holds one"
        if settings.tokenizer is None and not os.path.isdir(source):
            remedy = f"there is no folder model.path = {source!r}; correct it, or {remedy}"
        raise ValueError(f"no tokenizer at {source!r} ({first_line(error)}); {remedy}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {source!r} names no end token (eos_token), so no completion could "
            "ever stop; set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def stop_token_ids(
    policy: Policy,
    tokenizer: Any,  # noqa: ANN401
    ends: Iterable[int] = (),
) -> tuple[int, ...]:
    """Every id that ends a completion: the tokenizer's end token, the generation config's, and
    ``ends``, with which the template ends a response (:func:`rlvr.data.templates.ends_of`)."""
    own = end_token_ids(getattr(policy.causal_lm, "generation_config", None), tokenizer)
    return tuple(sorted({*own, *ends}))


def end_token_ids(generation: Any, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Every id that ends a text: the tokenizer's end token, and those of a generation config."""
    ids = getattr(generation, "eos_token_id", None)
    listed = ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids]
    return tuple(sorted({int(tokenizer.eos_token_id), *(int(item) for item in listed)}))


def text_end_ids(generation: Any, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """:func:`end_token_ids`, and the token that closes a turn in the tokenizer's chat template."""
    closing = turn_end(tokenizer)
    own = end_token_ids(generation, tokenizer)
    return own if closing is None else tuple(sorted({*own, closing}))
