r"""Reward functions as plain callables, found by name, combined with weights.

A reward function takes a `RewardInput` and returns a float. `resolve` binds its parameters (keyword
arguments) once, so that a recipe line such as ``{name: overlong, max_tokens: 4096}`` becomes a
callable of one argument. A user's own function is passed as a callable; it may return None, which
says that it does not apply to the completion. It may also take its input by other names, or for a
whole group or batch: `reward.calls` tells by its signature.

The reward of a completion that was cut at its token limit is explicit: `accuracy` gives 0 unless
``truncated="grade"``.
"""

import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

from reward.extract import extract
from reward.thoughts import all_pairs
from reward.verdict import Grade

RewardFunction = Callable[["RewardInput"], float | None]


class RewardError(ValueError):
    """A reward function failed, or returned no number; the message names it and the problem."""


LARGEST_REWARD = 3.4028234663852886e38
"""Of float32, in which rewards are compared: of larger ones not even the mean is a number."""


@dataclass(frozen=True)
class RewardInput:
    """One completion with its verdict: the input of a reward function.

    ``response`` is what the model wrote, markers of thoughts included, without the end token;
    ``token_ids`` are what it sampled, with it. ``num_tokens`` and ``max_tokens`` count completion
    tokens; ``truncated`` says that the completion ended at its limit (``finish_reason`` is then
    "length", else "stop"). ``opened`` is the marker of a thought that the prompt left open
    (``<think>``), or "". ``thoughts`` are the pairs of markers that the tokenizer and the settings
    have besides the known ones.

    ``prompt`` is the last user message as the data have it, ``messages`` the whole prompt without
    what a template adds; ``conversational`` says that the data gave messages and not text.
    ``columns`` is the row of the data, ``metadata`` the columns chosen by the data's settings.
    ``step`` is the training step that the completion is sampled for; in an evaluation, the number
    of finished ones. ``group`` holds all completions of the prompt, this one at ``sample``.
    ``grader`` is the name of what gave the verdict. ``episode_reward`` is what an environment gave
    for the episode; ``response`` is then what the model wrote in its last turn.
    """

    response: str
    gold: str
    grade: Grade
    truncated: bool = False
    num_tokens: int = 0
    max_tokens: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    opened: str = ""
    thoughts: tuple[tuple[str, str], ...] = ()
    problem_id: str = ""
    prompt: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    conversational: bool = False
    token_ids: tuple[int, ...] = ()
    finish_reason: str = "stop"
    step: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)
    grader: str = "rlvr"
    sample: int = 0
    episode_reward: float | None = None
    group: Sequence["RewardInput"] = field(default=(), compare=False, repr=False)

    @property
    def others(self) -> tuple["RewardInput", ...]:
        """The other completions of the prompt."""
        return tuple(item for index, item in enumerate(self.group) if index != self.sample)


class UngradedInput(RewardInput):
    """A completion of a problem without a reference answer, or with one that the verifier cannot
    read: to ask for the verdict is an error.

    A reward that compares with nothing would always be 0, as for a problem that is too hard.
    """

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401
        found = super().__getattribute__(name)
        if name == "grade" or (name == "gold" and not found):
            raise LookupError(
                f"it reads {name}, but the problem has no reference answer that can be graded; "
                "give the data one (fields.answer names its column), or read columns"
            )
        return found

    def __repr__(self) -> str:
        return f"UngradedInput(problem_id={self.problem_id!r}, response={self.response!r})"


def accuracy(
    item: RewardInput,
    *,
    correct: float = 1.0,
    wrong: float = 0.0,
    truncated: Literal["zero", "grade"] = "zero",
) -> float:
    """Give ``correct`` or ``wrong`` according to the verdict; a truncated completion counts as
    wrong.

    With ``truncated="grade"`` a truncated completion is graded like any other.
    """
    if item.truncated and truncated == "zero":
        return wrong
    return correct if item.grade.correct else wrong


def credit(item: RewardInput, *, truncated: Literal["zero", "grade"] = "zero") -> float:
    """Give the share of the credit that the grader gives, from 0 to 1: of an answer that is partly
    right in a domain that knows such, as F1 of a text; elsewhere as `accuracy`."""
    return 0.0 if item.truncated and truncated == "zero" else item.grade.credit


