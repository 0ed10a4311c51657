"""Low-rank adapters: added to a model, loaded, merged, and tried before anything is trained.

Merged weights must give what weights with adapters give, or a run would end in a model that it
never trained. peft merges each adapter by itself, which is wrong where two layers share a weight:
an adapter on a tied embedding changes the output head too once it is merged. So adapters are filled
with random numbers once, merged, compared and put back.
"""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from rlvr.policy.batching import padded_inputs
from rlvr.policy.finite import check_loaded
from rlvr.policy.merging import adapted_weights, added, merged_buckets
from rlvr.policy.model import MODEL_ERRORS, Policy, evaluating, first_line, in_float32
from rlvr.policy.model_check import check_model, probe_ids
from rlvr.policy.settings import LoraSettings

_TOLERANCE = 1e-3
"""Largest difference in nats between merged and adapted weights that rounding explains."""


def add_adapters(model: Any, settings: LoraSettings) -> Any:  # noqa: ANN401
    """Wrap ``model`` with freshly initialised LoRA adapters; its own weights are frozen.

    Raises:
        ValueError: The model has no such layers, or they cannot be adapted.
    """
    from peft import LoraConfig, get_peft_model

    targets = settings.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    names = _linear_names(model)
    try:
        with _quiet_peft():
            return get_peft_model(model, config)
    except MODEL_ERRORS as error:
        wrong = [name for name in names if f"'{name}'" in str(error)]
        raise ValueError(
            f"model.lora cannot adapt this model ({first_line(error)}); "
            f"{_remedy([name for name in names if name not in wrong], wrong)}"
        ) from error


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without what peft says of things that are tried here."""
    with warnings.catch_warnings():
        # It names the experts of a mixture twice and finds them once.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        yield


def _linear_names(model: Any) -> list[str]:  # noqa: ANN401
    """Last parts of the names of linear layers, without the output head."""
    head = model.get_output_embeddings()
    layers = ((name, module) for name, module in model.named_modules() if module is not head)
    return sorted(
        {name.rpartition(".")[2] for name, module in layers if isinstance(module, nn.Linear)}
    )


def load_adapters(model: nn.Module, folder: Path, *, trainable: bool) -> Any:  # noqa: ANN401
    """Wrap ``model`` with the adapters of a folder.

    Raises:
        ValueError: They do not go with the model.
    """
    from peft import PeftModel

    try:
        with _quiet_peft():
            return PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except MODEL_ERRORS as error:
        raise ValueError(
            f"the adapter {str(folder)!r} does not fit its base model ({first_line(error)})"
        ) from error


def merge_adapters(model: nn.Module, folder: Path) -> Any:  # noqa: ANN401
    """The model with the adapters of a folder merged into its weights.

    Raises:
        ValueError: They do not go with the model, or merged weights give other numbers.
    """
    adapted = load_adapters(model, folder, trainable=False).eval()
    check_loaded(adapted, str(folder))
    ids = probe_ids(Policy(adapted), 12)[None]
    with torch.no_grad():
        before = adapted(input_ids=ids).logits.log_softmax(-1)
        merged = adapted.merge_and_unload()
        after = merged(input_ids=ids).logits.log_softmax(-1)
    apart = float((before - after).abs().max())
    if not apart < _TOLERANCE:
        raise ValueError(
            f"the adapter {str(folder)!r} merged into its base gives log-probabilities "
            f"{apart:.3g} nats from those of the adapter; merge it with the program that trained "
            "it, and give model.path the result"
        )
    return merged.requires_grad_(True)


def check_adapters(policy: Policy) -> None:
    """Try saving, merging and exporting with adapters that do something; the policy stays as it is.

    Raises:
        ValueError: One of them fails, or merged weights are not what the adapters do.
    """
    with torch.no_grad(), evaluating(policy), in_float32(policy) as tolerance:
        _check_saving(policy)
        targets = target_names(policy)
        apart = _merged_apart(policy, targets)
        if apart < max(tolerance, _TOLERANCE):
            return
        wrong = _wrong_targets(policy, targets)
    raise ValueError(
        f"the adapters of model.lora cannot be merged: merged weights give log-probabilities "
        f"{apart:.3g} nats from the adapters' (a layer shares its weight, or is not used as a "
        f"layer); {_remedy(sorted(targets - wrong), sorted(wrong))}"
    )


def _wrong_targets(policy: Policy, targets: set[str]) -> set[str]:
    """Layers whose adapters alone merge wrongly, or else those without which the others do not."""
    alone = {name for name in targets if not _merged_apart(policy, {name}) < _TOLERANCE}
    return alone or {
        name for name in targets if _merged_apart(policy, targets - {name}) < _TOLERANCE
    }


def check_targets_alone(model: Any) -> None:  # noqa: ANN401
    """See that no adapted layer shares its weight; what :func:`check_adapters` can say unloaded.

    Raises:
        ValueError: One does.
    """
    adapted = {id(weight): name for name, weight in _base_weights(model) if ".base_layer" in name}
    others = {id(weight) for name, weight in _base_weights(model) if ".base_layer" not in name}
    targets = {_layer_name(name) for name, _ in model.named_parameters() if "lora_" in name}
    wrong = {_base_layer_name(name) for key, name in adapted.items() if key in others}
    if wrong:
        raise ValueError(
            "the adapters of model.lora cannot be merged: another layer shares the weight of "
            f"{', '.join(sorted(wrong))}; {_remedy(sorted(targets - wrong), sorted(wrong))}"
        )


def _base_weights(model: Any) -> list[tuple[str, torch.Tensor]]:  # noqa: ANN401
    named = model.named_parameters(remove_duplicate=False)
    return [(name, weight) for name, weight in named if "lora_" not in name]


def _base_layer_name(parameter: str) -> str:
    return parameter.partition(".base_layer")[0].rpartition(".")[2]


def _remedy(targets: Sequence[str], wrong: Sequence[str]) -> str:
    if not wrong or not targets:
        return "train all weights instead (model.lora=null)"
    left_out = ", ".join(wrong)
    # Experts are adapted with the others, but are no layers that could be named.
    kept = ", ".join(name for name in targets if name != "experts")
    return f"leave out {left_out}: set model.lora.target_modules=[{kept}]"


def target_names(policy: Policy) -> set[str]:
    """Last parts of the names of adapted layers."""
    return {_layer_name(name) for name, _ in policy.named_parameters() if "lora_" in name}


def _layer_name(parameter: str) -> str:
    return parameter.partition(".lora_")[0].replace(".base_layer", "").rpartition(".")[2]


def _merged_apart(policy: Policy, targets: set[str]) -> float:
    """Largest difference in nats between merged and adapted weights on a few tokens.

    Adapters of layers that are not among ``targets`` do nothing meanwhile.
    """
    with filled_adapters(policy, targets):
        adapted = _probe_logprobs(policy)
        with _merged_in_place(policy):
            merged = _probe_logprobs(policy)
    return float((adapted - merged).abs().max())


def check_without_adapters(
    policy: Policy, path: str, settings: LoraSettings, error: ValueError
) -> None:
    """Say which adapters a model cannot be run with, if it can be run without; ends the policy.

    Args:
        policy: With adapters.
        path: What a message calls it.
        settings: Of the adapters.
        error: What was found with them.

    Raises:
        ValueError: The model is sound, and adapters are what it cannot be run with.
    """
    names = target_names(policy)
    bare: Any = policy.model.unload()  # type: ignore[operator]
    check_model(Policy(bare, policy.precision), path)
    wrong = set()
    for name in sorted(names):
        adapted = add_adapters(bare, settings.model_copy(update={"target_modules": (name,)}))
        try:
            check_model(Policy(adapted, policy.precision), path)
        except ValueError:
            wrong.add(name)
        bare = adapted.unload()
    raise ValueError(
        f"model.lora cannot adapt this model ({first_line(error)}); "
        f"{_remedy(sorted(names - wrong), sorted(wrong))}"
    ) from error


def _check_saving(policy: Policy) -> None:
    """Write the adapters as a checkpoint does, and name the merged weights as an export does."""
    from rlvr.policy.saving import save_policy

    try:
        with tempfile.TemporaryDirectory(prefix="rlvr-adapters-") as folder:
            save_policy(policy, Path(folder))
        for bucket in merged_buckets(policy, torch.float32):
            revert_weight_conversion(policy.causal_lm, bucket)
    except MODEL_ERRORS as error:
        raise ValueError(
            f"the adapters of model.lora cannot be saved or merged ({first_line(error)}); name "
            "fewer layers in model.lora.target_modules"
        ) from error


@contextmanager
def filled_adapters(
    policy: Policy, targets: set[str] | None = None, scale: float = 1.0
) -> Iterator[None]:
    """Adapters of small random numbers instead of those that do nothing yet.

    Args:
        policy: With adapters, not sharded; afterwards bit for bit what it was.
        targets: Last parts of the names of the layers whose adapters do something; None is all.
        scale: Multiplies the numbers, of both matrices of an adapter.
    """
    generator = torch.Generator().manual_seed(0)
    before = {}
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            before[name] = (parameter, parameter.detach().clone())
            noise = torch.randn(parameter.shape, generator=generator)
            if targets is not None and _layer_name(name) not in targets:
                noise.zero_()
            parameter.copy_(scale * noise.to(parameter) / max(parameter.shape) ** 0.5)
    try:
        yield
    finally:
        for parameter, value in before.values():
            parameter.copy_(value)


@contextmanager
def _merged_in_place(policy: Policy) -> Iterator[None]:
    """Weights with the adapters added, and adapters off; afterwards bit for bit what they were.

    A layer that is not held in float32 adds them where it makes its weight whole. Otherwise the
    parameters change, and stay the same objects: tied layers share them.
    """
    before, layers = [], []
    try:
        for weight, layer, adapter in adapted_weights(policy):
            if layer is not None:
                layer.added = partial(added, adapter)
                layers.append(layer)
                continue
            delta = added(adapter)
            if weight.dtype == delta.dtype:
                before.append((weight, weight.detach().to("cpu", copy=True)))
                weight.add_(delta)
            else:  # an embedding
                before.append((weight, weight.data))
                weight.data = weight.data + delta
        with policy.model.disable_adapter():  # type: ignore[operator]
            yield
    finally:
        for layer in layers:
            layer.added = None
        for weight, value in before:
            if weight.dtype == value.dtype:
                weight.copy_(value)
            else:
                weight.data = value


def _probe_logprobs(policy: Policy) -> torch.Tensor:
    ids = probe_ids(policy, 12).tolist()
    inputs = padded_inputs([ids[:1]], [ids[1:]], (0,)).to(policy.device)
    return policy(inputs).logprobs_N
