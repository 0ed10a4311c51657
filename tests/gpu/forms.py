"""Float64 on the CPU, written down apart: what results of the device are held against."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]


def worst(found: Tensors, wanted: Tensors) -> float:
    """The largest relative error, ||found - wanted|| / ||wanted||, of tensors by name."""
    assert found.keys() == wanted.keys(), (found.keys(), wanted.keys())
    return max(relative(found[name], wanted[name]) for name in wanted)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """||found - wanted|| / ||wanted||; NaN counts as infinite."""
    difference = found.detach().double().cpu() - wanted.detach().double().cpu()
    error = float(difference.norm() / wanted.detach().double().norm().clamp_min(1e-12))
    return error if error == error else float("inf")


def head_statistics(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    temperature: float,
    upstream: tuple[torch.Tensor, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Log-probability, entropy and their gradients, from all logits at once.

    Args:
        hidden_ND: Hidden states, rounded as the device has them.
        weight_VD: The head, likewise.
        bias_V: Its bias.
        targets_N: Token ids.
        temperature: Divides the logits.
        upstream: Weights [N] of log-probabilities and entropies in the loss.
    """
    leaves = {"hidden": hidden_ND, "weight": weight_VD, "bias": bias_V}
    own = {
        name: leaf.detach().double().requires_grad_()
        for name, leaf in leaves.items()
        if leaf is not None
    }
    logits_NV = own["hidden"] @ own["weight"].T
    if "bias" in own:
        logits_NV = logits_NV + own["bias"]
    logp_NV = torch.log_softmax(logits_NV / temperature, -1)
    logprobs_N = logp_NV.gather(-1, targets_N[:, None])[:, 0]
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    loss = upstream[0].double() @ logprobs_N + upstream[1].double() @ entropy_N
    gradients = torch.autograd.grad(loss, list(own.values()))
    return {"logprobs": logprobs_N, "entropy": entropy_N} | {
        f"gradient of {name}": gradient for name, gradient in zip(own, gradients, strict=True)
    }


def adamw_moves(
    weight: torch.Tensor, gradients: Iterable[torch.Tensor], clip: float, group: Mapping[str, Any]
) -> torch.Tensor:
    """Weights after AdamW's steps with these gradients (Loshchilov and Hutter, arXiv:1711.05101).

    Args:
        weight: Before the first.
        gradients: Of each step.
        clip: Factor of the gradients.
        group: lr, betas, eps, weight_decay.
    """
    w, (b1, b2) = weight.double(), group["betas"]
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, gradient in enumerate(gradients, 1):
        g = gradient.double() * clip
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        ratio = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + group["eps"])
        w = w - group["lr"] * (ratio + group["weight_decay"] * w)
    return w


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of all weights that have one, together."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return {"gradients": torch.cat([gradient.flatten().cpu() for gradient in gradients])}
