"""Send a LoRA policy's adapter to vLLM, instead of the whole model with the adapter merged.

The base is written once, and vLLM starts with it. After every update the adapter alone is
written, as a folder of peft's format in shared memory, under a new number; vLLM takes it in place
of the one before, and every request names it. vLLM's prefix cache is keyed by the adapter's name
and path, both of which a new number changes, and is emptied all the same.

Where rounding counts the two routes differ: merged weights are rounded once, x(W + s BA), whereas
an adapter is applied beside the base, xW + s((xA)B), as the learner does it.

The proof of arrival is that of merged weights, and more (:mod:`rlvr.rollout.adapter_proof`). Before
the first adapter, each new engine process is given a *probe*, the same adapter filled with random
numbers: an adapter that does nothing yet cannot show whether the engine computes with adapters. The
probe needs whole parameters, so there is none while they are sharded.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rlvr.files import replacing_folder
from rlvr.policy.adapters import filled_adapters, target_names
from rlvr.policy.finite import check_writable, first_bad
from rlvr.policy.model import Policy
from rlvr.policy.saving import gathered_state
from rlvr.policy.settings import Precision
from rlvr.rollout.adapter_proof import (
    RESOLUTION,
    Fingerprint,
    distance,
    fingerprint,
    other_answer,
    tensor_fault,
)
from rlvr.rollout.arrival import listed
from rlvr.rollout.weight_store import WeightStore
from rlvr.rollout.weight_sync import Difference, StaleWeightsError, learner_logprobs

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks for which vLLM makes room."""
_PROBE = 1
_PROBE_SCALES = (2.0, 4.0, 8.0, 16.0)
# What a probe should do at least, in tolerances.
_PROBE_EFFECT = 4.0
_MERGED = "set rollout.engine.lora=merged"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in a folder.

    Attributes:
        number: vLLM's id; no two adapters of an engine share one.
        version: The policy's.
        folder: Where it is.
        tensors: Fingerprints of its matrices, B scaled as vLLM holds it.
        logprobs: The learner's log-probabilities of the proof sequence with this adapter.
    """

    number: int
    version: int
    folder: Path
    tensors: dict[str, Fingerprint]
    logprobs: list[float]


class AdapterStore(WeightStore):
    """The newest adapter of a policy, and the base that it goes on.

    Args:
        policy: The learner's policy, with adapters.
        precision: Precision of the engines.
        place: Where to create the folder; None is shared memory if the base fits.
        tolerance: Largest mean |difference| in nats; None is the default of ``precision``.
        limit: Longest sequence in tokens that engines and model accept, if there is a limit.

    Attributes:
        newest: The adapter that was written last.
        proven: The adapter that an engine was last proven to run.

    Raises:
        ValueError: vLLM cannot run such an adapter beside its base.
    """

    def __init__(
        self,
        policy: Policy,
        precision: Precision,
        place: Path | None,
        tolerance: float | None,
        limit: int | None,
    ) -> None:
        super().__init__(policy, precision, place, tolerance, limit)
        check_adapter(policy)
        self.engine_arguments = {
            "enable_lora": True,
            "max_lora_rank": room_for_rank(policy),
            "max_loras": 1,
            "max_cpu_loras": 1,
            "lora_target_modules": sorted(target_names(policy)),
        }
        self.newest: Adapter | None = None
        self.proven: Adapter | None = None
        self._probe: Adapter | None = None
        self._base: list[float] = []

    @property
    def adapter_number(self) -> int:
        """Number of the adapter that an engine was last proven to run."""
        return 0 if self.proven is None else self.proven.number

    def write(self, policy: Policy, version: int, *, files: bool = True) -> None:
        """Write the policy's adapter; the first time also its base, and a probe.

        An engine may run the adapter before: it holds a copy, and needs its folder no more.
        """
        with self.lock:
            if self._folder is None:
                self._make_folder(policy).write(policy, version, self.dtype, adapters=False)
                with policy.reference():
                    self._base = learner_logprobs(policy, self.sequence)
                if policy.gathered is nullcontext:
                    self._probe = self._written_probe(policy, version)
            before = self.newest
            self.newest = None
            self.newest = self._written(policy, _PROBE + 1 + self.serial, version)
            if before is not None:
                shutil.rmtree(before.folder, ignore_errors=True)
            self._expected, self._version = self.newest.logprobs, version
            self.serial += 1

    def _written(self, policy: Policy, number: int, version: int) -> Adapter:
        folder = self.folder.path.resolve() / "adapters" / str(number)
        tensors = write_adapter(policy, folder, self.dtype)
        logprobs = learner_logprobs(policy, self.sequence)
        return Adapter(number, version, folder, tensors, logprobs)

    def _written_probe(self, policy: Policy, version: int) -> Adapter:
        """An adapter of random numbers large enough to be seen beside rounding.

        Random models hardly ever say anything, whatever an adapter does; they round little, too.
        """
        chosen, effect = 1.0, self._filled_effect(policy, 1.0)
        for scale in _PROBE_SCALES:
            more = self._filled_effect(policy, scale)
            if effect > _PROBE_EFFECT * self.tolerance or more < 1.5 * effect:
                break
            chosen, effect = scale, more
        with torch.no_grad(), filled_adapters(policy, scale=chosen):
            return self._written(policy, _PROBE, version)

    def _filled_effect(self, policy: Policy, scale: float) -> float:
        with torch.no_grad(), filled_adapters(policy, scale=scale):
            return distance(learner_logprobs(policy, self.sequence), self._base)

    def install(self, call: Callable[..., dict[str, Any]], *, fresh: bool) -> int:
        """Give the newest adapter to an engine process; blocks of the old cache that are left.

        Args:
            call: Sends one request to the process: (method, keyword arguments).
            fresh: Whether the process is new, so that it takes the probe first.

        Raises:
            StaleWeightsError: The process does not hold the adapter, or does not compute with it.
            ValueError: vLLM refuses the adapter.
        """
        assert self.newest is not None, "the adapter was not written completely"
        if fresh and self._probe is not None:
            self._give(call, self._probe)
            self._check_probe(self._probe, call("score", tokens=self.sequence)["logprobs"])
        return self._give(call, self.newest)

    def _give(self, call: Callable[..., dict[str, Any]], adapter: Adapter) -> int:
        """Have the process take an adapter, and see that it holds its matrices and no other's."""
        answer = call(
            "adapt",
            number=adapter.number,
            folder=str(adapter.folder),
            names=list(adapter.tensors),
        )
        if answer["missing"]:
            raise self._stale(adapter, f"was sent an adapter without {listed(answer['missing'])}")
        if answer["refused"] is not None:
            raise ValueError(
                f"vLLM refuses the adapters of model.lora: {answer['refused']}; {_MERGED}"
            )
        before = None if self.proven is None else self.proven.tensors
        held = {name: value and (value[0], value[1]) for name, value in answer["held"].items()}
        fault = tensor_fault(adapter.tensors, held, before)
        if fault is None and answer["kept"] != [adapter.number]:
            fault = f"it holds the adapters {answer['kept']} where it should hold one"
        if fault is not None:
            raise self._stale(adapter, f"does not hold the learner's adapter: {fault}")
        cached: int = answer["cached"]
        return cached

    def _check_probe(self, probe: Adapter, logprobs: list[float]) -> None:
        """See that the engine computes with a random adapter as the learner does."""
        apart, effect = distance(logprobs, probe.logprobs), distance(probe.logprobs, self._base)
        # bfloat16 rounds the more, the more a model says.
        limit = effect / 4 if self.precision == "bfloat16" else self.tolerance
        if not apart <= limit:
            raise StaleWeightsError(
                "the engine does not compute with adapters as the learner does: with one of random "
                f"numbers, which moves log-probabilities by {effect:.3g} nats, its mean "
                f"|difference| is {apart:.3g}, above {limit:.3g}; {_MERGED}"
            )

    def check(
        self,
        logprobs: list[float],
        repair: Callable[[], str | None] = lambda: None,
        cached: int = 0,
    ) -> Difference:
        """Compare an engine's log-probabilities of :attr:`sequence` with the learner's.

        Raises:
            StaleWeightsError: They differ too much, or are those of the base or the version before.
        """
        adapter = self.newest
        assert adapter is not None, "the adapter was not written completely"
        others = {"the base without its adapter": self._base}
        if self.proven is not None:
            others[f"version {self.proven.version}"] = self.proven.logprobs
        answers = other_answer(logprobs, adapter.logprobs, others, RESOLUTION[self.precision])
        if answers is not None:
            raise self._stale(adapter, f"answers as {answers}")
        difference = super().check(logprobs, repair, cached)
        self.proven = adapter
        return difference

    def metrics(self) -> dict[str, float]:
        """How much the newest adapter does, against which its log-probabilities say something."""
        effect = distance(self._expected, self._base)
        seen = effect > RESOLUTION[self.precision]
        return {"sync/adapter_effect": effect, "sync/adapter_seen": float(seen)}

    @staticmethod
    def _stale(adapter: Adapter, what: str) -> StaleWeightsError:
        return StaleWeightsError(
            f"after the sync of version {adapter.version} the engine {what}; {_MERGED}, or set "
            "rollout.engine.name=transformers"
        )


