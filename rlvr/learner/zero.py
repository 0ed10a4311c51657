"""DeepSpeed's ZeRO as a parameter store: stages 1, 2 and 3, with offload.

    stage 1   AdamW's moments and float32 master weights are sharded over ranks
    stage 2   and gradients
    stage 3   and the weights: a layer's are gathered when it runs

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
(arXiv:1910.02054). What is ours and why:

- DeepSpeed divides gradients by the number of ranks, so losses are multiplied by it: gradients are
  sums here. (Exact where the number is a power of two; elsewhere one rounding more.)
- Weights stay float32 in DeepSpeed's eyes, and bfloat16 is autocast inside the policy, so that the
  numbers are those of one process. It costs memory and traffic: 4 bytes a weight instead of 2.
- Each model has its own clip, which DeepSpeed cannot do: its clipping is off, its norms are read
  before the step, and our AdamW applies the factors.
- Optimizer state is read and written as slices of named parameters, so a checkpoint holds nothing
  pickled and can be taken up by another number of ranks or another store.

This file knows names inside DeepSpeed 0.19; tests/learner/test_parameter_stores.py holds it to
them.
"""

import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import torch

from rlvr.learner.models import Models, Outputs, parameter_groups
from rlvr.learner.moments import MOMENTS, saved_moment
from rlvr.learner.optimizer import AdamW
from rlvr.learner.parameter_store import (
    Fraction,
    StepResult,
    check_names,
    give_back_freed_memory,
    prepare_step,
)
from rlvr.learner.settings import OptimizerSettings
from rlvr.policy.batching import ModelInputs
from rlvr.policy.finite import largest
from rlvr.policy.held import hold_in_float32
from rlvr.policy.model import Policy
from rlvr.ranks import Ranks


@dataclass(frozen=True, slots=True)
class _Slice:
    """The part of one parameter, flattened, that this rank's optimizer moves.

    It is elements ``start`` to ``start + count`` of the parameter, and the ``count`` elements from
    ``offset`` on of ``flat``, which is what the optimizer calls its parameter.
    """

    flat: torch.Tensor
    offset: int
    start: int
    count: int


