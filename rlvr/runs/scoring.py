"""Score groups: decode text once from ids, get verdicts from the pool, apply reward functions."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, pstdev
from typing import Any

import torch

import reward
from reward import VerifierPool
from reward.functions import RewardInput, UngradedInput, is_reward, weigh
from reward.graders import graded_text, grader_by_name
from reward.pool import verdict_counts
from rlvr.data.decoding import ResponseDecoder
from rlvr.runs.model_reward import ModelReward
from rlvr.runs.reward_functions import Begun, RewardFunctions, RowValues
from rlvr.runs.rewards import RewardSettings
from rlvr.runs.second_judge import Asked, SecondJudge, SecondOpinion, opinion_from_state
from rlvr.types import Completion, Group, Problem, Turn

_UNGRADED = reward.Grade(False, None, "unknown", "none", "not graded yet")
_MADE_UP = ("I think the answer is \\boxed{0}.", "Let me think. It is \\boxed{1}, I am sure.")
"""Responses that functions are tried on before a run begins."""


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """A completion with its text, verdict and reward; ``rewards`` contains the value of each term.

    ``uncertainties`` are the standard deviations of the terms that were scored more than once;
    ``uncertainty`` is that of the reward, assuming independent errors. ``grade`` is None where the
    problem has no reference answer. ``failed`` names the terms that were skipped because they
    failed; ``extra`` are columns that functions log, ``logged`` metrics, at the first completion
    that a call was for. ``second`` is what a second judge says, None where it cannot be asked.
    """

    completion: Completion
    answer: str
    response: str
    grade: reward.Grade | None
    reward: float
    rewards: dict[str, float]
    uncertainties: dict[str, float] = field(default_factory=dict)
    uncertainty: float = 0.0
    failed: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    logged: tuple[tuple[str, float], ...] = ()
    second: SecondOpinion | None = None

    @property
    def disputed(self) -> bool:
        """Whether the second judge was asked and contradicts the verdict."""
        says = None if self.second is None else self.second.says
        return says is not None and says != self.correct

    @property
    def correct(self) -> bool | None:
        """The verdict; None where there is none."""
        return None if self.grade is None else self.grade.correct


def scored_state(item: ScoredCompletion) -> dict[str, Any]:
    """A scored completion as JSON values."""
    state = asdict(item)
    if item.completion.experts is not None:
        state["completion"]["experts"] = item.completion.experts.tolist()
    return state


def scored_from_state(state: Mapping[str, Any]) -> ScoredCompletion:
    """Restore what :func:`scored_state` returned."""
    fields = dict(state["completion"])
    for name in ("prompt_ids", "token_ids", "logprobs"):
        fields[name] = tuple(fields[name])
    fields["turns"] = tuple(Turn(**turn) for turn in fields.get("turns", ()))
    if fields.get("experts") is not None:
        fields["experts"] = torch.tensor(fields["experts"], dtype=torch.int16)
    restored = {
        "completion": Completion(**fields),
        "grade": None if state["grade"] is None else reward.Grade(**state["grade"]),
        "failed": tuple(state.get("failed", ())),
        "logged": tuple((name, value) for name, value in state.get("logged", ())),
        "second": opinion_from_state(state.get("second")),
    }
    return ScoredCompletion(**{**state, **restored})


@dataclass(frozen=True)
class BegunGroups:
    """Groups that are graded, and whose reward functions have been called but for the batch's.

    ``models`` holds, for each reward model, a value and its uncertainty for each completion;
    ``asked`` what a second judge was asked, None if there is none.
    """

    completions: list[list[Completion]]
    inputs: list[RewardInput]
    grades: list[reward.Grade | None]
    functions: Begun
    models: list[list[tuple[float, float]]]
    asked: Asked | None = None


def policy_of(
    settings: RewardSettings, thoughts: tuple[tuple[str, str], ...]
) -> reward.GradingPolicy:
    """What settings say of how answers are judged.

    Args:
        settings: Of rewards.
        thoughts: Pairs of markers, those of the tokenizer with those of the settings.
    """
    return replace(
        reward.DEFAULT,
        thoughts=thoughts,
        certainty=settings.certainty,
        sandbox=settings.code.sandbox,
        packages=settings.code.packages,
    )


class Scorer:
    """The verifier pool and the recipe's reward functions; a context manager.

    Args:
        settings: Functions, workers, timeout.
        tokenizer: Decodes ids into text; names the markers of thoughts.
        max_tokens: The generation limit, which length-based rewards use.
        total_steps: Of the run, for functions that ask.
        seed: Of the run, by which verdicts are drawn for a second judge.
    """

    def __init__(
        self,
        settings: RewardSettings,
        tokenizer: Any,  # noqa: ANN401
        max_tokens: int,
        total_steps: int = 0,
        seed: int = 0,
    ) -> None:
        self.settings, self.tokenizer, self.max_tokens = settings, tokenizer, max_tokens
        self.decode = ResponseDecoder(tokenizer, settings.thoughts)
        self.functions = RewardFunctions(settings.functions, total_steps)
        self.models: list[ModelReward] = []
        self.rejected_golds = 0
        self.needs_verdicts = True
        if settings.functions:
            self.needs_verdicts = self.functions.may_read_verdict
        self.ungradable: set[str] = set()
        """Reference answers that get no verdict, as the verifier cannot read them."""
        policy = policy_of(settings, self.decode.thoughts)
        self.pool = VerifierPool(settings.workers, settings.timeout, policy=policy)
        self.judge: SecondJudge | None = None
        if settings.check is not None:
            self.judge = SecondJudge(settings.check, seed, policy)

    def __enter__(self) -> "Scorer":
        # Start processes here, because they must exist before torch uses a GPU.
        self.pool.start()
        if self.judge is not None:
            self.judge.__enter__()
        self.models = [ModelReward(term, self.tokenizer) for term in self.settings.models]
        return self

    def __exit__(self, *_: object) -> None:
        self.functions.close()
        self.pool.close()
        if self.judge is not None:
            self.judge.__exit__()

    def judged(self, text: str, problem: Problem) -> bool:
        """Whether a text has a problem's reference answer, as the verifier sees it."""
        return self.pool.submit(text, problem.answer, problem.grader).result().correct

    @property
    def rewards_beyond_verdicts(self) -> bool:
        """Whether rewards say more than accuracy does."""
        settings = self.settings
        return bool(settings.models) or {term.function for term in settings.functions} != {
            "accuracy"
        }

    def score(
        self,
        groups: Sequence[Group],
        max_tokens: int | None = None,
        *,
        step: int = 0,
        finished: int | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> list[list[ScoredCompletion]]:
        """Grade and reward every completion; the result has the structure of ``groups``.

        Args:
            groups: A batch.
            max_tokens: The generation limit; None is the recipe's.
            step: The step that they are sampled for.
            finished: Steps that the run has finished; None is ``step``.
            tick: Called while reward functions are waited for; what it raises ends that.
        """
        finished = step if finished is None else finished
        begun = self.begin(groups, max_tokens, step=step, finished=finished)
        return self.finish([begun], finished=finished, tick=tick)

    def begin(
        self,
        groups: Sequence[Group],
        max_tokens: int | None = None,
        *,
        step: int = 0,
        finished: int = 0,
        check: bool = False,
    ) -> BegunGroups:
        """Grade groups and call what can be called before the whole batch is there.

        ``check`` asks the second judge, where the settings have one.
        """
        limit = max_tokens or self.max_tokens
        found = [self._ungraded(g, index, limit, step) for g in groups for index in _places(g)]
        grades = self._grades(found)
        inputs = [
            UngradedInput(**vars(item)) if grade is None else replace(item, grade=grade)
            for item, grade in zip(found, grades, strict=True)
        ]
        rows = iter(inputs)
        functions = self.functions.begin(
            [_together([next(rows) for _ in g.completions]) for g in groups], finished
        )
        completions = [list(group.completions) for group in groups]
        flat = [one for group in completions for one in group]
        asked = None
        if check and self.judge is not None:
            asked = self.judge.ask(found, grades, [one.sample_index for one in flat], step)
        models = [model(flat) for model in self.models]
        return BegunGroups(completions, found, grades, functions, models, asked)

    def finish(
        self,
        begun: Sequence[BegunGroups],
        *,
        finished: int = 0,
        tick: Callable[[], None] = lambda: None,
    ) -> list[list[ScoredCompletion]]:
        """Call the functions of the batch and wait for all; groups in the order of ``begun``."""
        values = iter(self.functions.finish([part.functions for part in begun], finished, tick))
        scored = []
        for part in begun:
            flat = iter(self._scored(part, values))
            scored += [[_checked(next(flat)) for _ in group] for group in part.completions]
        return self._with_opinions(scored, [part.asked for part in begun], tick)

    def _with_opinions(
        self,
        scored: list[list[ScoredCompletion]],
        asked: Sequence[Asked | None],
        tick: Callable[[], None],
    ) -> list[list[ScoredCompletion]]:
        """The completions with what the second judge says, if it was asked of them."""
        there = [part for part in asked if part is not None]
        if self.judge is None or not there:
            return scored
        assert len(there) == len(asked), "a batch is checked or not"
        answers = iter([one for part in self.judge.answers(there, tick) for one in part])
        return [[replace(item, second=next(answers)) for item in group] for group in scored]

    def _ungraded(self, group: Group, index: int, max_tokens: int, step: int) -> RewardInput:
        completion = group.completions[index]
        cut = completion.truncated
        item = _input(
            group.problem,
            index,
            self.decode(_last_turn(completion), finished=not cut),
            completion.token_ids,
            completion.finish_reason,
            max_tokens,
            step,
        )
        if completion.turns:
            item = replace(item, num_tokens=completion.length, episode_reward=completion.reward)
        opened = self.decode.opened(completion.prompt_ids)
        return replace(item, opened=opened, thoughts=self.decode.thoughts)

    def _grades(self, items: Sequence[RewardInput]) -> list[reward.Grade | None]:
        """Verdicts, None for problems without a reference answer that can be graded."""
        gradable = [bool(item.gold) and item.gold not in self.ungradable for item in items]
        answered = [item for item, there in zip(items, gradable, strict=True) if there]
        graded = iter(
            self.pool.grade_many(
                [
                    (graded_text(item.response, item.opened, item.grader), item.gold, item.grader)
                    for item in answered
                ]
            )
        )
        return [next(graded) if there else None for there in gradable]

    def _scored(
        self, begun: BegunGroups, values: Iterator[RowValues]
    ) -> Iterator[ScoredCompletion]:
        flat = [one for group in begun.completions for one in group]
        for row, completion in enumerate(flat):
            item, given = begun.inputs[row], next(values)
            scored = self._with_functions(completion, item, begun.grades[row], given)
            for model, found in zip(self.models, begun.models, strict=True):
                term, (value, spread) = model.term, found[row]
                spread_if_any = spread if term.others else None
                scored = _with_term(scored, term.name, term.weight, value, spread_if_any)
            yield scored

    def _with_functions(
        self,
        completion: Completion,
        item: RewardInput,
        grade: reward.Grade | None,
        given: RowValues,
    ) -> ScoredCompletion:
        terms = list(zip(self.settings.functions, given.values, strict=True))
        once = {term.label: draws[0] for term, draws in terms if term.draws == 1}
        values = {name: value for name, value in once.items() if value is not None}
        weights = {term.label: term.weight for term, _ in terms}
        labels = [term.label for term in self.settings.functions]
        scored = ScoredCompletion(
            completion,
            item.gold,
            item.response,
            grade,
            weigh(weights, values) if values else 0.0,
            values,
            failed=tuple(name for name, bad in zip(labels, given.failed, strict=True) if bad),
            extra={name: _plain(value) for name, value in given.extra.items()},
            logged=tuple(given.logged),
        )
        for term, draws in terms:
            drawn = [value for value in draws if value is not None]
            if term.draws > 1 and drawn:
                spread = pstdev(drawn)
                scored = _with_term(scored, term.label, term.weight, fmean(drawn), spread)
        return scored


def try_functions(
    functions: RewardFunctions, problem: Problem, max_tokens: int, *, episodes: bool = False
) -> None:
    """Have the functions reward made-up completions of a problem.

    ``episodes`` are such that an environment has rewarded.

    Raises:
        RewardError: A function fails, or returns no rewards.
    """
    items = []
    for index, text in enumerate(_MADE_UP):
        ids = tuple(range(1, 1 + len(text.split())))
        item = _input(problem, index, text, ids, "stop", max_tokens, 1)
        item = replace(item, episode_reward=float(index) if episodes else None)
        if problem.answer:
            verdict = grader_by_name(problem.grader)(text, problem.answer, reward.DEFAULT)
            items.append(replace(item, grade=verdict))
        else:
            items.append(UngradedInput(**vars(item)))
    functions.try_out(_together(items))


def _last_turn(completion: Completion) -> tuple[int, ...]:
    """The ids that the policy wrote last, which hold its answer."""
    start, stop = completion.spans[-1]
    return completion.token_ids[start:stop]


def _places(group: Group) -> range:
    return range(len(group.completions))


def _input(
    problem: Problem,
    index: int,
    response: str,
    token_ids: tuple[int, ...],
    finish_reason: str,
    max_tokens: int,
    step: int,
) -> RewardInput:
    """What functions are given of a completion, without its verdict."""
    return RewardInput(
        response=response,
        gold=problem.answer,
        grade=_UNGRADED,
        truncated=finish_reason != "stop",
        num_tokens=len(token_ids),
        max_tokens=max_tokens,
        metadata=problem.metadata,
        problem_id=problem.id,
        prompt=problem.messages[-1]["content"],
        messages=problem.messages,
        conversational=problem.conversational,
        token_ids=token_ids,
        finish_reason=finish_reason,
        step=step,
        columns=problem.columns,
        grader=problem.grader,
        sample=index,
    )


def _together(items: list[RewardInput]) -> list[RewardInput]:
    """The completions of a prompt, each of which knows the others."""
    for item in items:
        object.__setattr__(item, "group", items)
    return items


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A value as JSON has it, or its text."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return str(value)


def logged_metrics(rows: Sequence[ScoredCompletion]) -> dict[str, float]:
    """What functions logged: the mean of the values of a name."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.logged:
            found.setdefault(f"logged/{name}", []).append(value)
    return {name: fmean(values) for name, values in found.items()}


def counted_verdicts(groups: Sequence[Sequence[ScoredCompletion]]) -> Counter[str]:
    """The verdicts of completions, counted under the names of :data:`reward.pool.COUNTERS`."""
    return verdict_counts(item.grade for group in groups for item in group if item.grade)


def _checked(item: ScoredCompletion) -> ScoredCompletion:
    """A completion whose reward is a number.

    Raises:
        ValueError: It is none, because of a reward model or of a sum that is too large.
    """
    terms = {**item.rewards, "the sum": item.reward}
    bad = next((name for name, value in terms.items() if not is_reward(value)), None)
    if bad is not None:
        raise ValueError(
            f"the reward of a completion of problem {item.completion.problem_id!r} is no finite "
            f"number: {bad} is {terms[bad]} (terms {item.rewards}); mend the reward function or "
            "model of that name, or lower its weight"
        )
    return item


def _with_term(
    item: ScoredCompletion, name: str, weight: float, value: float, spread: float | None
) -> ScoredCompletion:
    """A completion with one more term in its reward; ``spread`` is None if it has one score."""
    item = replace(item, reward=item.reward + weight * value, rewards={**item.rewards, name: value})
    if spread is None:
        return item
    return replace(
        item,
        uncertainties={**item.uncertainties, name: spread},
        uncertainty=math.hypot(item.uncertainty, weight * spread),
    )