def write_adapter(policy: Policy, folder: Path, dtype: torch.dtype) -> dict[str, Fingerprint]:
    """Write a policy's adapter in peft's format, whole or not at all; collective if it is sharded.

    Returns:
        Fingerprints of the matrices as an engine of ``dtype`` should hold them: B times its scale.

    Raises:
        NonFiniteWeightsError: A weight is not finite.
    """
    state = gathered_state(policy, keep=True, copy=False)
    name = _active(policy)
    scales = {
        f"{place}.lora_B.{name}.weight": module.scaling[name]
        for place, module in policy.model.named_modules()
        if hasattr(module, "scaling") and hasattr(module, "lora_B")
    }
    check_writable(first_bad(state.items()), folder)
    tensors = {
        key.replace(f".{name}.", "."): value.to(dtype).contiguous().cpu()
        for key, value in state.items()
    }
    with replacing_folder(folder) as partial:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        (partial / "adapter_config.json").write_text(json.dumps(adapter_config(policy)))
    return {
        key.replace(f".{name}.", "."): fingerprint(value.to(dtype) * scales.get(key, 1.0))
        for key, value in state.items()
    }


def adapter_config(policy: Policy) -> dict[str, Any]:
    """What an engine has to know of a policy's adapter, with peft's names.

    How peft initialised it is left out, because the base is written as it is in memory.
    """
    config = _config(policy)
    names = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias")
    kept = {name: getattr(config, name) for name in names}
    return {
        **kept,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "target_modules": sorted(target_names(policy)),
    }