def format_boxed(item: RewardInput, *, value: float = 1.0, penalty: float = 0.0) -> float:
    """Give ``value`` if a final answer is in a box after any thinking, else ``penalty``."""
    found = extract(item.opened + item.response, thoughts=item.thoughts)
    return value if found.answer is not None else penalty


def format_think(item: RewardInput, *, value: float = 1.0, penalty: float = 0.0) -> float:
    """Give ``value`` if the response is exactly one non-empty think block followed by text.

    The markers are those of `reward.thoughts`, ``<think>`` if there are none. The opening one may
    be missing if the prompt's template ends with it.
    """
    text, pairs = item.response, all_pairs(item.thoughts)
    opening, closing = next((pair for pair in pairs if pair[1] in text), pairs[0])
    if opening not in text:
        text = opening + text
    if (
        text.count(opening) != 1
        or text.count(closing) != 1
        or not text.lstrip().startswith(opening)
    ):
        return penalty
    thought, _, rest = text.lstrip().removeprefix(opening).partition(closing)
    return value if thought.strip() and rest.strip() else penalty


def overlong(
    item: RewardInput, *, max_tokens: int | None = None, buffer: int = 4096, penalty: float = 1.0
) -> float:
    r"""Penalise length near the limit, linearly (DAPO, arXiv 2503.14476, equation 13).

    With L the number of completion tokens, L_max the limit and B the buffer:

    - 0 for L <= L_max - B,
    - -penalty (L - (L_max - B)) / B up to L_max,
    - -penalty beyond, and for a truncated completion.

    Args:
        item: the completion.
        max_tokens: L_max; the completion's own limit if ``None``.
        buffer: B in tokens.
        penalty: the largest penalty, a positive number.
    """
    limit = item.max_tokens if max_tokens is None else max_tokens
    if not 0 < buffer <= limit:
        raise ValueError(f"overlong: buffer={buffer} must be in 1..max_tokens={limit}")
    over = item.num_tokens - (limit - buffer)
    return -penalty * min(max(over / buffer, 0.0), 1.0)


def repetition(item: RewardInput, *, ngram: int = 20, penalty: float = 1.0) -> float:
    """Give -``penalty`` times the fraction of word n-grams that repeat an earlier one.

    A response of fewer than ``ngram`` + 1 words gives 0. The fraction is 1 - distinct / total,
    as in the repetition penalty of Yeo et al. (arXiv 2502.03373), without their length terms.
    """
    if ngram < 1:
        raise ValueError(f"repetition: ngram={ngram} must be at least 1")
    words = item.response.split()
    total = len(words) - ngram + 1
    if total < 2:
        return 0.0
    distinct = len({tuple(words[start : start + ngram]) for start in range(total)})
    return -penalty * (1 - distinct / total)


def length(
    item: RewardInput,
    *,
    target: int,
    weight: float = 1.0,
    shape: Literal["linear", "cosine"] = "linear",
) -> float:
    """Fall from ``weight`` at 0 tokens to 0 at ``target`` tokens and beyond.

    ``cosine`` falls slowly at first: weight (1 + cos(pi L / target)) / 2.
    """
    if target < 1:
        raise ValueError(f"length: target={target} must be at least 1 token")
    part = min(item.num_tokens / target, 1.0)
    if shape == "cosine":
        return weight * (1 + math.cos(math.pi * part)) / 2
    return weight * (1 - part)


def environment(item: RewardInput) -> float:
    """Give what the environment gave for the episode.

    Raises:
        ValueError: there was none.
    """
    if item.episode_reward is None:
        raise ValueError("environment: the completion is no episode; set environment in the recipe")
    return item.episode_reward


FUNCTIONS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "credit": credit,
    "format_boxed": format_boxed,
    "format_think": format_think,
    "overlong": overlong,
    "repetition": repetition,
    "length": length,
    "environment": environment,
}


def find_function(function: str | Callable[..., Any]) -> Callable[..., Any]:
    """The built-in function of this name, or the function itself.

    Raises:
        ValueError: for an unknown name.
    """
    if not isinstance(function, str):
        return function
    if function not in FUNCTIONS:
        near = get_close_matches(function, FUNCTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"reward function {function!r} is not one of {', '.join(FUNCTIONS)}; one of your own "
            f"is named file.py:function{hint}"
        )
    return FUNCTIONS[function]


