"""Checkpoints: written whole or not at all, checked before use.

    RUN/checkpoints/step_000020/
        model/                 Hugging Face folder (or adapter/, with LoRA)
        trainer.safetensors    optimizer moments, random generator states
        state.json             step, counters, sampler, whatever the loop hands in
        MANIFEST.json          size and SHA-256 of every file above

A checkpoint is built in a folder with a temporary name, flushed to disk, and renamed into place;
the rename is what makes it exist. Loading goes from the newest to the oldest and takes the first
whose manifest holds. One format serves every task.

With several ranks each writes ``trainer_RANK.safetensors``, its part of the optimizer state and its
generators, into the same folder (which all must see); the first rank writes the rest and renames
once all are through. Parts are slices of named parameters, so that another number of ranks, or
another store, can put them together (:class:`SavedTensors`).
"""

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rlvr.policy.finite import NonFiniteWeightsError
from rlvr.ranks import Ranks

logger = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"
KEPT = "KEPT"
"""A file in a checkpoint that is never pruned; it says why. No part of what was saved."""


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
    ranks: Ranks | None = None,
) -> Path:
    """Write a checkpoint atomically, then drop all but the newest ``keep``; collective.

    One of the same step is replaced; ones of later steps, which a resumed run found damaged, go.

    Args:
        folder: The run's checkpoint folder.
        step: Number of finished steps.
        write_model: Writes the model's files into the folder it is given, on the first rank.
        tensors: This rank's optimizer moments and generator states.
        state: Everything else, as JSON.
        keep: How many checkpoints remain.
        ranks: The processes that save together; None is this one alone.

    Raises:
        CheckpointError: Disk full or not writable, on any rank; older checkpoints are untouched.
        NonFiniteWeightsError: A weight is not finite; likewise.
    """
    ranks = ranks or Ranks()
    target = checkpoint_path(folder, step)
    temporary = folder / f".{target.name}.partial"

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary.mkdir()

    def write_part() -> None:
        file = temporary / trainer_file(ranks.rank, ranks.count)
        save_file({k: v.contiguous() for k, v in tensors.items()}, file)
        _sync_file(file)

    def finish() -> None:
        write_model(temporary)
        _write_json(temporary / "state.json", {**state, "ranks": ranks.count})
        _publish(temporary, target)

    try:
        _together(ranks, begin, first_only=True)
        _together(ranks, write_part)
        _together(ranks, finish, first_only=True)
    except (OSError, SafetensorError, NonFiniteWeightsError) as error:
        if ranks.first:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, NonFiniteWeightsError):
            raise
        raise CheckpointError(_explain(folder, step, error)) from error
    if ranks.first:
        _prune(folder, target, keep)
    return target


def _publish(built: Path, target: Path) -> None:
    """Give a folder its manifest, have the disk hold it, and put it in its place."""
    _write_json(built / MANIFEST, _manifest(built))
    _flush(built)
    _remove(target)
    built.rename(target)
    _sync_folder(target.parent)


def _together(ranks: Ranks, work: Callable[[], None], *, first_only: bool = False) -> None:
    """Do something on every rank (or the first), and fail on all where it failed on one."""
    fault: OSError | SafetensorError | NonFiniteWeightsError | None = None
    if ranks.first or not first_only:
        try:
            work()
        except (OSError, SafetensorError, NonFiniteWeightsError) as error:
            fault = error
    weights = isinstance(fault, NonFiniteWeightsError)
    said = ranks.gather(None if fault is None else [str(fault), weights])
    if fault is not None:
        raise fault
    for rank, told in enumerate(said):
        if told is not None:
            raise (NonFiniteWeightsError if told[1] else OSError)(f"rank {rank}: {told[0]}")


