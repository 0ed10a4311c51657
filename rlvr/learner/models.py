"""The models that one engine trains together: the policy, and what is trained beside it.

A critic or a reward model that learns during the run stands beside the policy in one module, so
that one engine shards all of them and one optimizer step moves all of them; each keeps its own
rate, decay and clip.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from rlvr.learner.settings import OptimizerSettings
from rlvr.policy import ModelInputs, Policy, TokenStats

POLICY = "policy"


class Outputs(NamedTuple):
    """The policy's statistics [N], and the output of each model beside it by name."""

    stats: TokenStats
    beside: dict[str, torch.Tensor]


class Models(nn.Module):
    """The policy and the models trained beside it.

    Args:
        policy: The model that is sampled from.
        beside: Other models by name; each is called with the policy's inputs, and gives N values.
    """

    def __init__(self, policy: Policy, beside: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.beside = nn.ModuleDict(dict(beside or {}))

    def forward(
        self,
        inputs: ModelInputs,
        *,
        beside: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> Outputs:
        """Run the policy on a micro-batch, and with ``beside`` the other models too.

        ``options`` are the policy's (:meth:`rlvr.policy.Policy.forward`).
        """
        stats = self.policy(inputs, **options)
        others = {name: model(inputs) for name, model in self.beside.items()} if beside else {}
        return Outputs(stats, others)

    def trained(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Model, name in its checkpoint, and parameter, of everything that is trained.

        The policy's names are its own, so that a checkpoint is the same with or without a critic.
        """
        members: list[tuple[str, nn.Module]] = [(POLICY, self.policy), *self.beside.items()]
        for model, module in members:
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    yield model, name if model == POLICY else f"{model}:{name}", parameter


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
        }
        groups.setdefault((model, matrix), group)["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter requires a gradient; there is nothing to train")
    return sorted(groups.values(), key=lambda group: group["model"] != POLICY)
