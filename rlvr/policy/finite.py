"""Weights that are no numbers: found where they are loaded, moved and written.

A model with one such weight gives logits that are no numbers either, and every later gradient with
them. The look is one pass over memory, a small part of reading, moving or writing the weights.
"""

from collections.abc import Iterable, Mapping
from math import inf, isfinite
from pathlib import Path

import torch
from torch import nn


class NonFiniteWeightsError(ValueError):
    """Weights that are NaN or infinite; the message names the first of them."""


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value of a tensor is NaN or infinite; one that holds no floats always is."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    tensor = tensor.detach()
    if tensor.dtype.itemsize == 1:  # eight bits have no minimum of their own
        tensor = tensor.float()
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())  # NaN is handed on


def first_bad(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Name of the first tensor with a value that is NaN or infinite, if there is one."""
    return next((name for name, tensor in tensors if not is_finite(tensor)), None)


def largest(tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[str, float]:
    """The first of the tensors with the largest absolute value, NaN counted as infinite."""
    found = ("nothing", -1.0)
    for name, tensor in tensors:
        size = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
        size = size if isfinite(size) else inf
        if size > found[1]:
            found = (name, size)
    return found


def check_writable(name: str | None, folder: Path) -> None:
    """Refuse to write weights of which :func:`first_bad` named one.

    Raises:
        NonFiniteWeightsError: It did.
    """
    if name is not None:
        raise NonFiniteWeightsError(
            f"the weights {name!r} are not finite and were not written to {folder}; lower the "
            "learning rate and go on from the checkpoint before"
        )


def check_loaded(module: nn.Module, path: str, revision: str | None = None) -> None:
    """See that weights are finite that were just loaded.

    Args:
        module: Holds them.
        path: The folder or Hub id that they come from.
        revision: Of the Hub.

    Raises:
        NonFiniteWeightsError: They are not; the message names the tensor and its file.
    """
    name = first_bad(module.named_parameters())
    if name is None:
        # Masks may be infinite; a buffer of the checkpoint that is NaN is damage all the same.
        saved = module.state_dict().items()
        name = next((n for n, t in saved if t.is_floating_point() and bool(t.isnan().any())), None)
    if name is None:
        return
    stored, file = _stored(Path(path).expanduser(), path, revision) or (name, path)
    raise NonFiniteWeightsError(
        f"the weights {stored!r} in {file} are not finite (NaN or infinite), so the model gives no "
        "probabilities; take an intact copy, or an earlier checkpoint"
    )


def check_file(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """See that tensors are finite that were just read from a file.

    Raises:
        NonFiniteWeightsError: They are not; the message names the first and the file.
    """
    name = first_bad(tensors.items())
    if name is not None:
        raise NonFiniteWeightsError(
            f"the weights {name!r} in {file} are not finite (NaN or infinite); take an intact "
            "copy, or an earlier checkpoint"
        )


def _stored(folder: Path, source: str, revision: str | None) -> tuple[str, Path] | None:
    """Name and file of the first bad tensor on disk: loading may have renamed or joined it."""
    from safetensors import safe_open

    if not folder.is_dir():
        from transformers.utils import cached_file

        config = cached_file(source, "config.json", revision=revision, local_files_only=True)
        folder = Path(str(config)).parent
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as held:
            # Not a mapping: it has keys, and no iteration.
            names = sorted(held.keys())
            name = first_bad((name, held.get_tensor(name)) for name in names)
        if name is not None:
            return name, file
    return None
