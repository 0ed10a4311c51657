"""The one base class of every settings object."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen record of settings: unknown keys are refused, types are not coerced.

    The docstring under a field is its help text: the command line, ``docs/settings.md`` and error
    messages all read it from there. A component's settings class lives beside the component's
    code; alternatives (losses, engines, data sources) are classes with a literal ``name`` field,
    joined in a union that pydantic tells apart by that name.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @classmethod
    def refusal(cls, given: Mapping[str, Any]) -> str | None:
        """Why a recipe asks for what is left out on purpose, before it is read; None: it does not.

        Args:
            given: The recipe as it was written.
        """
        return None
