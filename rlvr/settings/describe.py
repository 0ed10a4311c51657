"""Walk a settings schema: help texts for people, field lookups for error messages."""

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic_core import PydanticUndefined

from rlvr.settings.base import Settings, tag_of
from rlvr.settings.registered import Registered


@dataclass(frozen=True)
class FieldDescription:
    """One setting: its dotted key, type, default (as text) and help."""

    key: str
    type: str
    default: str
    help: str


INHERIT = FieldDescription(
    "base",
    "path or null",
    "null",
    "Another recipe whose settings hold where this one says nothing; relative to this file.",
)
"""What a recipe file may say besides the settings of its schema."""


def describe(
    schema: type[Settings], prefix: str = "", seen: dict[type[Settings], str] | None = None
) -> Iterator[FieldDescription]:
    """Every setting under ``schema``, depth first; the choices of a union follow their field.

    A group that stands in several places is spelled out at the first.
    """
    seen = {} if seen is None else seen
    for name, field in schema.model_fields.items():
        key, annotation = f"{prefix}{name}", field.annotation
        if name == "name" and tag_of(schema):
            continue
        default = (
            "required"
            if field.is_required()
            else _default_text(field.get_default(call_default_factory=True))
        )
        help_text = " ".join((field.description or "").split())
        yield FieldDescription(key, _type_text(annotation), default, help_text)
        yield from _describe_members(key, list(_settings_members(annotation)), seen)


def _describe_members(
    key: str, members: list[type[Settings]], seen: dict[type[Settings], str]
) -> Iterator[FieldDescription]:
    for member in members:
        tag = tag_of(member)
        choice = f"{key}[{tag}]" if tag and len(members) > 1 else key
        summary = " ".join((member.__doc__ or "").strip().split("\n\n")[0].split())
        if member in seen:
            yield FieldDescription(choice, "group", "", f"{summary} Settings as {seen[member]}.")
            continue
        seen[member] = choice
        if choice != key:
            yield FieldDescription(choice, "choice", "", summary)
        yield from describe(member, f"{choice}.", seen)


def markdown_table(fields: Sequence[FieldDescription]) -> str:
    """The descriptions as a Markdown table."""
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for item in fields:
        cells = (f"`{item.key}`", item.type, f"`{item.default}`" if item.default else "", item.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def model_at(schema: type[Settings], location: Sequence[str | int]) -> type[Settings] | None:
    """The settings class that sits at a pydantic error location, or None."""
    model: type[Settings] | None = schema
    annotation: Any = schema
    for part in location:
        members = {tag_of(member): member for member in _settings_members(annotation, loaded=True)}
        if part in members:
            model = members[str(part)]
            annotation = model
        elif model is not None and part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
            found = list(_settings_members(annotation))
            model = found[0] if found else None
        elif isinstance(part, int):
            continue
        elif get_origin(annotation) is dict:  # a name that the user chose
            annotation = get_args(annotation)[1]
        else:
            return None
    return model


def tagged_members(schema: type[Settings], location: Sequence[str | int]) -> set[str]:
    """The names one can choose from at a location; empty where there is no such choice."""
    return {tag for member in _choices(schema, location) if (tag := tag_of(member))}


def own_name(schema: type[Settings], location: Sequence[str | int], word: str) -> str | None:
    """The name of the choice at a location that people also call ``word``, or None."""
    for member in _choices(schema, location):
        if word.lower() in getattr(member, "also_called", ()):
            return tag_of(member)
    return None


def _choices(schema: type[Settings], location: Sequence[str | int]) -> list[type[Settings]]:
    annotation = _field_annotation(schema, location)
    if annotation is None and location:  # perhaps an element of a list or mapping of choices
        annotation = _field_annotation(schema, location[:-1])
        if get_origin(annotation) not in (tuple, list, dict):
            return []
    elif get_origin(annotation) in (tuple, list, dict):
        return []
    return list(_settings_members(annotation, loaded=True))


def _field_annotation(schema: type[Settings], location: Sequence[str | int]) -> Any:  # noqa: ANN401
    """The type of the field at a location, or None where no field is."""
    parent = model_at(schema, location[:-1]) if location else None
    if parent is None or location[-1] not in parent.model_fields:
        return None
    return parent.model_fields[str(location[-1])].annotation


def _settings_members(
    annotation: Any,  # noqa: ANN401
    *,
    loaded: bool = False,
) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield from annotation.alternatives(loaded=loaded)
    else:
        for argument in get_args(annotation):
            yield from _settings_members(argument, loaded=loaded)


def _takes_outside(annotation: Any) -> bool:  # noqa: ANN401
    """Whether a class from outside may be named there."""
    if isinstance(annotation, type) and issubclass(annotation, Registered):
        return True
    return any(_takes_outside(argument) for argument in get_args(annotation))


def _literal(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return get_args(annotation) if get_origin(annotation) is typing.Literal else ()


def _type_text(annotation: Any) -> str:  # noqa: ANN401
    members = list(_settings_members(annotation))
    if members:
        outside = ["file.py:Class"] if _takes_outside(annotation) else []
        return " or ".join([*(tag_of(member) or "group" for member in members), *outside])
    if _literal(annotation):
        return " or ".join(repr(value) for value in _literal(annotation))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(argument) for argument in arguments)
    if origin is typing.Annotated:
        return _type_text(arguments[0])
    if annotation is type(None):
        return "null"
    return "list" if origin in (tuple, list) else getattr(annotation, "__name__", str(annotation))


def _default_text(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Settings):
        return tag_of(type(value)) or "see below"
    if isinstance(value, tuple):
        return f"[{', '.join(_default_text(item) for item in value)}]"
    return "null" if value is None else repr(value)
