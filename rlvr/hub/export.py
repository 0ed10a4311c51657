"""``rlvr export``: find the weights, build the folder, and move or send it to its target.

    export(Path("runs/mine"), Wanted(to=Path("mine-hf")))

A folder appears complete or not at all. The files of one step of a run have the same bytes every
time, so the same command continues an interrupted upload.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.files import write_atomically
from rlvr.hub.card import IMAGES, Card, write_card
from rlvr.hub.card_text import public
from rlvr.hub.curves import draw_curves
from rlvr.hub.remote import MARKER, Pushed, Repository, sha256
from rlvr.hub.scores import Score, scores_of
from rlvr.hub.source import Source, find_source
from rlvr.hub.weights import Dtype, write_weights
from rlvr.policy.loading import load_tokenizer
from rlvr.progress import watching
from rlvr.rollout.weight_sync import WeightFolder
from rlvr.runs.run_folder import MAY_CHANGE

# Bytes for config, card, tokenizer and pictures, with room to spare.
_BESIDE_WEIGHTS = 64 * 2**20


@dataclass(frozen=True)
class Wanted:
    """What to export, and where.

    Args:
        to: Folder to write.
        repo: Repository on the Hub, OWNER/NAME.
        revision: Branch of the repository; None is main.
        private: Make the repository private.
        adapter_only: Export only the adapters of a LoRA run.
        dtype: Type of the weights.
        evaluations: Folders of ``rlvr eval`` for the card.
        license: The Hub's identifier of the license.
        replace: Replace other content at the target.
        attempts: How often to try a request to the Hub that fails temporarily.
    """

    to: Path | None = None
    repo: str | None = None
    revision: str | None = None
    private: bool = False
    adapter_only: bool = False
    dtype: Dtype = "float32"
    evaluations: tuple[Path, ...] = ()
    license: str | None = None
    replace: bool = False
    attempts: int = 5

    def check(self) -> None:
        """Check that the options fit together.

        Raises:
            ValueError: They do not.
        """
        if self.to is None and self.repo is None:
            raise ValueError("set the target: --to FOLDER, --push-to-hub OWNER/NAME, or both")
        if self.repo is None and (self.revision is not None or self.private):
            raise ValueError("--revision and --private need --push-to-hub")
        if self.adapter_only and self.dtype != "float32":
            raise ValueError("--adapter-only copies adapters unchanged; remove --dtype")


def export(
    source: Source, wanted: Wanted, notify: Callable[[str], None] = lambda text: None
) -> Pushed | None:
    """Export weights of a run; return the commit on the Hub if they were sent there.

    Args:
        source: Result of :func:`rlvr.hub.source.find_source`.
        wanted: What to export, and where.
        notify: Called with lines of progress.

    Raises:
        ValueError: The export is not possible with these options.
        HubError: The Hub refused the export or could not be reached.
    """
    wanted.check()
    scores = scores_of(source, wanted.evaluations)
    run = run_fingerprint(source)
    if wanted.to is not None:
        _check_folder(wanted.to, run, wanted.replace)
    repository = None
    if wanted.repo is not None:
        repository = Repository(
            wanted.repo,
            wanted.revision,
            private=wanted.private,
            attempts=wanted.attempts,
            notify=notify,
        )
        repository.look(run, wanted.replace)
    with _workplace(source, wanted) as folder:
        notify(f"step {source.step} of {source.run}: writing {_described(wanted)}")
        with watching(f"writing {_described(wanted)}"):
            build(source, wanted, scores, folder)
        pushed = None
        if repository is not None:
            sending = f"sending {_gigabytes(folder)} to {repository.name}"
            notify(sending)
            title = f"Step {source.step} of {source.run.resolve().name}"
            with watching(sending):
                pushed = repository.push(folder, title)
        if wanted.to is not None:
            _put(folder, wanted.to)
    return pushed


def export_run(
    run: Path,
    wanted: Wanted,
    *,
    step: int | None = None,
    base: str | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Pushed | None:
    """:func:`export` of a step of a run; without a step, the last one."""
    wanted.check()
    return export(find_source(run, step, base), wanted, notify)


def build(source: Source, wanted: Wanted, scores: list[Score], folder: Path) -> None:
    """Write weights, tokenizer, recipe, pictures, card and marker into ``folder``."""
    write_weights(
        source,
        folder,
        dtype=wanted.dtype,
        adapter_only=wanted.adapter_only,
        link=wanted.to is None,
    )
    recipe = (source.run / "recipe.yaml").read_text(encoding="utf-8")
    write_atomically(folder / "recipe.yaml", public(recipe))
    card = Card(
        source=source,
        name=wanted.repo or ("" if wanted.to is None else wanted.to.name),
        scores=scores,
        pictures=draw_curves(source.history, folder / IMAGES),
        tokenizer=load_tokenizer(source.tokenizer),
        dtype=wanted.dtype,
        adapter_only=wanted.adapter_only,
        license=wanted.license,
    )
    write_atomically(folder / "README.md", write_card(card))
    write_atomically(folder / MARKER, _marker(source, wanted, folder))


def run_fingerprint(source: Source) -> str:
    """A hash of everything in the recipe that affects gradients; equal for exports of the same
    run."""
    values = source.recipe.model_dump(mode="json", exclude=set(MAY_CHANGE))
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _marker(source: Source, wanted: Wanted, folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content: dict[str, Any] = {
        "format": 1,
        "run": run_fingerprint(source),
        "step": source.step,
        "dtype": wanted.dtype,
        "adapter_only": wanted.adapter_only,
        "files": {
            path.relative_to(folder).as_posix(): {
                "size": path.stat().st_size,
                "sha256": sha256(path),
            }
            for path in files
        },
    }
    return json.dumps(content, indent=1) + "\n"


def _check_folder(folder: Path, run: str, replace: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"--to {str(folder)!r} is a file; name a folder")
    if not any(folder.iterdir()) or replace:
        return
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != run:
        raise ValueError(
            f"--to {str(folder)!r} contains other content; choose another folder, or replace it "
            "with --replace"
        )


@contextmanager
def _workplace(source: Source, wanted: Wanted) -> Iterator[Path]:
    """The folder in which the export is built: next to its target, or a temporary folder."""
    size = source.size + _BESIDE_WEIGHTS
    if source.adapted and not wanted.adapter_only:
        size = _BESIDE_WEIGHTS  # the size of the base model is unknown until it is loaded
    if wanted.to is not None:
        partial = wanted.to.absolute().with_name(f".{wanted.to.name}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        _check_room(partial.parent, size)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return
    place = Path(tempfile.gettempdir())
    _check_room(place, size)
    held = WeightFolder(size, place)  # if this process is killed, a later export deletes the folder
    try:
        yield held.path / "export"
    finally:
        held.remove()


def _check_room(place: Path, size: int) -> None:
    free = shutil.disk_usage(place).free
    if free < size:
        raise ValueError(
            f"{str(place)!r} has {free / 2**30:.1f} GiB free but the export needs "
            f"{size / 2**30:.1f}; free some space, or set TMPDIR or --to to another disk"
        )


def _put(partial: Path, folder: Path) -> None:
    """Move the export to its target and delete an earlier export there."""
    old = folder.absolute().with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def _described(wanted: Wanted) -> str:
    return "the adapter" if wanted.adapter_only else f"the model in {wanted.dtype}"


def _gigabytes(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