class ZeroStore:
    """Models and their AdamW sharded over ranks.

    Args:
        models: With equal weights on every rank; DeepSpeed takes them apart.
        settings: Rates and clipping by model.
        ranks: The processes.
        zero: DeepSpeed's ``zero_optimization`` section.
    """

    equal_micro_batches: bool = True
    retries = False  # other ranks may be waiting inside a backward pass that this one has left

    def __init__(
        self,
        models: Models,
        settings: Mapping[str, OptimizerSettings],
        ranks: Ranks,
        zero: Mapping[str, Any],
    ) -> None:
        import deepspeed

        # Of our own optimizer being "untested", and of names that DeepSpeed itself calls.
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", ".*is deprecated. Please use", FutureWarning, "torch")
        self.models, self.settings, self.ranks = models, settings, ranks
        if models.policy.device.type == "cpu":
            give_back_freed_memory()
        hold_in_float32(models)
        if any(own.optimizer_states != "float32" for own in settings.values()):
            raise ValueError(
                "DeepSpeed shards float32 alone here; set optimizer_states of the learner and of "
                "what is trained with it to float32, or launch without DeepSpeed"
            )
        self.named = {name: parameter for _, name, parameter in models.trained()}
        self.sizes = models.trained_sizes()  # before DeepSpeed takes the weights apart
        self.stage = int(zero["stage"])
        self.optimizer = AdamW(parameter_groups(models, settings), models.policy.compute_dtype)
        config = deepspeed_config(zero, ranks.count)
        if self.stage == 3:
            _shard(models, config)
            models.policy.keeps_copies = False
        self.engine, *_ = deepspeed.initialize(
            model=models, optimizer=self.optimizer, config=config
        )
        self._make_moments()
        if self.stage == 3:
            models.policy.gathered = deepspeed.zero.GatheredParameters

    @property
    def zero(self) -> Any:  # noqa: ANN401
        """DeepSpeed's wrapper of the optimizer."""
        return self.engine.optimizer

    def begin(self, fraction: Fraction, moving: Collection[str] | None = None) -> None:
        """Nothing to know beforehand."""

    def forward(self, inputs: ModelInputs, **options: Any) -> Outputs:  # noqa: ANN401
        """Run the models on a micro-batch."""
        outputs: Outputs = self.engine(inputs, **options)
        return outputs

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        """Add the gradient of ``loss``; ``last`` is the step's last micro-batch."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.ranks.count)

    def end_unit(self) -> None:
        """Nothing: gradients are added one after the other."""

    def clear(self) -> None:
        """Forget what the step has gathered."""
        self.zero.zero_grad(set_to_none=True)

    def step(self, fraction: Fraction, moving: Collection[str] | None = None) -> StepResult:
        """Clip, update at ``fraction`` of every model's peak rate, and clear the gradients."""
        norms = self._norms()
        finite = prepare_step(self.optimizer, self.settings, norms, fraction, moving)
        bad_gradient = None if finite else self._first_bad(self._gradients())
        self.engine.step()  # finds the same norms, and skips where they are not finite
        assert self.zero.overflow is not finite, "DeepSpeed and the learner disagree on a step"
        moved = {m: self.ranks.sum(own) for m, own in self.optimizer.take_changed().items()}
        return StepResult.of(norms, bad_gradient, moved, self.sizes, self._first_bad_weight)

    def _first_bad(self, own: Iterable[tuple[str, torch.Tensor]]) -> str:
        """The first tensor, of all ranks' parts, with the largest value; collective."""
        found = self.ranks.gather(largest(own))
        size = max(size for _, size in found)
        names = [name for name, own in found if own == size]
        return next((name for name in self.named if name in names), "an offloaded tensor")

    def _gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's parts by name; offloaded ones are in nobody's reach before the step."""
        zero = self.zero
        names = {id(parameter): name for name, parameter in self.named.items()}
        groups = zero.fp16_groups if self.stage == 3 else zero.params_in_partition
        for index, parameters in enumerate(groups):
            gradients = zero.averaged_gradients.get(index) or ()
            # Behind the last one there may be padding.
            for parameter, gradient in zip(parameters, gradients, strict=False):
                if gradient is not None:
                    yield names[id(parameter)], gradient

    def _first_bad_weight(self) -> str:
        own = (
            (name, part.flat.detach().view(-1).narrow(0, part.offset, part.count))
            for name, part in self._slices()
        )
        return self._first_bad(own)

    def _norms(self) -> dict[str, float]:
        """Norm of each model's whole gradient; DeepSpeed says -1 where one is not finite."""
        squares: dict[str, float] = {}
        for group, norm in self._group_norms():
            model = self.optimizer.param_groups[group]["model"]
            square = norm**2 if norm >= 0 else nan
            squares[model] = squares.get(model, 0.0) + square
        return {model: square**0.5 for model, square in squares.items()}

    def _group_norms(self) -> Iterator[tuple[int, float]]:
        zero = self.zero
        if self.stage == 3:
            for index, norm in enumerate(zero._get_norm_groups()):
                yield zero.sub_group_to_group_id[index], float(norm)
            return
        for group, parameters in enumerate(zero.params_in_partition):
            if zero.cpu_offload:
                yield group, float(zero.complete_grad_norm_calculation_for_cpu_offload(parameters))
            else:
                gradients = zero.averaged_gradients[group]
                yield group, float(zero.get_grad_norm_direct(gradients, parameters))

    def state(self) -> dict[str, torch.Tensor]:
        """This rank's slices of the moments, with their ``start`` in the flattened parameter."""
        tensors: dict[str, torch.Tensor] = {}
        for name, part in self._slices():
            state = self.optimizer.state[part.flat]
            for key in MOMENTS:
                tensors[f"{key}/{name}"] = state[key].narrow(0, part.offset, part.count).detach()
            tensors[f"step/{name}"] = state["step"].detach().clone()  # of many, one counter
            tensors[f"start/{name}"] = torch.tensor(part.start)
        return tensors

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what any store gave, whole parameters by name.

        Raises:
            ValueError: The state belongs to other parameters.
        """
        check_names(tensors, self.named)
        for name, part in self._slices():
            if f"step/{name}" not in tensors:
                continue
            state = self.optimizer.state[part.flat]
            state["step"].copy_(tensors[f"step/{name}"])
            for key in MOMENTS:
                whole = saved_moment(tensors, key, name).flatten()
                here = whole[part.start : part.start + part.count]
                state[key].narrow(0, part.offset, part.count).copy_(here)

    def _make_moments(self) -> None:
        """Make all moments now, so that memory is known from the start and slices exist."""
        for flat in self._flats():
            self.optimizer.moments(flat)

    def _flats(self) -> list[torch.Tensor]:
        """What the optimizer calls its parameters: this rank's shards, laid end to end."""
        zero = self.zero
        flats: list[torch.Tensor] = (
            zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else zero.single_partition_of_fp32_groups
        )
        return flats

    def _slices(self) -> Iterator[tuple[str, _Slice]]:
        for name, parameter in self.named.items():
            part = self._shard(parameter) if self.stage == 3 else self._fragment(parameter)
            if part is not None and part.count > 0:
                yield name, part

    def _shard(self, parameter: Any) -> _Slice:  # noqa: ANN401
        """Stage 3: each rank has an equal part of every parameter, the last one padded."""
        zero = self.zero
        group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
        start = self.ranks.rank * size
        count = min(size, parameter.ds_numel - start)
        return _Slice(zero.fp32_partitioned_groups_flat[group], offset, start, count)

    def _fragment(self, parameter: Any) -> _Slice | None:  # noqa: ANN401
        """Stages 1 and 2: each rank has an equal part of all parameters laid end to end."""
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        here, held = mapping.lp_fragment_address, mapping.hp_fragment_address
        flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
        return _Slice(flat, held.start, here.start, held.numel)


