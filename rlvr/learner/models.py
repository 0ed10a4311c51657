"""The models that one parameter store trains together: the policy and auxiliary ones.

A critic or a reward model that learns during the run stands in one module with the policy, so that
one store shards all of them and one optimizer step moves all of them; each keeps its own rate,
decay and clip.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from rlvr.learner.settings import POLICY, OptimizerSettings
from rlvr.policy.batching import ModelInputs, padded_inputs
from rlvr.policy.model import Policy
from rlvr.policy.token_stats import TokenStats


class Outputs(NamedTuple):
    """The policy's statistics [N], and the output of each auxiliary model by name.

    Statistics of a policy that did not run are those of nothing. ``idle`` sums what models gave
    that ran for the store's sake alone; a loss takes it times 0.
    """

    stats: TokenStats
    auxiliary: dict[str, torch.Tensor]
    idle: torch.Tensor | None = None

    def nothing(self) -> torch.Tensor:
        """A loss of 0 that reaches everything that was to run."""
        values = [self.stats.logprobs_N, *self.auxiliary.values()]
        return 0.0 * torch.stack([values_N.sum() for values_N in values]).sum()


class Models(nn.Module):
    """The policy and the models that are trained with it.

    Args:
        policy: The model that is sampled from.
        auxiliary: Other models by name; each is called with the policy's inputs, and gives N
            values.
    """

    def __init__(self, policy: Policy, auxiliary: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.auxiliary = nn.ModuleDict(dict(auxiliary or {}))

    def forward(
        self,
        inputs: ModelInputs,
        *,
        run: Collection[str] = (POLICY,),
        **options: Any,  # noqa: ANN401
    ) -> Outputs:
        """Run models on a micro-batch.

        Args:
            inputs: The micro-batch.
            run: Names of the models to run. Where gradients are taken the others run on two tokens:
                a store that shards parameters waits for a gradient of every one.
            options: The policy's (:meth:`rlvr.policy.Policy.forward`).
        """
        names, everything = set(run), {POLICY, *self.auxiliary}
        stats = self.policy(inputs, **options) if POLICY in names else _no_stats(inputs)
        others = {name: model(inputs) for name, model in self.auxiliary.items() if name in names}
        idle = None
        if names != everything and torch.is_grad_enabled():
            idle = self._idle(everything - names, inputs.input_ids_RL.device)
        return Outputs(stats, others, idle)

    def _idle(self, names: Collection[str], device: torch.device) -> torch.Tensor:
        """The sum of what the named models give for two tokens."""
        inputs = padded_inputs(((0,),), ((0,),), (0,)).to(device)
        sums = [self.auxiliary[name](inputs).sum() for name in names if name != POLICY]
        if POLICY in names:
            sums.append(self.policy(inputs).logprobs_N.sum())
        return torch.stack(sums).sum()

    def trained(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Model, name in its checkpoint, and parameter, of everything that is trained.

        The policy's names are its own, so that a checkpoint is the same with or without a critic.
        """
        members: list[tuple[str, nn.Module]] = [(POLICY, self.policy), *self.auxiliary.items()]
        for model, module in members:
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    yield model, name if model == POLICY else f"{model}:{name}", parameter

    def trained_sizes(self) -> dict[str, int]:
        """How many weights of each model are trained."""
        sizes: dict[str, int] = {}
        for model, _, parameter in self.trained():
            sizes[model] = sizes.get(model, 0) + parameter.numel()
        return sizes


class LogprobModel(nn.Module):
    """A language model that gives the log-probabilities of completion tokens, at temperature 1.

    Args:
        policy: The language model; hand over one of its own.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, inputs: ModelInputs) -> torch.Tensor:
        """Log-probabilities [N] of ``inputs.targets_N``, in at least float32."""
        logprobs_N: torch.Tensor = self.policy(inputs).logprobs_N
        return logprobs_N


def _no_stats(inputs: ModelInputs) -> TokenStats:
    return TokenStats(torch.zeros(0, device=inputs.input_ids_RL.device))


def parameter_groups(
    models: Models, settings: Mapping[str, OptimizerSettings]
) -> list[dict[str, Any]]:
    """The optimizer's groups: matrices and vectors of each model, the empty ones left out.

    Raises:
        ValueError: A model has no settings, or nothing is trained at all.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for model, _, parameter in models.trained():
        if model not in settings:
            raise ValueError(f"model {model!r} is trained but has no optimizer settings")
        rates, matrix = settings[model], parameter.dim() >= 2
        group = {
            "params": [],
            "model": model,
            "lr": rates.lr,
            "peak_lr": rates.lr,
            "betas": rates.betas,
            "eps": rates.epsilon,
            "weight_decay": rates.weight_decay if matrix else 0.0,
            "states": rates.optimizer_states,
        }
        groups.setdefault((model, matrix), group)["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter requires a gradient; there is nothing to train")
    return sorted(groups.values(), key=lambda group: group["model"] != POLICY)
