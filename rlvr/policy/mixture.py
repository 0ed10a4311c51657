"""How large a model is, and how much of it a token uses.

    active    = total - (1 - K/E) x parameters of experts      parameters that a token goes through
    sparsity  = 1 - K/E                                        share of experts that it does not
    forward FLOPs a token ~ 2 x active                         matrix products alone, no attention

Embeddings count in both. K of E experts are active in every layer that has a mixture; experts that
all tokens share are no part of E. A dense model has sparsity 0 and is all active. The counts are
those that Nakamura et al. (arXiv:2508.18672) relate to memorisation (total) and reasoning (active).
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from rlvr.policy.model import transformer_of
from rlvr.policy.routers import router_modules

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token")


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters of a causal LM without adapters; ``experts`` is 0 for a dense model."""

    total: int
    active: int
    sparse_layers: int = 0
    experts: int = 0
    experts_per_token: int = 0

    @property
    def sparsity(self) -> float:
        """Share of the experts of a layer that a token does not go to."""
        return 1 - self.experts_per_token / self.experts if self.experts else 0.0

    @property
    def card(self) -> dict[str, float | int]:
        """What a run's record says."""
        found: dict[str, float | int] = {"parameters": self.total}
        if self.experts:
            found |= {
                "active_parameters": self.active,
                "sparse_layers": self.sparse_layers,
                "experts": self.experts,
                "experts_per_token": self.experts_per_token,
                "sparsity": round(self.sparsity, 6),
            }
        return found | {"forward_flops_per_token": 2 * self.active}

    @property
    def text(self) -> str:
        """For people."""
        if not self.experts:
            return f"{self.total:,} parameters"
        return (
            f"{self.total:,} parameters, {self.active:,} active a token "
            f"({self.experts_per_token} of {self.experts} experts in {self.sparse_layers} layers, "
            f"sparsity {self.sparsity:.3g})"
        )


def has_experts(causal_lm: Any) -> bool:  # noqa: ANN401
    """Whether a transformers causal LM sends tokens to experts, of a known kind or not."""
    config = causal_lm.config.get_text_config()
    return any(getattr(config, name, None) for name in _EXPERTS)


def model_size(causal_lm: Any) -> ModelSize:  # noqa: ANN401
    """Count a transformers causal LM, on any device, whole or sharded."""
    own = {n: p for n, p in causal_lm.named_parameters() if ".lora_" not in n}
    total = sum(_numel(parameter) for parameter in own.values())
    layers = len(router_modules(transformer_of(causal_lm)))
    config = causal_lm.config.get_text_config()
    experts, chosen = (
        next((int(v) for name in names if (v := getattr(config, name, None))), 0)
        for names in (_EXPERTS, _CHOSEN)
    )
    if not (layers and experts and chosen):
        return ModelSize(total, total)
    within = sum(_numel(p) for p in own.values() if _is_of_experts(p, experts))
    active = total - round(within * (1 - chosen / experts))
    return ModelSize(total, active, layers, experts, chosen)


def _is_of_experts(parameter: nn.Parameter, experts: int) -> bool:
    """Weights of all experts of a layer are one tensor, [E, ., .]."""
    shape = getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed's, where it is sharded
    return len(shape) == 3 and shape[0] == experts


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
