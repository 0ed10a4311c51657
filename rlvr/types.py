"""What flows through the house, and the letters that name tensor shapes.

Shape letters, used as suffixes of tensor names:

    B   sequences (completions) in a batch or micro-batch
    T   completion positions, padded on the right to the longest completion of the batch
    L   input positions of a micro-batch row (prompt and completion, or a packed row)
    R   rows of a micro-batch as the model sees them (B when padded, 1 when packed)
    N   completion tokens of a micro-batch, flattened without padding
    C   tokens of one chunk of N
    V   vocabulary
    D   hidden size
    G   completions (samples) of one prompt
    M   layers with a mixture of experts
    E   experts of such a layer
    K   experts that a token goes to; completions of a preference (K = 2 of a pair)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypedDict

from rlvr.lazy import torch


class Message(TypedDict):
    """One chat turn; it may have further keys, which a chat template may print."""

    role: Literal["system", "user", "assistant"]
    content: str


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt with a reference answer that a verifier can check a response against.

    ``answer`` is "" where the data have none. ``columns`` is the row that it came from, where
    somebody wants it; ``conversational`` says that the row holds the prompt as messages.
    ``grader`` judges answers (`reward.graders`).
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    conversational: bool = field(default=False, compare=False)
    grader: str = "rlvr"


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response, as token ids; text is derived from them once and never re-encoded.

    ``logprobs`` are the engine's log-probabilities (nats) of ``token_ids`` under the sampling
    temperature. ``token_ids`` ends with the end token if and only if ``finish_reason`` is "stop"
    and the engine sampled one. ``experts`` are a mixture's choices [P, M, K] in the engine, at all
    positions of prompt and completion but the last, where they are kept. ``draw`` is the number of
    its prompt among all that the run drew, from 0; -1 where prompts are not drawn for training.
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
    draw: int = -1


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
    ``reference_logprobs_BT`` those of the frozen reference; each where something needs them.
    ``columns`` are what single methods need, by name: tensors [B, ...], or tuples with something
    for each completion. Whoever adds one says what it means.
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
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def rows_with_tokens(self) -> list[int]:
        """The completions that are not masked out whole."""
        rows: list[int] = self.mask_BT.any(-1).nonzero()[:, 0].tolist()
        return rows

    def with_columns(self, **columns: Any) -> Batch:  # noqa: ANN401
        """The batch with more named columns."""
        return replace(self, columns={**self.columns, **columns})

    def select(self, rows: Sequence[int]) -> Batch:
        """The given rows, in that order."""
        index = torch.tensor(rows, dtype=torch.long)

        def chosen(column: Any) -> Any:  # noqa: ANN401
            if isinstance(column, tuple):
                return tuple(column[row] for row in rows)
            return None if column is None else column[index]

        columns = {name: chosen(column) for name, column in self.columns.items()}
        common = [item.name for item in fields(self) if item.name != "columns"]
        return Batch(**{name: chosen(getattr(self, name)) for name in common}, columns=columns)
