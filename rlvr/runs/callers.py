"""What only a Python program can give a run, besides its recipe: a loaded model and callbacks."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Callback = Callable[[int, dict[str, float]], object]
"""Called after every step with its number (from 1) and its metrics; True ends the run."""


class StopTraining(Exception):
    """Raised by a callback: end the run after this step, as if it had been the last."""


class CallbackError(ValueError):
    """A callback failed; the message names it, the step and the place."""


@dataclass(frozen=True)
class CallerObjects:
    """What the caller of a run holds in memory; a run from the command line has none of it.

    Attributes:
        model: A causal LM of transformers that is trained as it is, instead of being loaded.
        callbacks: Called after every step, on the first rank.
        command: How the run was started, for its record; None is the command line.
        began: When its process began, in seconds since the epoch; None counts from the call.
    """

    model: Any = None
    callbacks: tuple[Callback, ...] = ()
    command: tuple[str, ...] | None = None
    began: float | None = None


NO_CALLER = CallerObjects()
"""Of a run from the command line."""


def wants_to_stop(callbacks: tuple[Callback, ...], step: int, metrics: Mapping[str, float]) -> bool:
    """Call every callback; whether one of them ends the run.

    Raises:
        CallbackError: One failed.
    """
    answers = [_asked(callback, step, metrics) for callback in callbacks]
    return any(answers)


def _asked(callback: Callback, step: int, metrics: Mapping[str, float]) -> bool:
    try:
        return callback(step, dict(metrics)) is True
    except StopTraining:
        return True
    except Exception as error:  # the user's code: told by name, with its place
        name = getattr(callback, "__name__", type(callback).__name__)
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise CallbackError(
            f"callback {name!r} failed after step {step}: {type(error).__name__}: {error} "
            f"({place.filename}, line {place.lineno})"
        ) from error
