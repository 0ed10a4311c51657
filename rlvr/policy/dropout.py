"""Dropout of a model: off in every pass, or as the recipe asks.

Ratios, references and engines compare log-probabilities of several passes, and dropout draws other
ones in each: DPO's first loss is then not log 2, and a policy that has not moved has ratios of 16.
So probabilities that come with a model (``resid_pdrop``, ``attention_dropout``, ``layerdrop``, ...)
count for nothing unless they are asked for. The configuration keeps them, also when it is saved.

Where a family draws at random in other ways (noise in a router, a probability that is read from the
configuration on the fly), a trial shows it, and the model then stays in evaluation mode.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_UNITS = re.compile(r"dropout|pdrop|(^|_)drop(_prob|_rate|_p)?$")
_WHOLE_PARTS = re.compile(r"layer_?drop|drop_?path|stochastic_depth")
"""Drops layers or paths rather than units; never what a recipe asks for."""


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Set every probability of dropout inside a model.

    Args:
        model: A transformers model, without adapters.
        probability: Of dropping a unit, wherever the model has dropout; None drops nothing. Whole
            layers or paths are never dropped.

    Raises:
        ValueError: Dropout is asked for, and the model has it nowhere.
    """
    places = list(_places(model))
    asked = probability or 0.0
    if asked and not any(_UNITS.search(name) for _, name, _ in places):
        raise ValueError(
            f"model.dropout = {probability}, but this model has no dropout anywhere; leave it out"
        )
    for module, name, held in places:
        of_units = _UNITS.search(name) and not _WHOLE_PARTS.search(name)
        setattr(module, held, asked if of_units else 0.0)


def _places(model: nn.Module) -> Iterator[tuple[Any, str, str]]:
    """Modules with a probability, what it is called, and the attribute that holds it."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            yield module, f"{path.rpartition('.')[2]}_dropout", "p"
        for name, value in list(vars(module).items()):
            named = _UNITS.search(name) or _WHOLE_PARTS.search(name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if named and number and 0 <= value <= 1:
                yield module, name, name


def set_adapter_dropout(model: nn.Module, probability: float) -> None:
    """Set the dropout of LoRA adapters, whatever the folder that they come from says."""
    for name, module in model.named_modules():
        if ".lora_dropout." in name and isinstance(module, nn.Dropout):
            module.p = probability


def draws_in_training(policy: nn.Module, ids_RL: torch.Tensor) -> bool:
    """Whether a policy gives other hidden states in training mode than in evaluation mode.

    Args:
        policy: A :class:`rlvr.policy.model.Policy` whose dropout is off.
        ids_RL: A few tokens to try it on.
    """
    seen, before = [], policy.training
    devices = [ids_RL.device] if ids_RL.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        for mode in (False, True):
            policy.train(mode)
            backbone: Any = policy.backbone
            seen.append(backbone(input_ids=ids_RL, use_cache=False).last_hidden_state)
    policy.train(before)
    return not torch.allclose(seen[0], seen[1], rtol=1e-3, atol=1e-3)