def shard_frozen(policy: Policy, ranks: Ranks, zero: Mapping[str, Any]) -> None:
    """Divide a model that is not trained over ranks, as ZeRO 3 does those that are; collective.

    Weights that were rounded to fewer bits are moved to the device whole: DeepSpeed would hold them
    in float32.

    Args:
        policy: Nothing of it requires a gradient; every rank must run it equally often.
        ranks: The processes.
        zero: DeepSpeed's ``zero_optimization`` section, of stage 3.
    """
    import deepspeed

    try:
        hold_in_float32(policy)
    except ValueError:
        policy.to(deepspeed.get_accelerator().current_device_name())
        return
    config = deepspeed_config(zero, ranks.count)
    # There is no optimizer whose state could go elsewhere.
    config["zero_optimization"].pop("offload_optimizer", None)
    _shard(policy, config)
    deepspeed.initialize(model=policy, config=config)
    policy.keeps_copies = False
    policy.gathered = deepspeed.zero.GatheredParameters


def _shard(models: torch.nn.Module, config: Mapping[str, Any]) -> None:
    """Move weights to the device one by one, each sharded before the next one comes.

    DeepSpeed would move the whole model there first, which may not fit.
    """
    import deepspeed

    offload = config["zero_optimization"].get("offload_param") or {}
    deepspeed.zero.Init(
        module=models,
        config_dict_or_path=dict(config),
        dtype=torch.float32,
        mem_efficient_linear=False,  # which would replace torch's linear function everywhere
        remote_device=offload.get("device"),
        pin_memory=bool(offload.get("pin_memory", False)),
    )
    device = deepspeed.get_accelerator().current_device_name()
    for module in models.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def deepspeed_config(zero: Mapping[str, Any], ranks: int) -> dict[str, Any]:
    """What DeepSpeed is told; only its ``zero_optimization`` section comes from the launch."""
    return {
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the boundary is set by hand for every micro-batch
        "gradient_clipping": 0.0,
        "zero_optimization": dict(zero),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
