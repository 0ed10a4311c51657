r"""Reward functions as plain callables, found by name, combined with weights.

A reward function takes a `RewardInput` and returns a float. Parameters are keyword arguments,
bound once by `resolve`, so that a recipe line such as ``{name: overlong, max_tokens: 4096}``
becomes a callable of one argument. A user's own function is named by its import path
``package.module:function``.

What a completion cut off by its token limit earns is explicit: `accuracy` gives 0 unless told
``truncated="grade"``.
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

from reward.extract import extract
from reward.verdict import Grade

RewardFunction = Callable[["RewardInput"], float]


@dataclass(frozen=True)
class RewardInput:
    """One graded completion: what a reward function may look at.

    ``num_tokens`` and ``max_tokens`` count completion tokens; ``truncated`` says that the
    completion ended at its limit and not by itself.
    """

    response: str
    gold: str
    grade: Grade
    truncated: bool = False
    num_tokens: int = 0
    max_tokens: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


def accuracy(
    item: RewardInput,
    *,
    correct: float = 1.0,
    wrong: float = 0.0,
    truncated: Literal["zero", "grade"] = "zero",
) -> float:
    """Give ``correct`` or ``wrong`` by the verdict; a truncated completion counts as wrong.

    With ``truncated="grade"`` a truncated completion is judged by what stands in it.
    """
    if item.truncated and truncated == "zero":
        return wrong
    return correct if item.grade.correct else wrong


def format_boxed(item: RewardInput, *, value: float = 1.0, penalty: float = 0.0) -> float:
    """Give ``value`` when a final answer stands in a box after any thinking, else ``penalty``."""
    return value if extract(item.response).answer is not None else penalty


_THINK = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


def format_think(item: RewardInput, *, value: float = 1.0, penalty: float = 0.0) -> float:
    """Give ``value`` for exactly one non-empty think block that opens the response, then text.

    The opening tag may be missing when the prompt's template ends with it.
    """
    text = item.response
    if "<think>" not in text:
        text = "<think>" + text
    if text.count("<think>") != 1 or text.count("</think>") != 1:
        return penalty
    match = _THINK.fullmatch(text)
    well_formed = match is not None and match.group(1).strip() and match.group(2).strip()
    return value if well_formed else penalty


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
        raise ValueError(f"overlong: buffer={buffer} must lie in 1..max_tokens={limit}")
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


FUNCTIONS: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "format_boxed": format_boxed,
    "format_think": format_think,
    "overlong": overlong,
    "repetition": repetition,
    "length": length,
}


def resolve(name: str, /, **parameters: object) -> RewardFunction:
    """Return the reward function called ``name`` with its parameters bound.

    Args:
        name: a name in `FUNCTIONS`, or an import path ``package.module:function``.
        parameters: keyword arguments of the function.

    Raises:
        ValueError: for an unknown name, a path that does not import, or a parameter the
            function does not take.
    """
    function = _imported(name) if ":" in name else FUNCTIONS.get(name)
    if function is None:
        near = get_close_matches(name, FUNCTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"reward function {name!r} is not one of {', '.join(FUNCTIONS)} and not of the form "
            f"package.module:function{hint}"
        )
    try:
        inspect.signature(function).bind(None, **parameters)
    except TypeError as error:
        raise ValueError(f"reward function {name!r}: {error}") from error
    return partial(function, **parameters) if parameters else function


def _imported(path: str) -> Callable[..., float]:
    module_name, _, attribute = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward function {path!r} cannot be imported ({error}); "
            "give package.module:function of a module that Python finds"
        ) from error
    if not callable(function):
        raise ValueError(f"reward function {path!r} is a {type(function).__name__}, not callable")
    found: Callable[..., float] = function
    return found


def combine(
    parts: Sequence[tuple[str, RewardFunction, float]],
) -> Callable[[RewardInput], tuple[float, dict[str, float]]]:
    """Return a callable giving the weighted total and each part's own (unweighted) value.

    Raises:
        ValueError: for no part, a name given twice, a weight that is not finite; and, when
            called, for a part that returns something else than a finite number.
    """
    names = [name for name, _, _ in parts]
    if not parts or len(set(names)) != len(names):
        raise ValueError(f"reward parts {names}: give at least one, each name once")
    for name, _, weight in parts:
        if not math.isfinite(weight):
            raise ValueError(f"reward part {name!r}: weight {weight} is not a finite number")

    def total(item: RewardInput) -> tuple[float, dict[str, float]]:
        values = {name: float(function(item)) for name, function, _ in parts}
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"reward part {name!r} returned {value}; a finite number is due")
        return sum(weight * values[name] for name, _, weight in parts), values

    return total
