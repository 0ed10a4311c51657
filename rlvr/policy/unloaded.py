"""What a configuration alone says of a model: its size, and whether it can be trained at all."""

from pathlib import Path
from typing import Any

import torch

from rlvr.policy.adapters import add_adapters, check_targets_alone
from rlvr.policy.families import family_of, load_config
from rlvr.policy.loading import check_head_is_not_adapted, model_notes, no_such_model
from rlvr.policy.model_check import not_causal
from rlvr.policy.settings import ModelSettings, check_local


def describe(settings: ModelSettings) -> list[str]:
    """Notes on a model that is on this machine; one of the Hub is not looked up.

    Raises:
        ValueError: As :func:`unloaded_model`.
    """
    if not Path(check_local(settings.path)).exists():
        return []
    unloaded_model(settings)
    return model_notes(settings)


def unloaded_model(settings: ModelSettings) -> Any:  # noqa: ANN401
    """The model that ``model.path`` names, with its adapters, in shape and without weights.

    Raises:
        ValueError: Loading would refuse it. What only its numbers show is found when it is loaded.
    """
    from transformers import AutoModelForCausalLM

    family = family_of(load_config(settings))
    name = f"model {settings.path!r} ({family.config.model_type})"
    if family.refusal is not None:
        raise ValueError(f"{name} {family.refusal}")
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(
                family.config,
                attn_implementation=settings.attention,
                trust_remote_code=settings.trust_remote_code,
            )
        except (ValueError, ImportError) as error:
            raise no_such_model(settings, family.config, error) from error
        if getattr(model.config, "is_decoder", True) is False:
            raise ValueError(not_causal(name))
        if settings.lora is not None:
            model = add_adapters(model, settings.lora)
            check_head_is_not_adapted(model)
            check_targets_alone(model)
    return model