def check_adapter(policy: Policy) -> None:
    """See that vLLM can run a policy's adapter beside its base, as far as its settings tell.

    Raises:
        ValueError: It cannot.
    """
    for fault in _faults(policy):
        raise ValueError(f"rollout.engine.lora = 'adapter' {fault}")


def _faults(policy: Policy) -> list[str]:
    """Why vLLM cannot run the adapter, each with a remedy."""
    if not policy.has_adapters:
        return [f"sends adapters, but the policy has none; set model.lora, or {_MERGED}"]
    model: Any = policy.model
    active = list(model.active_adapters)
    if len(active) != 1:
        return [f"sends one adapter, but {len(active)} are active: {active}; {_MERGED}"]
    config = _config(policy)
    kind = str(config.peft_type).rpartition(".")[2]
    if kind != "LORA":
        return [f"sends LoRA, but the adapter is of type {kind}; {_MERGED}"]
    faults = []
    if config.modules_to_save:
        faults.append(
            f"sends low-rank matrices, but {sorted(config.modules_to_save)} are trained whole "
            f"(modules_to_save); {_MERGED}"
        )
    for name in ("use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens"):
        if getattr(config, name, None):
            faults.append(f"cannot be used with {name}, which vLLM does not run; {_MERGED}")
    if config.bias != "none":
        faults.append(f"sends no biases, but bias = {config.bias!r} trains them; {_MERGED}")
    largest = _largest_rank(policy)
    if largest > MAX_RANKS[-1]:
        faults.append(
            f"needs a rank of at most {MAX_RANKS[-1]}, but the adapter's is {largest}; lower "
            f"model.lora.rank, or {_MERGED}"
        )
    return faults + _misplaced(policy)


def _misplaced(policy: Policy) -> list[str]:
    """Adapters in places where vLLM has none, or which are not low-rank matrices of a layer."""
    names = [name for name, _ in policy.named_parameters() if "lora_" in name]
    head = {
        place.rpartition(".")[2]
        for place, module in policy.model.named_modules()
        if module
        in (policy.causal_lm.get_output_embeddings(), policy.causal_lm.get_input_embeddings())
    }
    faults = []
    if any(".experts." in name for name in names):
        faults.append(
            "sends adapters of layers, but here the experts of a mixture are adapted; name other "
            f"layers in model.lora.target_modules, or {_MERGED}"
        )
    adapted = sorted(head & target_names(policy))
    if adapted:
        faults.append(
            f"sends adapters of layers, but {', '.join(adapted)} is adapted; name other layers in "
            f"model.lora.target_modules, or {_MERGED}"
        )
    return faults


def room_for_rank(policy: Policy) -> int:
    """The smallest of vLLM's ranks that holds the adapter's."""
    return next(rank for rank in MAX_RANKS if rank >= _largest_rank(policy))


def _largest_rank(policy: Policy) -> int:
    config = _config(policy)
    return max([config.r, *(config.rank_pattern or {}).values()])


def _active(policy: Policy) -> str:
    model: Any = policy.model
    name: str = model.active_adapters[0]
    return name


def _config(policy: Policy) -> Any:  # noqa: ANN401
    model: Any = policy.model
    return model.peft_config[_active(policy)]