def resolve(function: str | Callable[..., float], /, **parameters: object) -> RewardFunction:
    """Return a reward function with its parameters bound.

    Args:
        function: a name in `FUNCTIONS`, or a function of your own that takes a `RewardInput`.
        parameters: keyword arguments of the function.

    Raises:
        ValueError: for an unknown name, or a parameter that the function does not accept.
    """
    name = function if isinstance(function, str) else getattr(function, "__name__", str(function))
    found = find_function(function)
    try:
        inspect.signature(found).bind(None, **parameters)
    except TypeError as error:
        raise ValueError(f"reward function {name!r}: {error}") from error
    return partial(found, **parameters) if parameters else found


def combine(
    parts: Sequence[tuple[str, RewardFunction, float]],
) -> Callable[[RewardInput], tuple[float, dict[str, float]]]:
    """Return a callable that gives the weighted total and each part's unweighted value.

    A part that returns None does not apply: it adds nothing, and has no value.

    Raises:
        ValueError: for no parts, a repeated name, or a weight that is not finite; when called, also
            for a part that returns anything but a finite number, and for parts that add up to none.
    """
    names = [name for name, _, _ in parts]
    if not parts or len(set(names)) != len(names):
        raise ValueError(f"reward parts {names}: give at least one, and each name only once")
    for name, _, weight in parts:
        if not math.isfinite(weight):
            raise ValueError(f"reward part {name!r}: weight {weight} is not a finite number")

    weights = {name: weight for name, _, weight in parts}

    def total(item: RewardInput) -> tuple[float, dict[str, float]]:
        called = {name: _called(name, function, item) for name, function, _ in parts}
        values = {name: value for name, value in called.items() if value is not None}
        return weigh(weights, values), values

    return total


def weigh(weights: Mapping[str, float], values: Mapping[str, float]) -> float:
    """The weighted sum of the parts that have a value, in the order of the weights.

    Raises:
        ValueError: It is too large for a reward, or not finite.
    """
    there = [name for name in weights if name in values]
    reward = sum(weights[name] * values[name] for name in there)
    if not is_reward(reward):
        terms = ", ".join(f"{weights[name]:g} x {name} {values[name]:g}" for name in there)
        raise ValueError(
            f"the reward {terms} is {reward:g} in all; it must be a finite number, at most "
            f"{LARGEST_REWARD:.2g} in size: lower the weights"
        )
    return reward


def is_reward(value: float) -> bool:
    """Whether a number can be a reward: it is finite, also in float32, and so is a group's mean."""
    return abs(value) <= LARGEST_REWARD  # not so of NaN


def as_reward(value: object, whom: str) -> float | None:
    """What a function returned for a completion, as a number, or None where it does not apply.

    Args:
        value: What it returned.
        whom: The function and the problem, for messages.

    Raises:
        RewardError: It is no number, or none that a reward can be.
    """
    if value is None:
        return None
    number = None
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, str | bytes):
            number = float(value)  # type: ignore[arg-type]
    if number is None:
        raise RewardError(
            f"{whom} returned {repr(value)[:100]}, of type {type(value).__name__}; it must return "
            "a number, or None where it does not apply"
        )
    if not is_reward(number):
        raise RewardError(
            f"{whom} returned {number}; it must return a finite number, at most "
            f"{LARGEST_REWARD:.2g} in size"
        )
    return number


def failed(whom: str, error: BaseException, file: str | None = None) -> str:
    """What is said of a function that raised: the error in one line, and its place.

    Args:
        whom: The function and the problem.
        error: What it raised.
        file: The function's own; the place is the last one in it, if there is one.
    """
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if place.filename == file] or places
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{whom}: {type(error).__name__}: {' '.join(str(error).split())}{where}"


def _called(name: str, function: RewardFunction, item: RewardInput) -> float | None:
    """The value of one part for one completion.

    Raises:
        RewardError: It fails, or returns something else than a number or None.
    """
    whom = f"reward function {name!r} on problem {item.problem_id!r}"
    try:
        value = function(item)
    except Exception as error:  # the user's code: told by name, with its place
        raise RewardError(failed(whom, error)) from error
    return as_reward(value, whom)
