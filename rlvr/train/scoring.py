"""From groups to rewards: text derived once from ids, verdicts from the pool, functions on top."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

import reward
from reward import VerifierPool
from reward.functions import RewardInput, combine, resolve
from rlvr.train.recipe import RewardSettings, UncertainReward
from rlvr.types import Completion, Group


@dataclass(frozen=True, slots=True)
class Scored:
    """A completion with its text, verdict and reward; ``rewards`` holds each function's value.

    ``scores`` are those of a reward that is not exact, and ``uncertainty`` is their spread.
    """

    completion: Completion
    answer: str
    response: str
    grade: reward.Grade
    reward: float
    rewards: dict[str, float]
    scores: tuple[float, ...] = ()
    uncertainty: float = 0.0


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
    scores = tuple(state.get("scores", ()))
    completion = Completion(**fields)
    return Scored(**{**state, "completion": completion, "grade": grade, "scores": scores})


def _scores(
    settings: UncertainReward,
) -> Callable[[RewardInput], tuple[float, dict[str, float]]]:
    """What gives the weighted mean of the scores, and each; one function may stand several times.

    Raises:
        ValueError: A function is unknown, or all weights are 0.
    """
    total = sum(term.weight for term in settings.scores)
    if not total:
        raise ValueError("reward.uncertain.scores: the weights sum to 0; their mean is due")
    return combine(
        [
            (
                f"{index}: {term.function}",
                resolve(term.function, **term.parameters),
                term.weight / total,
            )
            for index, term in enumerate(settings.scores)
        ]
    )


class Scorer:
    """The verifier pool and the recipe's reward functions; a context manager.

    Args:
        settings: Functions, workers, timeout.
        tokenizer: Derives text from ids.
        max_tokens: The generation limit, which length-based rewards refer to.
    """

    def __init__(self, settings: RewardSettings, tokenizer: Any, max_tokens: int) -> None:  # noqa: ANN401
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        terms = [
            (term.function, resolve(term.function, **term.parameters), term.weight)
            for term in settings.functions
        ]
        self.rewards = combine(terms) if terms else lambda item: (0.0, {})
        self.uncertain = settings.uncertain
        self.scores = None if settings.uncertain is None else _scores(settings.uncertain)
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
        item = RewardInput(
            response=response,
            gold=problem.answer,
            grade=grade,
            truncated=completion.finish_reason == "length",
            num_tokens=len(completion.token_ids),
            max_tokens=max_tokens,
            metadata=problem.metadata,
        )
        total, values = self.rewards(item)
        found = Scored(completion, problem.answer, response, grade, total, values)
        return found if self.scores is None else self._uncertain(found, self.scores(item))

    def _uncertain(self, found: Scored, scored: tuple[float, dict[str, float]]) -> Scored:
        """Add the mean of scores that are not exact, and their spread."""
        mean, values = scored
        assert self.uncertain is not None
        scores = tuple(values.values())
        return replace(
            found,
            reward=found.reward + self.uncertain.weight * mean,
            rewards=found.rewards | {"uncertain": mean},
            scores=scores,
            uncertainty=float(self.uncertain.of(torch.tensor([scores], dtype=torch.float64))),
        )

    @property
    def counters(self) -> dict[str, float]:
        """Verifier events since the start, named as they are logged."""
        return {f"verifier/{name}": float(count) for name, count in self.pool.counters.items()}