class CheckpointWriter:
    """Writes a run's checkpoints, in a thread of its own where asked; collective in every call.

    A background write takes copies first, so that training may go on; one is under way at most.

    Args:
        folder: The run's checkpoint folder.
        keep: How many checkpoints remain.
        ranks: The processes that save together.
        background: Write in a thread.

    Attributes:
        written: Called on the first rank with each checkpoint once it is there, in the thread that
            wrote it, before a later one can push it out; must not raise.
    """

    written: Callable[[Path], None] | None

    def __init__(self, folder: Path, keep: int, ranks: Ranks, *, background: bool = False) -> None:
        self.folder, self.keep, self.background = folder, keep, background
        self.ranks = ranks.group() if background else ranks
        self.written = None
        self._thread: threading.Thread | None = None
        self._fault: CheckpointError | NonFiniteWeightsError | None = None

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        tensors: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint, or begin to; where it is, or will be.

        With ``background``, ``write_model`` must not look at weights that training changes.

        Raises:
            CheckpointError: This one, or the one before it, could not be written.
        """
        self.wait()
        if not self.background:
            self._write(step, write_model, tensors, state)
            return checkpoint_path(self.folder, step)
        copies = {name: value.to("cpu", copy=True) for name, value in tensors.items()}
        # Not a daemon: a program that ends normally ends after it.
        self._thread = threading.Thread(
            target=self._catch, args=(step, write_model, copies, dict(state)), name="checkpoint"
        )
        self._thread.start()
        return checkpoint_path(self.folder, step)

    def wait(self) -> None:
        """Until what was begun is written.

        Raises:
            CheckpointError: It could not be.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def keep_for_good(self, step: int, why: str) -> None:
        """Have the checkpoint of a step never pruned; once it is written."""
        self.wait()
        path = checkpoint_path(self.folder, step)
        if self.ranks.first and path.is_dir():
            (path / KEPT).write_text(f"{why}\n", encoding="utf-8")

    def _catch(self, *arguments: Any) -> None:  # noqa: ANN401
        try:
            self._write(*arguments)
        except (CheckpointError, NonFiniteWeightsError) as error:
            self._fault = error

    def _write(
        self,
        step: int,
        write_model: Callable[[Path], None],
        tensors: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
    ) -> None:
        path = save_checkpoint(
            self.folder,
            step,
            write_model=write_model,
            tensors=tensors,
            state=state,
            keep=self.keep,
            ranks=self.ranks,
        )
        if self.written is not None and self.ranks.first:
            self.written(path)


def checkpoints_of(folder: Path) -> list[Path]:
    """What has the name of a checkpoint, newest first; it may be damaged."""
    named = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose every file matches its manifest; damaged ones are named."""
    for path in checkpoints_of(folder):
        fault = find_fault(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s is damaged (%s); trying the one before it", path, fault)
    return None


def last_sound(folder: Path) -> Path | None:
    """The newest intact checkpoint whose last updates were not skipped."""
    newest_first = checkpoints_of(folder)
    return next((p for p in newest_first if find_fault(p) is None and _is_sound(p)), None)


def _is_sound(path: Path) -> bool:
    """Whether a checkpoint was written while updates were taken (``bad_updates.py``)."""
    try:
        return not any(_read_state(path).get("bad_updates", {}).values())
    except (OSError, ValueError, AttributeError):
        return False


def find_fault(path: Path, under: str = "") -> str | None:
    """What is wrong with a checkpoint, or None.

    Args:
        path: The checkpoint.
        under: Look only at files whose names begin so, such as ``model/``.
    """
    if not path.is_dir():
        return "it is no folder"
    try:
        manifest = _read_manifest(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is missing or unreadable"
    if not manifest:
        return f"{MANIFEST} lists no files"
    try:
        for name, (size, checksum) in manifest.items():
            file = path / name
            if not name.startswith(under):
                continue
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            if _sha256(file) != checksum:
                return f"{name} does not match its checksum"
    except OSError as error:
        return str(error)
    return None if under else _fault_of_state(path)


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file by name."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return {name: (int(item["size"]), item["sha256"]) for name, item in manifest.items()}


def _fault_of_state(path: Path) -> str | None:
    """What no run can go on from, although the files are what was written."""
    try:
        state = _read_state(path)
    except (OSError, ValueError) as error:
        return f"state.json cannot be read ({error})"
    return None if isinstance(state.get("step"), int) else "state.json names no step"


def _read_state(path: Path) -> dict[str, Any]:
    """``state.json``.

    Raises:
        ValueError: It is no JSON object.
    """
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ValueError(f"it holds {type(state).__name__} instead of an object")
    return state


def trainer_file(rank: int, ranks: int) -> str:
    """Name of a rank's part."""
    return "trainer.safetensors" if ranks == 1 else f"trainer_{rank}.safetensors"


