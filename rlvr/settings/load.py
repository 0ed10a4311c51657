"""YAML recipe + ``key.sub=value`` overrides -> a settings object, or one clear line of error."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlvr.settings.base import Settings
from rlvr.settings.describe import model_at, own_name, tagged_members
from rlvr.settings.inherit import Recipe, read_recipe
from rlvr.settings.outside import as_json, with_absolute_places
from rlvr.settings.parse import parse_yaml

S = TypeVar("S", bound=Settings)


def load_settings(
    schema: type[S], source: Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> S:
    """Read a recipe and apply overrides.

    Args:
        schema: The settings class to build.
        source: A YAML file, which may inherit (:mod:`rlvr.settings.inherit`), or a mapping.
        overrides: ``key.sub=value`` strings; the value is read as YAML.

    Raises:
        ValueError: Missing file, bad YAML, unknown key, wrong type, impossible combination. Every
            fault is named with its key, its value and the nearest valid names.
    """
    recipe = read_recipe(source) if isinstance(source, Path) else Recipe(dict(source))
    where = str(source) if isinstance(source, Path) else "settings"
    said = (None, apply_overrides({}, overrides))
    data = with_absolute_places(apply_overrides(recipe.data, overrides), Path.cwd())
    recipe = Recipe(data, (said, *recipe.layers))
    data = _filled(schema, recipe.data, recipe)
    refusal = schema.refusal(data)
    if refusal is not None:
        raise ValueError(f"{where}: {refusal}")
    try:
        # Through JSON, so that strict mode still takes a list for a tuple and a string for a path.
        return schema.model_validate_json(json.dumps(data, default=as_json))
    except ValidationError as error:
        faults = "; ".join(_fault(schema, recipe, detail) for detail in _causes(error.errors()))
        raise ValueError(f"{where}: {faults}") from None


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``data`` with each ``key.sub=value`` set.

    Choosing another ``name`` for an object drops the recipe's other fields of that object: they
    belonged to the old choice.
    """
    result: dict[str, Any] = json.loads(json.dumps(data, default=as_json))
    parsed = [_parse_override(text) for text in overrides]
    # Names first, so that `policy_loss.low=0.1 policy_loss.name=clip` means the same either way.
    for keys, value in sorted(parsed, key=lambda item: item[0][-1] != "name"):
        target = result
        for depth, key in enumerate(keys[:-1]):
            nested = target.setdefault(key, {})
            if nested is None:
                nested = target[key] = {}
            if not isinstance(nested, dict):
                path = ".".join(keys[: depth + 1])
                raise ValueError(
                    f"override {'.'.join(keys)}={value!r}: {path!r} is {nested!r}, not a group of "
                    "settings"
                )
            target = nested
        if keys[-1] == "name" and target.get("name") != value:
            target.clear()
        target[keys[-1]] = value
    return result


def _filled(
    schema: type[Settings], data: dict[str, Any], recipe: Recipe, start: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The settings, with what they leave to the schema.

    An object of a choice that is given without its name has the default's, so that
    ``policy_loss.low=0.1`` works whether or not the recipe spells the default loss out. A null that
    takes a base's value away leaves the default where the setting takes no null.
    """
    filled = dict(data)
    for name, field in schema.model_fields.items():
        given, default = data.get(name), field.get_default(call_default_factory=True)
        key = (*start, name)
        if given is None and recipe.clears(key) and type(None) not in get_args(field.annotation):
            filled.pop(name, None)
        if not isinstance(given, dict):
            continue
        if isinstance(default, Settings) and "name" in type(default).model_fields:
            given = {"name": default.name, **given}  # type: ignore[attr-defined]
        chosen = model_at(schema, (name, given["name"]) if "name" in given else (name,))
        filled[name] = given if chosen is None else _filled(chosen, given, recipe, key)
    return filled


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"override {_short(text)} is not of the form key.sub=value")
    return keys, parse_yaml(value, f"override {_short(text)}")


def to_yaml(settings: Settings) -> str:
    """The settings as YAML that :func:`load_settings` reads back to an equal object."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _causes(details: Sequence[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Without lists that are too short only because an element of theirs was refused."""
    places = [detail["loc"] for detail in details]
    for detail in details:
        own = detail["loc"]
        within = any(len(at) > len(own) and at[: len(own)] == own for at in places)
        if not (detail["type"] == "too_short" and within):
            yield detail


def _fault(schema: type[Settings], recipe: Recipe, detail: ErrorDetails) -> str:
    """A fault in one line, with the file that the value came from where that is a base."""
    base = recipe.inherited_from([*_readable(schema, detail["loc"])])
    return _described(schema, detail) + (f" (from {base})" if base is not None else "")


def _described(schema: type[Settings], detail: ErrorDetails) -> str:
    """One validation fault in one line: the key, what is wrong, the nearest valid names."""
    location, value = detail["loc"], _short(detail["input"])
    key = ".".join(_readable(schema, location)) or "recipe"
    model = model_at(schema, location[:-1])
    if detail["type"] == "extra_forbidden":
        names = list(model.model_fields) if model else []
        return f"unknown setting {key!r} (value {value}){_nearest(str(location[-1]), names)}"
    if detail["type"] == "missing":
        return f"setting {key!r} is required and missing"
    if detail["type"] == "union_tag_invalid":
        tag = str(detail["ctx"]["tag"])
        names = [name.strip("' ") for name in str(detail["ctx"]["expected_tags"]).split(",")]
        own = own_name(schema, location, tag)
        hint = _nearest(tag, names) if own is None else f"; here it is {own!r}"
        return f"unknown name {tag!r} for {key!r}{hint}"
    if detail["type"] == "union_tag_not_found":
        names = sorted(tagged_members(schema, location))
        return f"{key!r} = {value} does not say which: give it a name, one of {', '.join(names)}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[:1].lower() + message[1:]
    return f"{key!r} = {value}: {message}" if location else message


def _readable(schema: type[Settings], location: Sequence[str | int]) -> Iterator[str]:
    """The location as a user writes it: without the union tags that pydantic puts in."""
    for depth, part in enumerate(location):
        if part not in tagged_members(schema, location[:depth]):
            yield str(part)


def _nearest(word: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(repr(name) for name in close)}?"
    return f"; valid names: {', '.join(sorted(names))}" if names else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
