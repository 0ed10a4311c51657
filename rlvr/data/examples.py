"""What every offline task learns from: completions of prompts, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlvr.lazy import torch

Ids = tuple[int, ...]
Rows = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """N examples over M completions.

    An example is what a loss looks at together: a completion, the two sides of a pair (the better
    one first), or all completions of a prompt. A completion may be part of several examples.

    Attributes:
        prompt_ids: The prompt of each completion, M in all.
        completion_ids: The completions, M in all.
        rows: The completions of each example, by place; N in all.
        columns: What is known of completions, [M] each:

            label        1 where right or desirable, 0 where not, or between
            target       what a loss takes for the label
            score        a number that the data comes with
            reference    log-probability under the reference; of steps [M, S]
            weight       factor on the loss of an example, given on each of its completions
            step_label   [M, S], between 0 and 1, not a number where a step was not judged or is
                         not there

        groups: The problem that each completion answers, where the task has to know.
        step_ends: Where each completion's steps end, in tokens, exclusive; at most S of them.
    """

    prompt_ids: tuple[Ids, ...]
    completion_ids: tuple[Ids, ...]
    rows: tuple[Rows, ...]
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    step_ends: tuple[Ids, ...] | None = None

    @classmethod
    def of_one(
        cls,
        prompt_ids: Sequence[Ids],
        completion_ids: Sequence[Ids],
        columns: Mapping[str, torch.Tensor] | None = None,
        groups: Sequence[str] = (),
        step_ends: Sequence[Ids] | None = None,
    ) -> Examples:
        """Examples of one completion each."""
        return cls(
            tuple(prompt_ids),
            tuple(completion_ids),
            tuple((row,) for row in range(len(prompt_ids))),
            columns or {},
            tuple(groups),
            None if step_ends is None else tuple(step_ends),
        )

    @classmethod
    def of_several(
        cls,
        prompt_ids: Sequence[Ids],
        completion_ids: Sequence[Sequence[Ids]],
        columns: Mapping[str, torch.Tensor] | None = None,
    ) -> Examples:
        """Examples of K completions of one prompt, such as pairs; columns are [N, K]."""
        count = len(completion_ids[0])
        return cls(
            tuple(prompt for prompt in prompt_ids for _ in range(count)),
            tuple(ids for example in completion_ids for ids in example),
            tuple(tuple(range(at * count, (at + 1) * count)) for at in range(len(prompt_ids))),
            {name: values.flatten() for name, values in (columns or {}).items()},
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def most(self) -> int:
        """K, the completions of an example at most."""
        return max(map(len, self.rows))

    @property
    def rows_NK(self) -> torch.Tensor:
        """The completions of each example; where it has fewer than K, its first again."""
        most = self.most
        return torch.tensor([[*own, *own[:1] * (most - len(own))] for own in self.rows])

    @property
    def mask_NK(self) -> torch.Tensor:
        """False where an example has fewer than K completions."""
        return torch.tensor([[k < len(own) for k in range(self.most)] for own in self.rows])

    @property
    def lengths_NK(self) -> torch.Tensor:
        """Completion tokens."""
        return torch.tensor([len(ids) for ids in self.completion_ids])[self.rows_NK]

    @property
    def labels(self) -> list[bool]:
        """Of each completion, whether it is right."""
        right: list[bool] = (self.columns["label"] > 0.5).tolist()
        return right

    def column(self, name: str) -> torch.Tensor:
        """A column by example, [N, K, ...]."""
        return self.columns[name][self.rows_NK]

    def with_columns(self, **columns: torch.Tensor) -> Examples:
        """The same with further columns, or others in the place of its own."""
        return replace(self, columns={**self.columns, **columns})

    def with_values(self, name: str, values_NK: torch.Tensor) -> Examples:
        """The same with a column that is given by example, each completion being of one alone."""
        rows_NK = self.rows_NK
        column = values_NK.new_zeros(len(self.prompt_ids), *values_NK.shape[2:])
        column[rows_NK] = values_NK
        return self.with_columns(**{name: column})

    def select(self, examples: Sequence[int]) -> Examples:
        """These examples in that order, and the completions that they are of."""
        used = sorted({row for example in examples for row in self.rows[example]})
        place = {row: at for at, row in enumerate(used)}
        rows = tuple(tuple(place[row] for row in self.rows[at]) for at in examples)
        return replace(self._completions(used), rows=rows)

    def of_completions(self, rows: Sequence[int]) -> Examples:
        """These completions, in that order, each an example of its own."""
        return replace(self._completions(rows), rows=tuple((at,) for at in range(len(rows))))

    def _completions(self, rows: Sequence[int]) -> Examples:
        index = torch.tensor(rows, dtype=torch.long)
        return Examples(
            tuple(self.prompt_ids[row] for row in rows),
            tuple(self.completion_ids[row] for row in rows),
            (),
            {name: values[index] for name, values in self.columns.items()},
            tuple(self.groups[row] for row in rows) if self.groups else (),
            None if self.step_ends is None else tuple(self.step_ends[row] for row in rows),
        )
