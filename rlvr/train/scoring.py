"""From groups to rewards: text derived once from ids, verdicts from the pool, functions on top."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import reward
from reward import VerifierPool
from reward.functions import RewardInput, combine, resolve
from rlvr.train.recipe import RewardSettings
from rlvr.types import Completion, Group


@dataclass(frozen=True, slots=True)
class Scored:
    """A completion with its text, verdict and reward; ``rewards`` holds each function's value."""

    completion: Completion
    answer: str
    response: str
    grade: reward.Grade
    reward: float
    rewards: dict[str, float]


def scored_state(item: Scored) -> dict[str, Any]:
    """A scored completion as JSON values."""
    state = asdict(item)
    if item.completion.experts is not None:
        state["completion"]["experts"] = item.completion.experts.tolist()
    return state


def scored_from_state(state: Mapping[str, Any]) -> Scored:
    """What :func:`scored_state` described."""
    fields = dict(state["completion"])
    for name in ("prompt_ids", "token_ids", "logprobs"):
        fields[name] = tuple(fields[name])
    if fields.get("experts") is not None:
        fields["experts"] = torch.tensor(fields["experts"], dtype=torch.int16)
    grade = reward.Grade(**state["grade"])
    return Scored(**{**state, "completion": Completion(**fields), "grade": grade})


class Scorer:
    """The verifier pool and the recipe's reward functions; a context manager.

    Args:
        settings: Functions, workers, timeout.
        tokenizer: Derives text from ids.
        max_tokens: The generation limit, which length-based rewards refer to.
    """

    def __init__(self, settings: RewardSettings, tokenizer: Any, max_tokens: int) -> None:  # noqa: ANN401
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.rewards = combine(
            [
                (term.function, resolve(term.function, **term.parameters), term.weight)
                for term in settings.functions
            ]
        )
        self.pool = VerifierPool(workers=settings.workers, timeout=settings.timeout)

    def __enter__(self) -> "Scorer":
        self.pool.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def score(self, groups: Sequence[Group], max_tokens: int | None = None) -> list[list[Scored]]:
        """Grade and reward every completion; the shape follows ``groups``."""
        rows = [(group, completion) for group in groups for completion in group.completions]
        responses = self.tokenizer.batch_decode(
            [list(completion.token_ids) for _, completion in rows], skip_special_tokens=True
        )
        answers = [group.problem.answer for group, _ in rows]
        grades = self.pool.grade_many(list(zip(responses, answers, strict=True)))
        scored = iter(
            self._reward(group, completion, response, grade, max_tokens or self.max_tokens)
            for (group, completion), response, grade in zip(rows, responses, grades, strict=True)
        )
        return [[next(scored) for _ in group.completions] for group in groups]

    def _reward(
        self,
        group: Group,
        completion: Completion,
        response: str,
        grade: reward.Grade,
        max_tokens: int,
    ) -> Scored:
        problem = group.problem
        total, values = self.rewards(
            RewardInput(
                response=response,
                gold=problem.answer,
                grade=grade,
                truncated=completion.finish_reason == "length",
                num_tokens=len(completion.token_ids),
                max_tokens=max_tokens,
                metadata=problem.metadata,
            )
        )
        return Scored(completion, problem.answer, response, grade, total, values)

    @property
    def counters(self) -> dict[str, float]:
        """Verifier events since the start, named as they are logged."""
        return {f"verifier/{name}": float(count) for name, count in self.pool.counters.items()}
