"""Settings that a recipe chooses by name: the one registry of losses, advantages and their like.

A *kind* is a class that sets ``room``, the package its choices stand in::

    class PolicyLoss(Registered):
        room: ClassVar[str] = "rlvr.objective"

Every subclass with a literal ``name`` in a module of that package is one of its choices; no list
of them stands anywhere. A kind is the type of a field as it is (``policy_loss: PolicyLoss``): the
recipe's ``name`` says which subclass reads the rest. A name of the form ``file.py:Class`` or
``package.module:Class`` is a subclass from outside (:mod:`rlvr.settings.outside`), and is written
down with its absolute place.

What a choice needs of a recipe is said by attributes of its class, which the kind declares.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler, SerializationInfo, ValidationError, ValidationInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticKnownError, core_schema

from rlvr.settings.base import Settings, tag_of
from rlvr.settings.outside import is_place, load_outside, place_of

_ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")


class Registered(Settings):
    """One of several that a recipe chooses from by ``name``."""

    room: ClassVar[str]
    """The package whose modules are searched for choices; a class that sets it is a kind."""
    written: ClassVar[str] = "{part}"
    """How a recipe writes a choice down, such as ``policy_loss: {part}``."""
    paper: ClassVar[str] = ""
    """Authors, short title and arXiv number; several are separated by semicolons."""
    also_called: ClassVar[tuple[str, ...]] = ()
    """Other names that people look for it by, which a message answers with its own."""
    example: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Values of the settings that have no default, for documents and tests."""

    name: str

    @property
    def active(self) -> bool:
        """Whether it does anything at all."""
        return True

    def as_written(self, mode: str = "json") -> dict[str, Any]:
        """As any settings, but under the name by which a recipe finds the class again."""
        dumped = self.model_dump(mode=mode)
        kind: type[Registered] = next(c for c in type(self).__mro__ if "room" in vars(c))
        if kind.registry().get(self.name) is not type(self):
            dumped["name"] = place_of(type(self))
        return dumped

    @classmethod
    def registry(cls) -> dict[str, type[Self]]:
        """The choices of the package, by name."""
        _import_all(cls.room)
        found: dict[str, type[Self]] = {}
        for choice in _descendants(cls):
            name = tag_of(choice)
            if name is None or not f"{choice.__module__}.".startswith(f"{cls.room}."):
                continue
            assert name not in found, f"{choice} and {found[name]} have one name"
            found[name] = choice
        return dict(sorted(found.items()))

    @classmethod
    def written_example(cls) -> str:
        """The setting that chooses it, as a recipe writes it."""
        values = {"name": tag_of(cls), **cls.example}
        return cls.written.format(
            part=f"{{{', '.join(f'{key}: {value}' for key, value in values.items())}}}"
        )

    @classmethod
    def linked_paper(cls) -> str:
        """``paper`` in Markdown."""
        return _ARXIV.sub(r"[\1](https://arxiv.org/abs/\1)", cls.paper)

    @classmethod
    def find(cls, name: str) -> type[Self]:
        """The choice of that name, or the class at that place outside of the package.

        Raises:
            ValueError: There is none, or it lacks what this kind needs.
        """
        if not is_place(name):
            if name not in (known := cls.registry()):
                raise ValueError(f"{name!r} is none of {', '.join(known)}")
            return known[name]
        found = load_outside(name)
        if not (isinstance(found, type) and issubclass(found, cls)):
            raise ValueError(
                f"{name!r} is no {cls.__name__}; let it be a class that extends "
                f"{cls.__module__}.{cls.__name__}"
            )
        if missing := sorted(found.__abstractmethods__):
            raise ValueError(f"{name!r} lacks {', '.join(missing)}; define it in the class")
        if tag_of(found) is None:
            short = found.__name__.lower()
            raise ValueError(
                f'{name!r} has no name for the logs; write name: Literal["{short}"] = "{short}" '
                "in the class"
            )
        return found

    @classmethod
    def alternatives(cls, *, loaded: bool = False) -> Iterator[type[Settings]]:
        """The choices of a kind, with ``loaded`` also those from outside; else the class itself."""
        if "room" not in vars(cls):
            yield cls
            return
        yield from cls.registry().values()
        if loaded:
            inside = set(cls.registry().values())
            yield from (c for c in _descendants(cls) if c not in inside and tag_of(c))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        if "room" not in vars(cls):
            return handler(source)
        return core_schema.with_info_plain_validator_function(
            cls._choose,
            serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True),
        )

    @classmethod
    def _choose(cls, given: object, info: ValidationInfo) -> Self:
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise ValueError(f"a group of settings is needed, such as {{name: {given}}}")
        if "name" not in given:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'name'"})
        name = str(given["name"])
        if not is_place(name) and name not in cls.registry():
            expected = ", ".join(repr(known) for known in cls.registry())
            context = {"discriminator": "'name'", "tag": name, "expected_tags": expected}
            raise PydanticKnownError("union_tag_invalid", context)
        choice = cls.find(name)
        tag = str(tag_of(choice))
        values = {**given, "name": tag}
        read: Callable[[], Self] = (
            (lambda: choice.model_validate_json(json.dumps(values)))
            if info.mode == "json"
            else (lambda: choice.model_validate(values))
        )
        try:
            return read()
        except ValidationError as error:
            raise _within(tag, error) from None


def _dump(value: Registered, info: SerializationInfo) -> dict[str, Any]:
    return value.as_written(info.mode)


def _within(tag: str, error: ValidationError) -> ValidationError:
    """The faults with the choice in their place, as pydantic says it for unions of its own."""
    faults = [
        InitErrorDetails(
            type=detail["type"],
            loc=(tag, *detail["loc"]),
            input=detail["input"],
            ctx=detail.get("ctx", {}),
        )
        for detail in error.errors()
    ]
    return ValidationError.from_exception_data(error.title, faults)


def _descendants(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


@cache
def _import_all(room: str) -> None:
    package = import_module(room)
    for module in pkgutil.walk_packages(package.__path__, f"{room}."):
        import_module(module.name)
