"""From completions to model inputs: token-budget micro-batches, padded or packed.

``padded`` puts each prompt with its completion on a row of its own, rows sorted by length so that
little is padding. ``packed`` puts everything on one row: a prompt stands once, followed by the
completions of its group, each of which sees its prompt and itself and nothing else (a block mask),
with position ids that count from its own context. Both give the same numbers; a group of eight
short completions behind a long prompt runs several times fewer tokens when packed.

Whichever the layout, the output head runs only at the N positions that predict completion tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from rlvr.policy.tree_attention import Block


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """One micro-batch as the model sees it, and the way back to the batch's columns.

    ``attention_mask`` is [R, L] (padded) or boolean [1, 1, L, L] (packed). ``predict_N`` points
    into the flattened R*L positions at those whose output predicts ``targets_N``; ``row_N`` and
    ``column_N`` say where in the micro-batch's [B, T] columns each belongs. ``last_B`` points, in
    the same way, at each completion's last token, or its prompt's where it has none. ``rows`` are
    the indices of its B completions in the batch. ``blocks`` are what stands on a packed row.
    """

    input_ids_RL: torch.Tensor
    position_ids_RL: torch.Tensor
    attention_mask: torch.Tensor
    predict_N: torch.Tensor
    targets_N: torch.Tensor
    row_N: torch.Tensor
    column_N: torch.Tensor
    last_B: torch.Tensor
    rows: tuple[int, ...]
    blocks: tuple[Block, ...] = ()

    def to(self, device: torch.device) -> "ModelInputs":
        """The same inputs on another device."""
        tensors = {
            name: value.to(device)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), torch.Tensor)
        }
        return ModelInputs(rows=self.rows, blocks=self.blocks, **tensors)

    @property
    def num_positions(self) -> int:
        """Input positions run, padding included."""
        return self.input_ids_RL.numel()

    def scatter(self, values_N: torch.Tensor, width: int) -> torch.Tensor:
        """Lay N values out as [B, ``width``], zero where there is no token; differentiable."""
        empty = values_N.new_zeros(len(self.rows), width)
        return empty.index_put((self.row_N, self.column_N), values_N)

    @property
    def seen_BL(self) -> torch.Tensor:
        """Which positions of its own row each completion's last token sees, as true or false."""
        if self.attention_mask.dim() == 2:
            return self.attention_mask.bool()
        return self.attention_mask[0, 0, self.last_B]


Sequences = Sequence[Sequence[int]]
Spans = Sequence[Sequence[tuple[int, int]]]
"""Of each completion, the places (start, stop) of the tokens that count."""


def plan_padded(lengths: Sequence[int], token_budget: int) -> list[tuple[int, ...]]:
    """Split rows into micro-batches, longest first, so that rows x longest <= ``token_budget``.

    A row longer than the budget gets a micro-batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    plan: list[list[int]] = []
    for index in order:
        # Sorted, so the first row of a micro-batch is its longest.
        if plan and lengths[plan[-1][0]] * (len(plan[-1]) + 1) <= token_budget:
            plan[-1].append(index)
        else:
            plan.append([index])
    return [tuple(rows) for rows in plan]


def plan_packed(
    prompts: Sequences, completions: Sequences, token_budget: int
) -> list[tuple[int, ...]]:
    """Split rows into micro-batches whose packed length is at most ``token_budget``.

    Completions of an equal prompt are kept together as far as the budget allows, so that the
    prompt is run once for them.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt), []).append(index)
    pieces: list[tuple[int, list[int]]] = []
    for prompt, members in by_prompt.items():
        piece: list[int] = []
        size = len(prompt)
        for index in members:
            if piece and size + len(completions[index]) > token_budget:
                pieces.append((size, piece))
                piece, size = [], len(prompt)
            piece.append(index)
            size += len(completions[index])
        pieces.append((size, piece))
    return _first_fit(pieces, token_budget)


def _first_fit(pieces: list[tuple[int, list[int]]], budget: int) -> list[tuple[int, ...]]:
    """First-fit decreasing bin packing of (size, rows) pieces."""
    bins: list[tuple[int, list[int]]] = []
    for size, rows in sorted(pieces, key=lambda piece: (-piece[0], piece[1])):
        for slot, (used, members) in enumerate(bins):
            if used + size <= budget:
                bins[slot] = (used + size, members + rows)
                break
        else:
            bins.append((size, rows))
    return [tuple(rows) for _, rows in bins]


