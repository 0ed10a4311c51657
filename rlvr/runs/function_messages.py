"""What a run and the processes of its reward functions say to each other, as JSON.

The texts are a model's and the columns are the data's, so nothing is pickled: reading a message can
never run code. Of what JSON has no type for, bytes, dates and times come through; tuples become
lists, and keys of mappings text. Anything else (an image) is refused with its column.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import date, datetime, time
from typing import Any

from reward.calls import Notes
from reward.functions import RewardInput, UngradedInput
from reward.verdict import Grade

_TAG = "\u0000type"
_TIMES: dict[str, Any] = {"datetime": datetime, "date": date, "time": time}
_APART = ("grade", "columns", "group")
_PLAIN = tuple(item.name for item in fields(RewardInput) if item.name not in _APART)
_TUPLES = ("messages", "token_ids")


def call_message(
    unit: Sequence[RewardInput],
    state: Any,  # noqa: ANN401  (transformers is untyped)
    read: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """The completions of a call.

    Args:
        unit: The completions; where they know their group, the others of it go along.
        state: transformers' ``TrainerState``, or None.
        read: The part of a row's columns that the function may look at.

    Raises:
        TypeError: A column holds what cannot be sent.
    """
    items = list({id(one): one for item in unit for one in (item, *item.group)}.values())
    places = {id(one): place for place, one in enumerate(items)}
    return {
        "items": [_item(one, places, read(one.columns)) for one in items],
        "unit": [places[id(item)] for item in unit],
        "state": None if state is None else [state.global_step, state.max_steps],
    }


def read_call(message: Mapping[str, Any]) -> tuple[list[RewardInput], Any]:
    """What :func:`call_message` was given."""
    items = [_read_item(given) for given in message["items"]]
    for item, given in zip(items, message["items"], strict=True):
        object.__setattr__(item, "group", [items[place] for place in given["group"]])
    return [items[place] for place in message["unit"]], _read_state(message["state"])


def notes_message(notes: Notes) -> dict[str, Any]:
    """What a function logged.

    Raises:
        TypeError: A value cannot be sent.
    """
    extra = {name: sendable(values, f"log_extra {name!r}") for name, values in notes.extra.items()}
    return {"extra": extra, "metrics": notes.metrics}


def read_notes(message: Mapping[str, Any]) -> Notes:
    """What :func:`notes_message` was given."""
    extra = {name: received(values) for name, values in message["extra"].items()}
    return Notes(extra, [(name, value) for name, value in message["metrics"]])


def sendable(value: Any, where: str) -> Any:  # noqa: ANN401  (data holds anything)
    """A value as JSON.

    Raises:
        TypeError: It cannot be sent; the message says where it stands.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): sendable(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [sendable(item, where) for item in value]
    if isinstance(value, bytes):
        return {_TAG: "bytes", "text": base64.b64encode(value).decode("ascii")}
    if isinstance(value, date | time):
        return {_TAG: type(value).__name__, "text": value.isoformat()}
    if hasattr(value, "tolist"):  # numbers and arrays of numpy and torch
        return sendable(value.tolist(), where)
    raise TypeError(
        f"{where} holds a {type(value).__name__}, which cannot be sent to a function's workers; "
        "leave workers out, or the column"
    )


def received(value: Any) -> Any:  # noqa: ANN401
    """What :func:`sendable` was given."""
    if isinstance(value, list):
        return [received(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_TAG)
    if kind == "bytes":
        return base64.b64decode(value["text"])
    if kind in _TIMES:
        return _TIMES[kind].fromisoformat(value["text"])
    return {key: received(item) for key, item in value.items()}


def _item(item: RewardInput, places: Mapping[int, int], columns: Mapping[str, Any]) -> Any:  # noqa: ANN401
    own = vars(item)  # as it stands: an ungraded one answers no question for its verdict
    graded = not isinstance(item, UngradedInput)
    return {
        **{name: sendable(own[name], name) for name in _PLAIN},
        "grade": asdict(own["grade"]) if graded else None,
        "columns": {name: sendable(value, f"column {name!r}") for name, value in columns.items()},
        "group": [places[id(one)] for one in own["group"]],
    }


def _read_item(given: Mapping[str, Any]) -> RewardInput:
    own = {name: received(given[name]) for name in _PLAIN}
    own |= {name: tuple(own[name]) for name in _TUPLES}
    own["thoughts"] = tuple(map(tuple, own["thoughts"]))
    own["columns"] = {name: received(value) for name, value in given["columns"].items()}
    if given["grade"] is not None:
        return RewardInput(grade=Grade(**given["grade"]), **own)
    return UngradedInput(grade=Grade(False, None, "unknown", "none", "not graded"), **own)


def _read_state(given: Sequence[int] | None) -> Any:  # noqa: ANN401
    if given is None:
        return None
    from transformers import TrainerState

    return TrainerState(global_step=given[0], max_steps=given[1])
