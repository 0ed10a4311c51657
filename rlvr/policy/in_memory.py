"""A causal LM that the caller has loaded: seen to be trainable, and made ready for training.

It is the caller's own object that is trained, so nothing is held twice. What is changed about it,
besides its weights, is what loading from a folder would have chosen: float32, the attention
implementation of the settings, no dropout.
"""

from typing import Any

import torch

from rlvr.policy.dropout import set_dropout
from rlvr.policy.embedding import add_rows_by_autograd
from rlvr.policy.families import family_of
from rlvr.policy.finite import check_loaded
from rlvr.policy.settings import ModelSettings

_GIVE_PATH = "give the path or Hub id of the model instead"


def check_in_memory(model: Any, *, adapters: bool) -> None:  # noqa: ANN401
    """See that a model in memory can be trained as it is, or new ``adapters`` on it.

    Raises:
        ValueError: It cannot; the message says why and what to give.
    """
    from transformers import PreTrainedModel

    kind = type(model).__name__
    if hasattr(model, "peft_config") or hasattr(model, "active_peft_config"):
        raise ValueError(
            f"the model given is a {kind} with adapters; give merge_and_unload() of it, and "
            'model={"lora": {...}} to train new adapters, or the path of the adapters'
        )
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"the model given is a {kind}, no model of transformers; {_GIVE_PATH}")
    family = family_of(model.config)
    if family.refusal is not None:
        raise ValueError(f"the model given ({model.config.model_type}) {family.refusal}")
    if family.within or not model.can_generate():
        raise ValueError(
            f"the model given is a {kind}, no plain causal language model; load it with "
            f"AutoModelForCausalLM, or {_GIVE_PATH}"
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(f"the weights of the model given are quantised; {_GIVE_PATH}")
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError(f"some weights of the model given are not in memory; {_GIVE_PATH}")
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    if frozen and not adapters:
        raise ValueError(
            f"the weight {frozen[0]!r} of the model given is frozen; call requires_grad_(True) on "
            'the model, or train adapters alone with model={"lora": {...}}'
        )


def _check_precision(settings: ModelSettings) -> None:
    """The caller's object keeps its classes.

    Raises:
        ValueError: Its weights would have to be held otherwise.
    """
    asked = {"weights": settings.weights, "frozen_weights": settings.frozen_weights}
    for name, value in asked.items():
        if value not in (None, "float32"):
            raise ValueError(f"model.{name} = {value!r} with a model in memory; {_GIVE_PATH}")


def adopt(model: Any, settings: ModelSettings) -> Any:  # noqa: ANN401
    """The model itself, in float32 and with the attention and dropout that the settings name.

    Raises:
        ValueError: It cannot be trained, or its weights are not finite.
    """
    check_in_memory(model, adapters=settings.lora is not None)
    _check_precision(settings)
    check_loaded(model, f"the model given ({type(model).__name__})")
    try:
        model.set_attn_implementation(settings.attention)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"the model given ({model.config.model_type}) does not support attention "
            f"{settings.attention!r} ({error}); set model.attention=eager"
        ) from error
    set_dropout(model, settings.dropout)
    return model.to(torch.float32).eval()


def release(model: Any) -> None:  # noqa: ANN401
    """Give the model back to its caller after training: in evaluation mode, without gradients."""
    add_rows_by_autograd(model)
    model.zero_grad(set_to_none=True)
    model.eval()
