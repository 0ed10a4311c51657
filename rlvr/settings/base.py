"""The one base class of every settings object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen record of settings: unknown keys are refused, types are not coerced.

    The docstring under a field is its help text: the command line, ``docs/settings.md`` and error
    messages all read it from there. A component's settings class lives beside the component's
    code; alternatives (engines, data sources) are classes with a literal ``name`` field, joined in
    a union that pydantic tells apart by that name, or found by a registry
    (:class:`~rlvr.settings.registered.Registered`).
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    may_change: ClassVar[frozenset[str]] = frozenset()
    """Fields that may differ between a run and its continuation, as they say where something is and
    how long one waits for it; nothing that enters a gradient."""

    @classmethod
    def refusal(cls, given: Mapping[str, Any]) -> str | None:
        """Why a recipe asks for what is left out on purpose, before it is read; None: it does not.

        Args:
            given: The recipe as it was written.
        """
        return None

    @classmethod
    def alternatives(cls, *, loaded: bool = False) -> Iterator[type[Settings]]:
        """What a field of this type may hold: the class itself, or the choices that it stands for.

        Args:
            loaded: Also those that came from outside of the package.
        """
        yield cls


def tag_of(schema: type[Settings]) -> str | None:
    """The name that a recipe chooses this class by; None where it is no choice."""
    field = schema.model_fields.get("name")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    values = get_args(field.annotation)
    return str(values[0]) if len(values) == 1 else None
