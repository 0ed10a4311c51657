"""The routers of a mixture-of-experts model: what they chose, and having them choose it again.

A router gives a position logits over the E experts of its layer; the position goes to the K most
probable ones, each weighted by its probability (over the sum of the K's in some families). Which
experts these are is a step function of the weights: a small update, or another rounding in the
engine that sampled, sends some positions elsewhere, and their log-probabilities jump. Replaying a
routing makes the choice a constant, while weights and gradients of the chosen experts stay those of
the current router: Zheng et al., GSPO, arXiv:2507.18071, section 5.3, replay the old policy's, and
Ma et al., arXiv:2510.11370, the engine's.

Routers are read by hooks on their modules, so the model's own numbers are untouched. That needs
modules which return (logits, weights, indices) with softmax weights, as transformers' Mixtral,
Qwen2-MoE, Qwen3-MoE and OLMoE do; others are refused, by trial.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from rlvr.policy.batching import ModelInputs

ANY = -1
"""In a routing that is replayed: the position is free to choose."""


class Routing(NamedTuple):
    """What the routers did at N positions: logits (with gradient), and their own choices.

    ``experts_NMK`` are what the router prefers, also where other experts were replayed.
    """

    logits_NME: torch.Tensor
    experts_NMK: torch.Tensor


class RoutingRequest(NamedTuple):
    """Ask a forward pass for its routing.

    ``replay_PMK`` holds the experts of every input position (flattened, padding included), ``ANY``
    where the router is free; None leaves all of them free. ``everywhere`` reads all input positions
    instead of those that predict completion tokens.
    """

    replay_PMK: torch.Tensor | None = None
    everywhere: bool = False


class Routers:
    """Hooks on a model's routers; they do nothing outside :meth:`begin` and :meth:`read`.

    Args:
        transformer: The model without its output head.
        device: Where it is.

    Raises:
        ValueError: It has no routers, or they work in a way that is not known here.
    """

    def __init__(self, transformer: nn.Module, device: torch.device) -> None:
        self.modules = router_modules(transformer)
        if not self.modules:
            raise ValueError(
                "the model has no mixture-of-experts layers whose routers can be read; leave out "
                "the settings of routers"
            )
        self._replay_PMK: torch.Tensor | None = None
        self._running = False
        self._seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.normalised = _weights_are_normalised(self.modules[0], device)
        self.experts, self.chosen = _sizes(self.modules[0], device)
        for index, module in enumerate(self.modules):
            module.register_forward_hook(_Hook(self, index))

    def begin(self, request: RoutingRequest | None) -> None:
        """A forward pass of the policy begins; None: nothing is read and nothing replayed."""
        self._running = request is not None
        self._replay_PMK = None if request is None else request.replay_PMK
        self._seen = {}

    def read(self, positions_N: torch.Tensor | None) -> Routing:
        """End the pass: its routing at the given input positions, or at all of them."""
        self._running = False
        layers = [self._seen[index] for index in range(len(self.modules))]
        self._seen = {}
        if not torch.is_grad_enabled():
            self._replay_PMK = None  # with gradients a recomputing backward pass needs it again
        logits = [logits_PE for logits_PE, _ in layers]
        chosen = [experts_PK for _, experts_PK in layers]
        if positions_N is not None:
            logits = [logits_PE[positions_N] for logits_PE in logits]
            chosen = [experts_PK[positions_N] for experts_PK in chosen]
        return Routing(torch.stack(logits, 1), torch.stack(chosen, 1))

    def route(
        self, layer: int, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """What a router's module returns instead of ``output``; None leaves it."""
        logits_PE, weights_PK, own_PK = output
        if self._running:
            self._seen[layer] = (logits_PE, own_PK)
        elif not torch.is_grad_enabled():
            return None  # somebody else's pass, such as an engine's
        if self._replay_PMK is None:
            return None
        replay_PK = self._replay_PMK[:, layer].to(own_PK)
        experts_PK = torch.where(replay_PK == ANY, own_PK, replay_PK)
        again_PK = expert_weights(logits_PE, experts_PK, normalised=self.normalised)
        return logits_PE, again_PK.to(weights_PK.dtype), experts_PK