class SavedTensors(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by name, whole, read when they are asked for.

    Args:
        parts: The files of all ranks that wrote it.
        own: The one that this rank's random generators are taken from; None leaves them out.
    """

    def __init__(self, parts: list[Path], own: Path | None) -> None:
        self._files = {path: safe_open(path, "pt") for path in parts}
        self._where: dict[str, list[Path]] = {}
        for path, file in self._files.items():
            for key in file.keys():  # noqa: SIM118  (not a mapping)
                if not key.startswith("rng/") or path == own:
                    self._where.setdefault(key, []).append(path)

    def __getitem__(self, key: str) -> torch.Tensor:
        holders, name = self._where[key], key.partition("/")[2]
        if key.startswith(("rng/", "step/")) or f"start/{name}" not in self._where:
            return self._read(holders[0], key)
        slices = sorted((int(self._read(path, f"start/{name}")), path) for path in holders)
        return torch.cat([self._read(path, key) for _, path in slices])

    def _read(self, path: Path, key: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[path].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._where if not key.startswith("start/"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def load_state(path: Path, ranks: Ranks | None = None) -> tuple[dict[str, Any], SavedTensors]:
    """``state.json`` and the tensors of a checkpoint.

    Written by another number of ranks, it has no random generators for this one.
    """
    ranks = ranks or Ranks()
    state = _read_state(path)
    wrote = state.pop("ranks", 1)
    parts = [path / trainer_file(rank, wrote) for rank in range(wrote)]
    return state, SavedTensors(parts, parts[ranks.rank] if wrote == ranks.count else None)


def written_by(path: Path) -> int:
    """How many ranks wrote a checkpoint."""
    return int(_read_state(path).get("ranks", 1))


def random_states() -> dict[str, torch.Tensor]:
    """States of torch's generators (dropout draws from them)."""
    states = {"rng/cpu": torch.get_rng_state()}
    for index in range(torch.cuda.device_count()):
        states[f"rng/cuda{index}"] = torch.cuda.get_rng_state(index)
    return states


def restore_random_states(tensors: Mapping[str, torch.Tensor]) -> None:
    """Take back what :func:`random_states` gave, for the devices that are here."""
    if "rng/cpu" in tensors:
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
            _sync_file(path)
    _sync_folder(folder)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


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
    push out sound ones. While updates are skipped, the last one from before that stays as well;
    so do those that are kept for good, which do not count.
    """
    found = checkpoints_of(folder)
    earlier = found[found.index(newest) :]
    for_good = [path for path in earlier if (path / KEPT).is_file()]
    kept = [path for path in earlier if path == newest or path not in for_good][:keep] + for_good
    if not any(map(_is_sound, kept)):
        kept += [path for path in earlier if _is_sound(path)][:1]
    for path in found:
        if path not in kept:
            with suppress(OSError):
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint, or what stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _explain(folder: Path, step: int, error: Exception) -> str:
    intact = checkpoints_of(folder)
    there = f"{intact[0]} is intact" if intact else "there is no earlier one"
    return (
        f"the checkpoint of step {step} could not be written to {folder} ({error}); {there}; "
        "free some space and start again with --resume"
    )
