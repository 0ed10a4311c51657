"""Data as Python gives them, as the settings of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from rlvr.api.inputs import Inputs, Rows, rows_of
from rlvr.api.settings_given import override, overrides_of
from rlvr.data.local_file import FORMATS
from rlvr.settings import Settings
from rlvr.tasks.registry import Task

_EVALUATED = ("pairs", "traces", "responses", "sets")
"""Where the tasks' recipes name held-out data of the kind that they train on."""
_NO_METADATA = frozenset({"id", "problem", "answer"})


@dataclass
class DataGiven:
    """Training and held-out data; rows in memory become files of ``inputs``."""

    task: Task
    inputs: Inputs
    data: Any
    eval_data: Any
    count: int | None = None
    """How many training rows there are, where they are in memory."""

    def overrides(self) -> list[str]:
        """The settings that name the data.

        Raises:
            ValueError: They are nothing that holds rows.
        """
        said: list[str] = []
        if isinstance(self.data, Mapping) and not _is_splits(self.data):
            said += overrides_of(self.task.schema, {"data": self.data})
        elif self.data is not None:
            source = self._source("data", self.data)
            said.append(override(f"data.{self._key}", source))
        if self.eval_data is not None:
            sets = self.eval_data if isinstance(self.eval_data, Mapping) else None
            named = {"held_out": self.eval_data} if sets is None else sets
            key = next(name for name in _EVALUATED if name in self._fields("evaluation"))
            found = {name: self._source(f"eval_{name}", rows) for name, rows in named.items()}
            said.append(override(f"evaluation.{key}", found))
        return said

    def _fields(self, group: str) -> Any:  # noqa: ANN401
        schema: Any = self.task.schema.model_fields[group].annotation
        return schema.model_fields

    @property
    def _key(self) -> str:
        return "sources" if "sources" in self._fields("data") else "source"

    def _source(self, name: str, data: Any) -> Any:  # noqa: ANN401
        """Data as the recipe names them."""
        if isinstance(data, Settings):
            return data.model_dump(mode="json")
        if isinstance(data, Mapping) and not _is_splits(data):
            return dict(data)
        if isinstance(data, str | PathLike):
            return _named(data) if self._key == "source" else [str(data)]
        rows = rows_of(name, data)
        if name == "data":
            self.count = len(rows)
        path = self.inputs.add_rows(name, rows)
        if self._key == "sources":
            return [str(path)]
        source: dict[str, Any] = {"name": "file", "path": str(path)}
        return source | (_with_metadata(rows) if self.task.name == "rl" else {})


def _named(data: "str | PathLike[str]") -> dict[str, Any]:
    """A source of problems or preferences by its path or its id on the Hub."""
    path = Path(data).expanduser()
    local = path.exists() or path.suffix.lower() in FORMATS or str(data).startswith((".", "/", "~"))
    return {"name": "file", "path": str(path)} if local else {"name": "hub", "path": str(data)}


def _with_metadata(rows: Rows) -> dict[str, Any]:
    """All other columns go to the reward functions, as ``metadata``."""
    columns = dict.fromkeys(column for row in rows for column in row)
    names = [name for name in columns if name not in _NO_METADATA]
    return {"fields": {"metadata": names}} if names else {}


def _is_splits(data: Mapping[str, Any]) -> bool:
    """Whether a mapping is that of a data set's splits."""
    return any(hasattr(value, "column_names") for value in data.values())
