"""A policy as files: its weights or adapters, to go on from or to publish."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlvr.policy.finite import check_writable, first_bad
from rlvr.policy.model import Policy


def save_policy(policy: Policy, folder: Path) -> None:
    """Write ``folder/model`` (all weights, float32) or ``folder/adapter``, as safetensors."""
    policy_writer(policy)(folder)


def policy_writer(
    policy: Policy, *, keep: bool = True, copy: bool = False
) -> Callable[[Path], None]:
    """What :func:`save_policy` does, in two halves: weights are gathered now, and written later.

    Args:
        policy: Its sharded parameters are gathered one after the other, on every process.
        keep: Hold on to them; only the process that is to write needs to.
        copy: Hold copies, which training does not change.

    The writer raises NonFiniteWeightsError before it writes a weight that is not finite.
    """
    name = "adapter" if policy.has_adapters else "model"
    state = gathered_state(policy, keep=keep, copy=copy)
    # An adapter goes on the embedding of its base, which peft else looks up.
    more = {"save_embedding_layers": False} if policy.has_adapters else {}

    def write(folder: Path) -> None:
        check_writable(first_bad(state.items()), folder)
        save: Any = policy.model.save_pretrained
        save(folder / name, state_dict=state, **more)

    return write


def gathered_state(policy: Policy, *, keep: bool, copy: bool) -> dict[str, torch.Tensor]:
    """The state dictionary with whole tensors; of a policy with adapters theirs alone."""
    state: dict[str, torch.Tensor] = {}
    seen: dict[int, torch.Tensor] = {}  # tied tensors stay one, and are gathered once everywhere
    for name, tensor in policy.model.state_dict(keep_vars=True).items():
        if policy.has_adapters and "lora_" not in name:
            continue
        if id(tensor) not in seen:
            sharded = hasattr(tensor, "ds_id")
            with policy.gathered([tensor] if isinstance(tensor, nn.Parameter) else []):
                held = tensor.detach() if keep else tensor
                seen[id(tensor)] = held.to("cpu", copy=True) if keep and (copy or sharded) else held
        if keep:
            state[name] = seen[id(tensor)]
    return state


def export_policy(policy: Policy, folder: Path) -> None:
    """Write a Hugging Face model folder; adapters are merged, which ends their training."""
    model: Any = policy.model
    if policy.has_adapters:
        model = policy.model = model.merge_and_unload()
    model.save_pretrained(folder)
