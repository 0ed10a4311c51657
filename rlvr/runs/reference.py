"""Log-probabilities under a frozen reference, taken once and kept in the run folder."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from rlvr.data.examples import Examples
from rlvr.learner.preference import adapters_off, reference_column
from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.vocabulary import check_same_vocabulary
from rlvr.runs.collectives import on_rank_zero
from rlvr.runs.offline_run import OfflineRun

_FILE = "reference.safetensors"
_Columns = dict[str, torch.Tensor]


def add_reference(
    run: OfflineRun, named: ModelSettings | None = None, ld_alpha: float | None = None
) -> None:
    """Put reference log-probabilities on all examples, from the run folder where they are.

    Args:
        run: The policy of a run that is not a continuation must not have been trained yet.
        named: The reference; None is the recipe's model before training.
        ld_alpha: How they are reduced; it tells others from these.
    """
    data = {"data": run.data, **run.held_out}
    key = _key(data, named or run.recipe.model, ld_alpha)
    kept = on_rank_zero(run.ranks, lambda: _kept(run, key, data))
    columns: _Columns
    if kept is not None:
        columns = {name: torch.tensor(values) for name, values in kept.items()}
    else:
        with _reference_model(run, named) as model:
            columns = {name: _column(run, name, x, model) for name, x in data.items()}
        if run.ranks.first:
            _keep(run, key, columns)
    run.data = run.data.with_columns(reference=columns["data"])
    run.held_out = {
        name: examples.with_columns(reference=columns[name])
        for name, examples in run.held_out.items()
    }


def live_reference(
    policy: Policy, model: ModelSettings, named: ModelSettings | None = None
) -> Callable[[], AbstractContextManager[Policy]]:
    """What opens a reference for passes during training.

    Args:
        policy: The model that is trained; with its adapters off it is its own reference.
        model: The recipe's.
        named: Another reference.

    Raises:
        ValueError: There is no such model, or it has another vocabulary than the policy.
    """
    if named is None and policy.has_adapters:
        return lambda: adapters_off(policy)
    frozen = load_frozen(named or model, policy)
    return lambda: nullcontext(frozen)


def load_frozen(settings: ModelSettings, policy: Policy) -> Policy:
    """A reference model with the policy's vocabulary.

    Raises:
        ValueError: There is no such model, or it has another vocabulary than the policy.
    """
    model = load_policy(settings.model_copy(update={"lora": None}), trained=False)
    check_same_vocabulary(policy, model, settings)
    return model


def _column(run: OfflineRun, name: str, examples: Examples, model: Policy) -> torch.Tensor:
    def progress(done: int) -> None:
        run.log.phase(f"reference log-probabilities of {name}", done, len(examples))

    return reference_column(run.learner, examples, model, progress)


@contextmanager
def _reference_model(run: OfflineRun, named: ModelSettings | None) -> Iterator[Policy]:
    """The named one, or the recipe's model: the policy before training, or without adapters."""
    if named is not None:
        yield load_frozen(named, run.policy)
    elif run.policy.has_adapters:
        with adapters_off(run.policy) as model:
            yield model
    elif run.saved is None:
        yield run.policy
    else:
        yield load_policy(run.recipe.model)


def _kept(run: OfflineRun, key: str, data: Mapping[str, Examples]) -> dict[str, list[float]] | None:
    """What an earlier start of this run computed for the same tokens and model."""
    from safetensors import SafetensorError, safe_open

    path = run.folder / _FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return {name: file.get_tensor(name).tolist() for name in data}
    except (SafetensorError, OSError) as error:
        run.log.notify(f"{path} is damaged ({error}); reference log-probabilities are taken again")
        return None


def _keep(run: OfflineRun, key: str, columns: _Columns) -> None:
    from safetensors.torch import save_file

    path = run.folder / _FILE
    partial = path.with_suffix(".partial")
    whole = {name: column.contiguous() for name, column in columns.items()}
    save_file(whole, partial, {"key": key})
    partial.replace(path)


def _key(data: Mapping[str, Examples], model: ModelSettings, ld_alpha: float | None) -> str:
    content = {
        name: [x.prompt_ids, x.completion_ids, x.rows, x.step_ends] for name, x in data.items()
    }
    text = json.dumps([model.model_dump(mode="json"), ld_alpha, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
