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


FinishReason = Literal["stop", "length", "turns", "tokens", "seconds", "tool_calls"]
"""Why a completion ended: by itself; at its limit of tokens; and of episodes of several turns, at
which of their limits. All but the first cut it."""


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
class Turn:
    """What the policy wrote at a time, in an episode of several turns: tokens ``start`` to ``stop``
    of its completion. ``reward`` is what the environment gave for it, None where it gave none.
    """

    start: int
    stop: int
    finish_reason: FinishReason
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an environment says to a turn.

    ``observed`` are the ids with which the next turn begins; ``ended`` says why there is none.
    ``reward`` is the turn's.
    """

    observed: tuple[int, ...] = ()
    ended: FinishReason | None = None
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends an episode; each is the finish reason of its name.

    ``tokens`` bounds what stands behind the prompt, sampled or not: a turn begins only where all
    its tokens have room. ``seconds`` count from the first turn; None is no limit.
    """

    turns: int
    tokens: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response, as token ids; text is derived from them once and never re-encoded.

    In an episode of several turns these are all ids behind the prompt, with what the environment
    said between the turns. Only ids within ``turns`` were sampled; the others have log-probability
    0. Without turns all were. ``reward`` is the environment's for the episode.

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
    turns: tuple[Turn, ...] = ()
    reward: float | None = None

    @property
    def truncated(self) -> bool:
        """Whether it was cut at a limit."""
        return self.finish_reason != "stop"

    @property
    def length(self) -> int:
        """Number of sampled tokens."""
        if not self.turns:
            return len(self.token_ids)
        return sum(turn.stop - turn.start for turn in self.turns)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where the sampled tokens stand: (start, stop) of each turn."""
        return tuple((turn.start, turn.stop) for turn in self.turns) or ((0, len(self.token_ids)),)


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one prompt."""

    problem: Problem
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Columns for one optimizer phase: B completions of G-sized groups, padded to T tokens.

    ``mask_BT`` is 1 on every sampled token, the end token included, and 0 on padding and on what an
    environment said; it comes from places, so a tokenizer whose padding token is its end token
    changes nothing. Where an environment said something, the column ``spans`` has the places of
    each completion's sampled tokens.
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
