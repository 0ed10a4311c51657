"""Log-ratios of many responses: the reward model and its reference over them, without gradient.

Log-probabilities are those of ``rlvr/policy/responses.py``. A vLLM engine may take them instead (as
those of a prompt). With both in float32 they are the learner's up to rounding; what that is on real
models is in docs/methods/implicit_prm.md.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from rlvr.reward_models.implicit import token_rewards

Ids = Sequence[Sequence[int]]
Progress = Callable[[int, int], None]


class ScoringEngine(Protocol):
    """An engine that has weights and takes the log-probabilities of given tokens."""

    def logprobs(self, sequences: Sequence[Sequence[int]], progress: Progress) -> list[list[float]]:
        """Of every token but the first, by sequence, in nats."""


def engine_logprobs(
    engine: ScoringEngine,
    prompts: Ids,
    responses: Ids,
    *,
    progress: Progress = lambda done, total: None,
) -> list[torch.Tensor]:
    """What :func:`rlvr.policy.response_logprobs` gives, from an engine that has weights.

    Raises:
        ValueError: A prompt with its response does not fit, or the engine died too often.
    """
    sequences = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    found = engine.logprobs(sequences, progress)
    return [
        torch.tensor(values[len(values) - len(response) :])
        for values, response in zip(found, responses, strict=True)
    ]


def ratios(
    own: Sequence[torch.Tensor], reference: Sequence[torch.Tensor] | None
) -> list[torch.Tensor]:
    """Token rewards [T_i] at beta = 1 from log-probabilities; None leaves the reference out."""
    theirs = reference if reference is not None else [None] * len(own)
    return [
        token_rewards(mine, other, torch.ones_like(mine))
        for mine, other in zip(own, theirs, strict=True)
    ]
