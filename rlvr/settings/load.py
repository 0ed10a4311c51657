"""YAML recipe + ``key.sub=value`` overrides -> a settings object, or one clear line of error."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlvr.settings.base import Settings
from rlvr.settings.describe import model_at, tagged_members

S = TypeVar("S", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-5`` as a string and lets a key stand twice; recipes want neither."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for index, key in enumerate(keys):
        line = node.value[index][0].start_mark.line + 1
        if not isinstance(key, (str, int, float, list)):
            raise ValueError(f"key {str(key)!r} is not text (line {line}); put it in quotes")
        if key in keys[:index]:
            raise ValueError(f"key {key!r} stands twice (line {line}); keep one of them")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def parse_yaml(text: str, where: str) -> Any:  # noqa: ANN401  (YAML holds anything)
    """Parse one YAML document safely.

    Raises:
        ValueError: The text is not YAML, or a key stands twice; ``where`` and the line are named.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{where}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:  # the reader's own faults carry no mark
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def load_settings(
    schema: type[S], source: Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> S:
    """Read a recipe and apply overrides.

    Args:
        schema: The settings class to build.
        source: A YAML file, or its content as a mapping.
        overrides: ``key.sub=value`` strings; the value is read as YAML.

    Raises:
        ValueError: Missing file, bad YAML, unknown key, wrong type, impossible combination. Every
            fault is named with its key, its value and the nearest valid names.
    """
    if isinstance(source, Path):
        if not source.is_file():
            raise ValueError(f"recipe {str(source)!r} is not a file; give the path of a YAML file")
        data, where = parse_yaml(_text_of(source), str(source)), str(source)
    else:
        data, where = json.loads(json.dumps(source)), "settings"
    if not isinstance(data, dict):
        raise ValueError(f"{where}: a recipe is a mapping of settings, not {type(data).__name__}")
    data = _with_default_names(schema, apply_overrides(data, overrides))
    refusal = schema.refusal(data)
    if refusal is not None:
        raise ValueError(f"{where}: {refusal}")
    try:
        # Through JSON, so that strict mode still takes a list for a tuple and a string for a path.
        return schema.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        faults = "; ".join(_fault(schema, detail) for detail in _causes(error.errors()))
        raise ValueError(f"{where}: {faults}") from None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is not UTF-8 text; save the recipe as UTF-8"
        ) from None


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``data`` with each ``key.sub=value`` set.

    Choosing another ``name`` for an object drops the recipe's other fields of that object: they
    belonged to the old choice.
    """
    result: dict[str, Any] = json.loads(json.dumps(data, default=str))
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


def _with_default_names(schema: type[Settings], data: dict[str, Any]) -> dict[str, Any]:
    """Where an object of a choice is given without its name, the default's name is meant.

    So ``policy_loss.low=0.1`` works whether or not the recipe spells the default loss out.
    """
    filled = dict(data)
    for name, field in schema.model_fields.items():
        given, default = data.get(name), field.get_default(call_default_factory=True)
        if not isinstance(given, dict):
            continue
        if isinstance(default, Settings) and "name" in type(default).model_fields:
            given = {"name": default.name, **given}  # type: ignore[attr-defined]
        chosen = model_at(schema, (name, given["name"]) if "name" in given else (name,))
        filled[name] = given if chosen is None else _with_default_names(chosen, given)
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


def _fault(schema: type[Settings], detail: ErrorDetails) -> str:
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
        return f"unknown name {tag!r} for {key!r}{_nearest(tag, names)}"
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
