"""A recipe may inherit from another: ``base: other.yaml`` names it, relative to the recipe.

What the recipe says is laid over what its base says, and a base may have a base of its own:

- Mappings merge, key by key and however deep.
- Everything else replaces what the base has there: values, lists, and a mapping whose ``name`` is
  another (another loss, another engine), since settings of the old choice mean nothing to the new.
- ``null`` takes away what the base has there: the setting is null, or its default where it takes no
  null.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.settings.outside import with_absolute_places
from rlvr.settings.parse import read_yaml

BASE = "base"
_MISSING = object()


@dataclass(frozen=True)
class Recipe:
    """Settings as they were written.

    Attributes:
        data: All of them as one mapping, without ``base``.
        layers: What each source says by itself, the last word first: the command line (None), the
            recipe, its base, that one's base.
    """

    data: dict[str, Any]
    layers: tuple[tuple[Path | None, dict[str, Any]], ...] = ()

    def inherited_from(self, key: Sequence[str]) -> Path | None:
        """The base that a value came from, or its group where it is nowhere; None: from no base."""
        while key and _value(self.data, key) is _MISSING:
            key = key[:-1]
        source = next((source for source, _ in self._saying(key)), None) if key else None
        recipe = next((source for source, _ in self.layers if source is not None), None)
        return None if source == recipe else source

    def clears(self, key: Sequence[str]) -> bool:
        """Whether a file says null in order to take away what a base of it says."""
        source, last = next(self._saying(key), (None, _MISSING))
        return (
            source is not None
            and last is None
            and any(value is not None for _, value in self._saying(key))
        )

    def _saying(self, key: Sequence[str]) -> Iterator[tuple[Path | None, Any]]:
        for source, data in self.layers:
            value = _value(data, key)
            if value is not _MISSING:
                yield source, value


def read_recipe(path: Path) -> Recipe:
    """Read a recipe and what it inherits.

    Raises:
        ValueError: No such file, bad YAML, no mapping, or bases that lead in a circle.
    """
    if not path.is_file():
        raise ValueError(f"recipe {str(path)!r} is not a file; give the path of a YAML file")
    layers: list[tuple[Path, dict[str, Any]]] = []
    following: Path | None = path
    while following is not None:
        if following.resolve() in [known.resolve() for known, _ in layers]:
            chain = " -> ".join(
                str(known) for known in (*(known for known, _ in layers), following)
            )
            raise ValueError(f"{path}: bases lead in a circle, {chain}; take one of them out")
        data = _mapping(following)
        base = _base(following, data.pop(BASE, None))
        layers.append((following, data))
        following = base
    merged: dict[str, Any] = {}
    for _, data in reversed(layers):
        merged = _merged(merged, data)
    return Recipe(merged, tuple(layers))


def _mapping(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a recipe is a mapping of settings, not {type(data).__name__}")
    plain: dict[str, Any] = json.loads(json.dumps(data, default=str))
    places: dict[str, Any] = with_absolute_places(plain, path.parent)
    return places


def _base(path: Path, named: object) -> Path | None:
    if named is None:
        return None
    base = path.parent / str(named)
    if not isinstance(named, str) or not base.is_file():
        raise ValueError(
            f"{path}: base {named!r} is not a file in {str(path.parent)!r}; give the path of "
            "another recipe, relative to this one"
        )
    return base


def _merged(base: dict[str, Any], heir: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in heir.items():
        old = base.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            other_choice = "name" in value and old.get("name") != value["name"]
            value = value if other_choice else _merged(old, value)
        result[name] = value
    return result


def _value(data: Any, key: Sequence[str]) -> Any:  # noqa: ANN401
    for name in key:
        if not isinstance(data, dict) or name not in data:
            return _MISSING
        data = data[name]
    return data
