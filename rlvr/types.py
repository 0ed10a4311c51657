"""What flows through the house, and the letters that name tensor shapes.

Shape letters, used as suffixes of tensor names:

====== =====================================================================================
letter axis
====== =====================================================================================
B      sequences (completions) in a batch or micro-batch
T      completion positions, padded on the right to the longest completion of the batch
L      input positions of a micro-batch row (prompt and completion, or a packed row)
R      rows of a micro-batch as the model sees them (B when padded, 1 when packed)
N      completion tokens of a micro-batch, flattened without padding
C      tokens of one chunk of N
V      vocabulary
D      hidden size
G      completions (samples) of one prompt
M      layers with a mixture of experts
E      experts of such a layer
K      experts that a token goes to; completions of a preference (K = 2 of a pair)
====== =====================================================================================
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict

import torch


class Message(TypedDict):
    """One chat turn."""

    role: Literal["system", "user", "assistant"]
    content: str


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt with a reference answer that a verifier can check a response against."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response, as token ids; text is derived from them once and never re-encoded.

    ``logprobs`` are the engine's log-probabilities (nats) of ``token_ids`` under the sampling
    temperature. ``token_ids`` ends with the end token if and only if ``finish_reason`` is "stop"
    and the engine sampled one. ``experts`` are a mixture's choices [P, M, K] in the engine, at all
    positions of prompt and completion but the last, where they are kept.
    """

    problem_id: str
    group_id: str
    sample_index: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int
    experts: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one prompt."""

    problem: Problem
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Columns for one optimizer phase: B completions of G-sized groups, padded to T tokens.

    ``mask_BT`` is 1 on every completion token, the end token included, and 0 on padding; it comes
    from lengths, so a tokenizer whose padding token is its end token changes nothing.
    ``rollout_logprobs_BT`` are the engine's log-probabilities of what it sampled,
    ``old_logprobs_BT`` the learner's under the weights that the update starts from,
    ``reference_logprobs_BT`` those of the frozen reference; each where something needs them. Of the
    same old policy are ``old_entropy_BT``, ``log_kept_mass_BT`` and ``kept_BT`` (its proxy
    distribution's mass, and whether that holds the token) and ``proxy_rows``: for each completion,
    the entries of its proxy distributions as column, token and log-probability, and ``experts``, of
    a mixture of experts: for each completion the choices [P, M, K] at all positions of prompt and
    completion but the last. A critic's
    ``old_values_BT`` belong to the states before the tokens, and ``returns_BT`` are what it is
    trained towards. For an implicit process reward model, ``labels_B`` are outcomes in [0, 1],
    ``prm_reference_BT`` its reference's log-probabilities at temperature 1, ``process_rewards_BT``
    the rewards that it gave each token, and ``token_rewards_BT`` what a critic is to make
    advantages of instead of ``rewards_B``; ``prm_rivals_B2`` are what each completion's score is
    compared with, and its weight, where the reward model learns by comparison.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    completion_ids: tuple[tuple[int, ...], ...]
    group_index_B: torch.Tensor
    rewards_B: torch.Tensor
    advantages_BT: torch.Tensor
    mask_BT: torch.Tensor
    rollout_logprobs_BT: torch.Tensor | None = None
    old_logprobs_BT: torch.Tensor | None = None
    reference_logprobs_BT: torch.Tensor | None = None
    old_entropy_BT: torch.Tensor | None = None
    log_kept_mass_BT: torch.Tensor | None = None
    kept_BT: torch.Tensor | None = None
    old_values_BT: torch.Tensor | None = None
    returns_BT: torch.Tensor | None = None
    labels_B: torch.Tensor | None = None
    prm_reference_BT: torch.Tensor | None = None
    process_rewards_BT: torch.Tensor | None = None
    token_rewards_BT: torch.Tensor | None = None
    prm_rivals_B2: torch.Tensor | None = None
    proxy_rows: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], ...] | None = None
    experts: tuple[torch.Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def columns(self) -> dict[str, torch.Tensor]:
        """The tensor columns that are there, by name."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