class _Hook:
    """A router module's forward hook; an object, so that a copy of a policy has its own."""

    def __init__(self, routers: Routers, layer: int) -> None:
        self.routers, self.layer = routers, layer

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:  # noqa: ANN401
        return self.routers.route(self.layer, output)


def router_modules(transformer: nn.Module) -> list[nn.Module]:
    """The routers of a transformers model by layer; none where it has none."""
    recorded = getattr(transformer, "_can_record_outputs", None) or {}
    kind = recorded.get("router_logits")
    kind = getattr(kind, "target_class", kind)
    if not isinstance(kind, type):
        return []
    return [module for module in transformer.modules() if isinstance(module, kind)]


def expert_weights(
    logits_PE: torch.Tensor, experts_PK: torch.Tensor, *, normalised: bool
) -> torch.Tensor:
    """Weights [P, K] of given experts: their probabilities, over their sum where ``normalised``."""
    p_PE = logits_PE.to(torch.promote_types(logits_PE.dtype, torch.float32)).softmax(-1)
    weights_PK = p_PE.gather(-1, experts_PK)
    return weights_PK / weights_PK.sum(-1, keepdim=True) if normalised else weights_PK


def sequence_positions(inputs: ModelInputs, prompt_lengths: Sequence[int]) -> list[torch.Tensor]:
    """Flattened input positions of each row's prompt and completion, its last token left out.

    The last token predicts nothing, so nothing depends on where it goes. Works for both layouts:
    packed rows name their shared prompt's positions each.

    Args:
        inputs: A micro-batch.
        prompt_lengths: Of its rows, in their order.
    """
    found = []
    for slot, length in enumerate(prompt_lengths):
        own_T = inputs.predict_N[inputs.row_N == slot]
        if not len(own_T):  # an empty completion is not looked at
            found.append(own_T)
            continue
        prompt_T = own_T[0] + torch.arange(1 - length, 1, device=own_T.device)
        found.append(torch.cat([prompt_T, own_T[1:]]))
    return found


def replayed(
    inputs: ModelInputs,
    prompt_lengths: Sequence[int],
    experts: Sequence[torch.Tensor],
) -> torch.Tensor:
    """The routing [P, M, K] of a micro-batch from those of its rows; ``ANY`` elsewhere.

    Args:
        inputs: The micro-batch.
        prompt_lengths: Of its rows.
        experts: Choices [prompt + completion - 1, M, K] of its rows.
    """
    count, device = inputs.num_positions, inputs.row_N.device
    replay_PMK = torch.full((count, *experts[0].shape[1:]), ANY, dtype=torch.long, device=device)
    for where, chosen in zip(sequence_positions(inputs, prompt_lengths), experts, strict=True):
        replay_PMK[where] = chosen.to(replay_PMK)
    return replay_PMK


def _sizes(router: nn.Module, device: torch.device) -> tuple[int, int]:
    """E and K of a router, by trial."""
    logits_PE, _, experts_PK = _trial(router, device)
    return logits_PE.shape[-1], experts_PK.shape[-1]


def _weights_are_normalised(router: nn.Module, device: torch.device) -> bool:
    """Whether weights are probabilities over the sum of the chosen ones, by trial.

    Raises:
        ValueError: They are neither that nor plain probabilities.
    """
    output = _trial(router, device)
    if isinstance(output, tuple) and len(output) == 3:
        logits_PE, weights_PK, experts_PK = output
        if experts_PK.shape == weights_PK.shape and not experts_PK.is_floating_point():
            for normalised in (True, False):
                again = expert_weights(logits_PE, experts_PK, normalised=normalised)
                if torch.allclose(again, weights_PK.to(again), rtol=1e-3, atol=1e-5):
                    return normalised
    raise ValueError(
        f"the routers of this model ({type(router).__name__}) do not weigh experts by a softmax "
        "over their logits, so their losses and replay are not known here; leave out router"
    )


def _trial(router: nn.Module, device: torch.device) -> Any:  # noqa: ANN401
    weight = next(router.parameters())
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, weight.shape[-1], generator=generator).to(device, weight.dtype)
    with torch.no_grad():
        return router(hidden)
