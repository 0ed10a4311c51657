"""What a model's path names: weights, an adapter of other weights, a checkpoint, a run.

transformers loads some of these as if they were something else (of an adapter with a second adapter
on top it trains the bare base), so they are told apart before anything is loaded.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from rlvr.policy.settings import ModelSettings, check_local

_ADAPTER = "adapter_config.json"
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class FoundModel:
    """Where weights and tokenizer come from.

    Attributes:
        path: Folder or Hub id of whole weights.
        revision: Of the Hub id.
        tokenizer: Folder or Hub id that holds the tokenizer.
        adapters: Folders of adapters to merge into the weights, in this order.
        notes: What is to be said about how the path was read.
    """

    path: str
    revision: str | None
    tokenizer: str
    adapters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_model(settings: ModelSettings) -> FoundModel:
    """What ``model.path`` names.

    Raises:
        ValueError: Nothing that can be loaded; the message says what it is and what to do.
    """
    path = check_local(settings.path)
    folder = Path(path)
    if (folder / "recipe.yaml").is_file():
        return _noted(settings, _of_run(folder), "run folder: its final model is taken")
    if (folder / "state.json").is_file() and (folder / "MANIFEST.json").is_file():
        return _noted(settings, _of_checkpoint(folder), "checkpoint of a run: its model is taken")
    config = _adapter_config(path, settings.revision)
    if config is None:
        return FoundModel(path, settings.revision, path)
    return _of_adapter(settings, path, config)


def _noted(settings: ModelSettings, inner: Path, note: str) -> FoundModel:
    found = find_model(settings.model_copy(update={"path": str(inner)}))
    note = f"model {settings.path!r} is a {note} ({inner})"
    return replace(found, notes=(note, *found.notes))


def _of_run(run: Path) -> Path:
    if (run / "model").is_dir():
        return run / "model"
    checkpoints = sorted(path for path in (run / "checkpoints").glob("step_*") if path.is_dir())
    if checkpoints:
        raise ValueError(
            f"model {str(run)!r} is a run that has no final model yet; give one of its "
            f"checkpoints, such as {str(checkpoints[-1])!r}"
        )
    raise ValueError(
        f"model {str(run)!r} is a run with neither a final model nor a checkpoint; train it first"
    )


def _of_checkpoint(checkpoint: Path) -> Path:
    for name in ("model", "adapter"):
        if (checkpoint / name).is_dir():
            return checkpoint / name
    raise ValueError(f"checkpoint {str(checkpoint)!r} holds no model; choose another one")


def _adapter_config(path: str, revision: str | None) -> Path | None:
    """The file that makes a folder or repository an adapter, if there is one."""
    folder = Path(path)
    if folder.is_dir():
        config = folder / _ADAPTER
        if not config.is_file():
            return None
        if any(
            not file.name.startswith("adapter_")
            for pattern in _WEIGHTS
            for file in folder.glob(pattern)
        ):
            raise ValueError(
                f"model folder {path!r} holds both a model and an adapter ({_ADAPTER}); move one "
                "of them to a folder of its own"
            )
        return config
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(path, revision=revision)
    except (OSError, ValueError):  # no network, or no such repository: loading says so
        return None
    return None if found is None else Path(found)


def _of_adapter(settings: ModelSettings, path: str, config: Path) -> FoundModel:
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        base, kind = content.get("base_model_name_or_path"), content.get("peft_type")
    except (ValueError, AttributeError):
        raise ValueError(
            f"{str(config)!r} does not describe an adapter; fetch the adapter again"
        ) from None
    if not base:
        raise ValueError(
            f"model {path!r} is an adapter that does not say of which model; set "
            f"base_model_name_or_path in {str(config)!r}"
        )
    if kind != "LORA":
        raise ValueError(
            f"model {path!r} is an adapter of kind {kind!r}, which cannot be merged into its base; "
            f"only LORA can: give model.path its base {base!r}, or merge it yourself"
        )
    below = settings.model_copy(update={"path": base, "revision": content.get("revision")})
    try:
        found = find_model(below)
    except ValueError as error:
        raise ValueError(
            f"model {path!r} is an adapter of {base!r}: {error} (the base is named in "
            f"{str(config)!r} as base_model_name_or_path)"
        ) from None
    holds_tokenizer = (config.parent / "tokenizer_config.json").is_file()
    return replace(
        found,
        tokenizer=str(config.parent) if holds_tokenizer else found.tokenizer,
        adapters=(*found.adapters, str(config.parent)),
        notes=(
            *found.notes,
            f"model {settings.path!r} is an adapter of {base!r}: it is merged into its base "
            "before training",
        ),
    )
