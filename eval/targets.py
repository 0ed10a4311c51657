"""The weights to evaluate: a model folder or Hub id, a training run, or some of its checkpoints.

A run folder stands for its final model, or for its newest intact checkpoint if there is none yet.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlvr.learner.checkpoint import latest_checkpoint
from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy
from rlvr.policy.settings import ModelSettings
from rlvr.settings import Settings, load_settings, read_recipe

_CHECKPOINT = re.compile(r"step_(\d+)")


@dataclass(frozen=True, slots=True)
class Target:
    """One set of weights; ``saved`` is their checkpoint, ``step`` its step."""

    label: str
    settings: ModelSettings
    saved: Path | None = None
    step: int | None = None

    def load(self, device: torch.device | None = None) -> Policy:
        """Load the model, ready to generate."""
        policy = load_policy(self.settings, saved=self.saved, device=device)
        return policy.requires_grad_(False).eval()


class _Recipe(Settings):
    """The part of a run's recipe that names the model."""

    model: ModelSettings


def find_targets(model: ModelSettings, all_checkpoints: bool = False) -> list[Target]:
    """The weights for which ``model.path`` stands; several with ``all_checkpoints``.

    Raises:
        ValueError: The path contains nothing that can be evaluated, or is not a run although one is
            needed.
    """
    path = Path(model.path)
    if (path / "recipe.yaml").is_file():
        return _of_run(path, model, all_checkpoints)
    if all_checkpoints:
        raise ValueError(
            f"{model.path!r} is not a run folder (it has no recipe.yaml), so it has no "
            "checkpoints; remove --all-checkpoints"
        )
    if _CHECKPOINT.fullmatch(path.name) and (path / "MANIFEST.json").is_file():
        return [_of_checkpoint(path, path.parent.parent, model)]
    return [Target(path.name or model.path, model)]


def label_of(model: str) -> str:
    """A name for a model's folder of results, from its path or Hub id."""
    path = Path(model)
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}-{path.name}"
    return path.resolve().name if path.exists() else model.replace("/", "--")


def _of_run(run: Path, model: ModelSettings, all_checkpoints: bool) -> list[Target]:
    checkpoints = sorted(path for path in (run / "checkpoints").glob("step_*") if path.is_dir())
    if all_checkpoints:
        if not checkpoints:
            raise ValueError(f"run {str(run)!r} contains no checkpoints; train it first")
        return [_of_checkpoint(path, run, model) for path in checkpoints]
    if (run / "model").is_dir():
        return [Target(run.name, model.model_copy(update={"path": str(run / "model")}))]
    newest = latest_checkpoint(run / "checkpoints")
    if newest is None:
        raise ValueError(f"run {str(run)!r} has neither a final model nor an intact checkpoint")
    return [_of_checkpoint(newest, run, model)]


def _of_checkpoint(path: Path, run: Path, model: ModelSettings) -> Target:
    recipe = run / "recipe.yaml"
    if not recipe.is_file():
        raise ValueError(f"checkpoint {str(path)!r} is not in a run: {recipe} is missing")
    content = read_recipe(recipe).data
    trained = load_settings(_Recipe, {"model": content.get("model", {})}).model
    kept = model.model_dump(include={"precision", "attention"})
    step = _CHECKPOINT.fullmatch(path.name)
    number = int(step[1]) if step else None
    return Target(f"{run.name}-{path.name}", trained.model_copy(update=kept), path, number)


def tokenizer_settings(target: Target) -> ModelSettings:
    """Settings that load the tokenizer of a target."""
    if target.saved is not None and (target.saved / "model" / "tokenizer_config.json").is_file():
        return target.settings.model_copy(
            update={"path": str(target.saved / "model"), "tokenizer": None, "revision": None}
        )
    return target.settings


def weights_sha256(policy: Policy) -> str:
    """A hash of the names, shapes and values of all weights, independent of their files."""
    digest = hashlib.sha256()
    state: dict[str, Any] = policy.causal_lm.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
