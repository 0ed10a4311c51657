"""From groups to rewards: text derived once from ids, verdicts from the pool, functions on top."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, pstdev
from typing import Any

import torch

import reward
from reward import VerifierPool
from reward.functions import RewardInput, combine, resolve
from rlvr.train.model_reward import ModelReward
from rlvr.train.recipe import RewardSettings, RewardTerm
from rlvr.types import Completion, Group


@dataclass(frozen=True, slots=True)
class Scored:
    """A completion with its text, verdict and reward; ``rewards`` holds each term's value.

    ``uncertainties`` are the standard deviations of the terms that were scored more than once, and
    ``uncertainty`` is that of the reward, if they err independently.
    """

    completion: Completion
    answer: str
    response: str
    grade: reward.Grade
    reward: float
    rewards: dict[str, float]
    uncertainties: dict[str, float] = field(default_factory=dict)
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
    return Scored(**{**state, "completion": Completion(**fields), "grade": grade})


class Scorer:
    """The verifier pool and the recipe's reward functions; a context manager.

    Args:
        settings: Functions, workers, timeout.
        tokenizer: Derives text from ids.
        max_tokens: The generation limit, which length-based rewards refer to.
    """

    def __init__(self, settings: RewardSettings, tokenizer: Any, max_tokens: int) -> None:  # noqa: ANN401
        self.settings, self.tokenizer, self.max_tokens = settings, tokenizer, max_tokens
        functions = [
            (term.function, resolve(term.function, **term.parameters), term.weight)
            for term in settings.functions
            if term.draws == 1
        ]
        self.rewards = combine(functions) if functions else lambda item: (0.0, {})
        self.drawn = [DrawnReward(term) for term in settings.functions if term.draws > 1]
        self.models: list[ModelReward] = []
        self.pool = VerifierPool(workers=settings.workers, timeout=settings.timeout)

    def __enter__(self) -> "Scorer":
        self.pool.start()
        # Only now: the pool's processes are to be there before torch touches a GPU.
        self.models = [ModelReward(term, self.tokenizer) for term in self.settings.models]
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
            self._with_models(
                [
                    self._reward(group, completion, response, grade, max_tokens or self.max_tokens)
                    for (group, completion), response, grade in zip(
                        rows, responses, grades, strict=True
                    )
                ]
            )
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
        scored = Scored(completion, problem.answer, response, grade, total, values)
        for drawn in self.drawn:
            scored = _with_term(scored, drawn.term.function, drawn.term.weight, *drawn(item))
        return scored

    def _with_models(self, scored: list[Scored]) -> list[Scored]:
        """Add what reward models say."""
        for model in self.models:
            term, found = model.term, model([item.completion for item in scored])
            scored = [
                _with_term(item, term.name, term.weight, value, spread if term.others else None)
                for item, (value, spread) in zip(scored, found, strict=True)
            ]
        return scored

    @property
    def counters(self) -> dict[str, float]:
        """Verifier events since the start, named as they are logged."""
        return {f"verifier/{name}": float(count) for name, count in self.pool.counters.items()}


class DrawnReward:
    """A stochastic reward function that is asked several times.

    Args:
        term: Which, and how often.

    Raises:
        ValueError: There is no such function, or it does not take its parameters.
    """

    def __init__(self, term: RewardTerm) -> None:
        self.term = term
        function = resolve(term.function, **term.parameters)
        numbered = "draw" in inspect.signature(function).parameters
        self.draws = [
            resolve(term.function, **term.parameters, draw=draw) if numbered else function
            for draw in range(term.draws)
        ]

    def __call__(self, item: RewardInput) -> tuple[float, float]:
        """Mean and standard deviation of its values.

        Raises:
            ValueError: A value is not a finite number.
        """
        values = [combine([(self.term.function, draw, 1.0)])(item)[0] for draw in self.draws]
        return fmean(values), pstdev(values)


def _with_term(
    item: Scored, name: str, weight: float, value: float, spread: float | None
) -> Scored:
    """A completion with one more term in its reward; ``spread`` is None where it has one score."""
    item = replace(item, reward=item.reward + weight * value, rewards={**item.rewards, name: value})
    if spread is None:
        return item
    return replace(
        item,
        uncertainties={**item.uncertainties, name: spread},
        uncertainty=math.hypot(item.uncertainty, weight * spread),
    )
