"""Parameters and optimizer of one process: backward, clip, step.

Weights, gradients and AdamW's moments are float32 whatever the compute precision. A step whose
gradient is not finite is skipped and counted; neither weights nor moments see it.
"""

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

import torch

from rlvr.learner.settings import LearnerSettings
from rlvr.policy import Policy


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimizer step did: the gradient norm before clipping, and whether it was skipped."""

    grad_norm: float
    skipped: bool


class LocalEngine:
    """A policy and its AdamW in this process.

    Args:
        policy: Its parameters with ``requires_grad`` are trained.
        settings: Rates and clipping.
    """

    def __init__(self, policy: Policy, settings: LearnerSettings) -> None:
        self.policy = policy
        self.settings = settings
        if policy.device.type == "cpu":
            give_back_freed_memory()
        self.named = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        matrices = [p for p in self.named.values() if p.dim() >= 2]
        vectors = [p for p in self.named.values() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.epsilon,
            fused=True,
        )

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of ``loss`` to what the step has gathered."""
        loss.backward()

    def step(self, lr: float) -> StepResult:
        """Clip, update with learning rate ``lr``, and clear the gradients."""
        parameters = list(self.named.values())
        limit = self.settings.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit or float("inf")))
        finite = norm == norm and norm != float("inf")
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(norm, skipped=not finite)

    def state(self) -> dict[str, torch.Tensor]:
        """AdamW's moments and step counters, by parameter name."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = torch.as_tensor(value).detach()
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what :meth:`state` gave.

        Raises:
            ValueError: The state belongs to other parameters.
        """
        names = {key.partition("/")[2] for key in tensors}
        unknown = names - set(self.named)
        if unknown:
            raise ValueError(
                f"the checkpoint's optimizer state is for parameters this model does not have "
                f"({min(unknown)!r} and {len(unknown) - 1} more); resume with the recipe it was "
                "made with"
            )
        for name, parameter in self.named.items():
            state: dict[str, Any] = {
                key: tensors[f"{key}/{name}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in tensors
            }
            if state:
                step = state["step"]
                moved = {key: value.to(parameter.device) for key, value in state.items()}
                moved["step"] = step.to(parameter.device) if parameter.is_cuda else step
                self.optimizer.state[parameter] = moved


def give_back_freed_memory() -> bool:
    """Have glibc return large freed blocks to the system at once; whether it could be told to.

    By default it starts to keep blocks of up to 32 MiB in its heap once one has been freed.
    Gradients and moments then land between the holes that activations leave, and the holes stay: a
    third of an update's peak (docs/benchmarks/update_memory.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, such as musl
        return False
    m_mmap_threshold = -3
    return bool(mallopt(m_mmap_threshold, 4 * 2**20))
