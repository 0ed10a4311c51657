"""Log-probabilities under the reference, taken once and kept in the run folder."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rlvr.learner import PreferenceBatch, adapters_off
from rlvr.policy import ModelSettings, Policy, load_policy
from rlvr.train.prime import check_vocabulary
from rlvr.train.prm_recipe import PrmRecipe
from rlvr.train.together import first_rank

if TYPE_CHECKING:
    from rlvr.train.preference_recipe import PreferenceRecipe
    from rlvr.train.preference_run import PreferenceRun

_FILE = "reference.safetensors"
_Values = dict[str, list[list[float]]]


def add_reference(run: "PreferenceRun", *, fresh: bool) -> None:
    """Put reference log-probabilities beside all data, from the run folder where they are.

    Args:
        run: Its policy must not have been trained yet where it is ``fresh``.
        fresh: Whether the policy is still what it was before the run.
    """
    batches = {"data": run.data, **run.held_out}
    kept: _Values | None = first_rank(run.ranks, lambda: _kept(run, batches))
    if kept is not None:
        found = {name: torch.tensor(values) for name, values in kept.items()}
    else:
        with _reference_model(run, fresh=fresh) as model:
            found = {name: _values(run, name, batch, model) for name, batch in batches.items()}
        if run.ranks.first:
            _keep(run, batches, found)
    run.data = replace(run.data, reference_BK=found["data"])
    run.held_out = {
        name: replace(batch, reference_BK=found[name]) for name, batch in run.held_out.items()
    }


def _values(run: "PreferenceRun", name: str, batch: PreferenceBatch, model: Policy) -> torch.Tensor:
    def progress(done: int) -> None:
        run.log.phase(f"reference log-probabilities of {name}", done, len(batch))

    return run.learner.reference_sums(batch, model, progress).contiguous()


@contextmanager
def _reference_model(run: "PreferenceRun", *, fresh: bool) -> Iterator[Policy]:
    """The named one, or the recipe's model: the policy before training, or without adapters."""
    named = named_reference(run.recipe)
    if named is not None:
        yield load_frozen(named, run.policy)
    elif run.policy.has_adapters:
        with adapters_off(run.policy) as model:
            yield model
    elif fresh:
        yield run.policy
    else:
        yield load_policy(run.recipe.model)


def named_reference(recipe: "PreferenceRecipe | PrmRecipe") -> ModelSettings | None:
    """A reference that is not the recipe's own model before training."""
    return recipe.reference if isinstance(recipe, PrmRecipe) else None


def load_frozen(settings: ModelSettings, policy: Policy) -> Policy:
    """A reference beside the policy.

    Raises:
        ValueError: There is no such model, or it has another vocabulary than the policy.
    """
    model = load_policy(settings.model_copy(update={"lora": None})).requires_grad_(False).eval()
    check_vocabulary(policy, model, settings)
    return model


def _kept(run: "PreferenceRun", batches: Mapping[str, PreferenceBatch]) -> _Values | None:
    """What an earlier start of this run computed for the same tokens and model."""
    from safetensors import safe_open

    path = run.folder / _FILE
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("key") != _key(run, batches):
            return None
        return {name: file.get_tensor(name).tolist() for name in batches}


def _keep(
    run: "PreferenceRun",
    batches: Mapping[str, PreferenceBatch],
    found: dict[str, torch.Tensor],
) -> None:
    from safetensors.torch import save_file

    path = run.folder / _FILE
    partial = path.with_suffix(".partial")
    save_file(found, partial, {"key": _key(run, batches)})
    partial.replace(path)


def _key(run: "PreferenceRun", batches: Mapping[str, PreferenceBatch]) -> str:
    content = {name: [b.prompt_ids, b.completion_ids] for name, b in batches.items()}
    model = (named_reference(run.recipe) or run.recipe.model).model_dump(mode="json")
    ends = {name: b.step_ends for name, b in batches.items() if b.step_ends is not None}
    text = json.dumps(
        [model, run.recipe.ld_alpha, content, *([ends] if ends else [])], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()