def padded_inputs(
    prompts: Sequences, completions: Sequences, rows: Sequence[int], spans: Spans | None = None
) -> ModelInputs:
    """Lay ``rows`` of the batch out one a row, padded on the right (with id 0, masked).

    With ``spans`` only completion tokens within them are predicted.
    """
    sequences = [[*prompts[row], *completions[row]] for row in rows]
    width = max(len(sequence) for sequence in sequences)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for slot, sequence in enumerate(sequences):
        input_ids[slot, : len(sequence)] = torch.tensor(sequence)
        mask[slot, : len(sequence)] = 1
    builder = _TargetBuilder()
    for slot, row in enumerate(rows):
        start = slot * width + len(prompts[row])
        builder.add(slot, completions[row], start - 1, start, None if spans is None else spans[row])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    return builder.build(input_ids, positions, mask, rows)


def packed_inputs(
    prompts: Sequences, completions: Sequences, rows: Sequence[int], spans: Spans | None = None
) -> ModelInputs:
    """Lay ``rows`` out on one row, equal prompts shared by the completions that follow them.

    With ``spans`` only completion tokens within them are predicted.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for slot, row in enumerate(rows):
        by_prompt.setdefault(tuple(prompts[row]), []).append(slot)
    ids: list[int] = []
    positions: list[int] = []
    blocks: list[Block] = []
    builder = _TargetBuilder()
    for prompt, slots in by_prompt.items():
        prompt_start = len(ids)
        ids.extend(prompt)
        positions.extend(range(len(prompt)))
        prompt_stop = len(ids)
        blocks.append((prompt_start, prompt_stop, prompt_start, prompt_start))
        for slot in slots:
            completion = completions[rows[slot]]
            own = None if spans is None else spans[rows[slot]]
            start = len(ids)
            ids.extend(completion)
            positions.extend(range(len(prompt), len(prompt) + len(completion)))
            blocks.append((start, len(ids), prompt_start, prompt_stop))
            builder.add(slot, completion, prompt_stop - 1, start, own)
    mask = _tree_mask(len(ids), blocks)
    inputs = builder.build(torch.tensor([ids]), torch.tensor([positions]), mask[None, None], rows)
    return replace(inputs, blocks=tuple(blocks))


def _tree_mask(length: int, blocks: Sequence[Block]) -> torch.Tensor:
    """[L, L]: each block sees itself causally, and the prompt it hangs on."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for start, stop, prompt_start, prompt_stop in blocks:
        size = stop - start
        mask[start:stop, start:stop] = torch.ones(size, size, dtype=torch.bool).tril()
        mask[start:stop, prompt_start:prompt_stop] = True
    return mask


@dataclass
class _TargetBuilder:
    """Collects where each completion token is predicted and where its value belongs."""

    predict: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    last: dict[int, int] = field(default_factory=dict)

    def add(
        self,
        slot: int,
        completion: Sequence[int],
        first: int,
        rest: int,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """``first`` predicts the first token, ``rest`` onwards the others; None is all of them."""
        count = len(completion)
        self.last[slot] = rest + count - 1 if count else first
        for start, stop in ((0, count),) if spans is None else spans:
            places = range(start, stop)
            self.predict.extend(rest + place - 1 if place else first for place in places)
            self.targets.extend(completion[start:stop])
            self.row.extend([slot] * len(places))
            self.column.extend(places)

    def build(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, rows: Sequence[int]
    ) -> ModelInputs:
        return ModelInputs(
            input_ids_RL=ids,
            position_ids_RL=positions,
            attention_mask=mask,
            predict_N=torch.tensor(self.predict, dtype=torch.long),
            targets_N=torch.tensor(self.targets, dtype=torch.long),
            row_N=torch.tensor(self.row, dtype=torch.long),
            column_N=torch.tensor(self.column, dtype=torch.long),
            last_B=torch.tensor([self.last[slot] for slot in range(len(rows))], dtype=torch.long),
            rows=tuple(rows),
        )
