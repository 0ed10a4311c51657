"""Settings as Python values: keywords become the overrides that the command line has.

``learner={"lr": 1e-3}`` and ``**{"learner.lr": 1e-3}`` both say ``learner.lr=0.001``, so a value
from Python goes through the same checks, with the same messages, as one of the command line.
"""

import json
from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from typing import Any, get_origin

from rlvr.settings import Settings
from rlvr.settings.describe import model_at
from rlvr.settings.registered import Registered


def overrides_of(schema: type[Settings], settings: Mapping[str, Any]) -> list[str]:
    """``key.sub=value`` for every setting.

    Args:
        schema: Of the recipe: a mapping whose names it leaves to the user is a value of its own.
        settings: Values by setting; groups as mappings, or with dots in their names.

    Raises:
        ValueError: A value is none that a recipe can hold.
    """
    return [override(key, value) for key, value in _flat(schema, settings, ())]


def override(key: str, value: Any) -> str:  # noqa: ANN401
    """``key=value`` for one setting, or for a whole group in place of another.

    Raises:
        ValueError: The value is none that a recipe can hold.
    """
    return f"{key}={json.dumps(_plain(value, key), ensure_ascii=False)}"


def _flat(
    schema: type[Settings], settings: Mapping[str, Any], above: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        key = (*above, *str(name).split("."))
        if isinstance(value, Mapping) and value and not _has_free_names(schema, key):
            yield from _flat(schema, value, key)
        else:
            yield ".".join(key), value


def _has_free_names(schema: type[Settings], key: tuple[str, ...]) -> bool:
    """Whether a setting is a mapping of names that the user chooses, which may contain dots."""
    group = model_at(schema, key[:-1])
    field = None if group is None else group.model_fields.get(key[-1])
    return field is not None and get_origin(field.annotation) is dict


def _plain(value: Any, key: str) -> Any:  # noqa: ANN401
    """A value as JSON has it.

    Raises:
        ValueError: It has no such form; the message names the setting.
    """
    if isinstance(value, Registered):
        if type(value).__module__ == "__main__":
            raise ValueError(
                f"setting {key}: class {type(value).__name__} is defined in this program or "
                "notebook, where no other process of the run finds it; write it into a file (in a "
                'notebook: %%writefile mine.py) and give {"name": "mine.py:'
                f'{type(value).__name__}"}}'
            )
        return value.as_written()
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, key) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        return value.item()
    hint = "; reward functions are given as rewards=[...]" if callable(value) else ""
    raise ValueError(
        f"setting {key} = {value!r} is a {type(value).__name__}, which no recipe can hold; give "
        f"text, a number, a list or a mapping{hint}"
    )
