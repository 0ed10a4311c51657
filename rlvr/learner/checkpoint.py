"""Checkpoints: written whole or not at all, checked before use.

    RUN/checkpoints/step_000020/
        model/                 Hugging Face folder (or adapter/, with LoRA)
        trainer.safetensors    optimizer moments, random generator states
        state.json             step, counters, sampler, whatever the loop hands in
        MANIFEST.json          size and SHA-256 of every file above

A checkpoint is built in a folder with a temporary name, flushed to disk, and renamed into place;
the rename is what makes it exist. Loading goes from the newest to the oldest and takes the first
whose manifest holds. One format serves every task.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

logger = logging.getLogger(__name__)

_MANIFEST = "MANIFEST.json"


class CheckpointError(OSError):
    """A checkpoint could not be written; the message says what is still there."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lives."""
    return folder / f"step_{step:06d}"


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    write_model: Callable[[Path], None],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint atomically, then drop all but the newest ``keep``.

    One of the same step is replaced; ones of later steps, which a resumed run found damaged, go.

    Args:
        folder: The run's checkpoint folder.
        step: Number of finished steps.
        write_model: Writes the model's files into the folder it is given.
        tensors: Optimizer moments and generator states.
        state: Everything else, as JSON.
        keep: How many checkpoints remain.

    Raises:
        CheckpointError: Disk full or not writable; older checkpoints are untouched.
    """
    target = checkpoint_path(folder, step)
    temporary = folder / f".{target.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()
        write_model(temporary)
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, temporary / "trainer.safetensors"
        )
        _write_json(temporary / "state.json", dict(state))
        _write_json(temporary / _MANIFEST, _manifest(temporary))
        _flush(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        _sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(_explain(folder, step, error)) from error
    _prune(folder, target, keep)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose every file matches its manifest; damaged ones are named."""
    for path in sorted(folder.glob("step_*"), reverse=True):
        fault = find_fault(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s is damaged (%s); trying the one before it", path, fault)
    return None


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{_MANIFEST} is missing or unreadable"
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['size']}"
        if _sha256(file) != expected["sha256"]:
            return f"{name} does not match its checksum"
    return None


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """``state.json`` and the tensors of a checkpoint."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state, load_file(path / "trainer.safetensors")


def random_states() -> dict[str, torch.Tensor]:
    """States of torch's generators (dropout draws from them)."""
    states = {"rng/cpu": torch.get_rng_state()}
    for index in range(torch.cuda.device_count()):
        states[f"rng/cuda{index}"] = torch.cuda.get_rng_state(index)
    return states


def restore_random_states(tensors: Mapping[str, torch.Tensor]) -> None:
    """Take back what :func:`random_states` gave, for the devices that are here."""
    torch.set_rng_state(tensors["rng/cpu"])
    for index in range(torch.cuda.device_count()):
        if f"rng/cuda{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"rng/cuda{index}"], index)


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in files
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _flush(folder: Path) -> None:
    """Ask the disk to hold the files before the rename says that they exist."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".step_*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Drop all but the ``keep`` up to ``newest``.

    Later ones are damaged, or the run would have gone on from them; counted as kept, they would
    push out sound ones.
    """
    found = sorted(folder.glob("step_*"), reverse=True)
    kept = [path for path in found if path.name <= newest.name][:keep]
    for path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _explain(folder: Path, step: int, error: Exception) -> str:
    intact = sorted(folder.glob("step_*")) if folder.is_dir() else []
    there = f"{intact[-1]} is intact" if intact else "there is no earlier one"
    return (
        f"the checkpoint of step {step} could not be written to {folder} ({error}); {there}; "
        "free some space and start again with --resume"
    )
