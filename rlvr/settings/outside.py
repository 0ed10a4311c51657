"""Code of the user's own, named by its place: ``file.py:Name`` or ``package.module:Name``.

A recipe may name a class or a function of a file wherever it may name one of ours. A relative file
is looked for beside the recipe that names it, then in the working directory; a module is looked for
where Python finds its own, then in the working directory. A run records the absolute path of a
file, so that every process and every continuation finds the same file. Importing it runs
it, as any import does. The module has a name of its own in ``sys.modules``: a file called
``reward.py`` shadows nothing.

This stands in ``rlvr.settings`` because both rooms of parts and the rewards of a run need it, and
``reward``, which knows nothing of rlvr, is handed the function itself.
"""

import hashlib
import os
import re
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from rlvr.lazy import working_directory_last

_PREFIX = "outside_"
_OF_FILE = re.compile(r".+\.py:\w+")


def is_place(name: str) -> bool:
    """Whether a name in a recipe is that of the user's own code."""
    return ":" in name


def last_word(place: str) -> str:
    """What is defined at a place, for people and metrics: ``score`` of ``file.py:make.<score>``."""
    return re.findall(r"\w+", place)[-1]


def load_outside(place: str) -> Any:  # noqa: ANN401
    """The class or function at a place.

    Raises:
        ValueError: There is no such file, module or name, or its import fails.
    """
    if isinstance(place, Given):
        return place.found
    where, _, name = place.rpartition(":")
    if is_lost(place) and not hasattr(sys.modules.get(where), name):
        raise ValueError(
            f"{place!r} was given in Python and cannot be found from here: go on from Python with "
            "the same function, or write it into a file and name it as file.py:"
            f"{last_word(name)}"
        )
    module = _module_of_file(where) if where.endswith(".py") else _module_called(where, place)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [n for n, value in vars(module).items() if _defined_in(module, value)]
        near = get_close_matches(name, dir(module), n=1)  # also what it imports, or lazily
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"{where} has no {name!r}{hint}; it defines {', '.join(public) or 'nothing'}"
        ) from None


def place_of(found: type) -> str:
    """Where :func:`load_outside` finds this class again, in any process."""
    module = sys.modules[found.__module__]
    of_file = module.__name__.startswith(_PREFIX) or module.__name__ == "__main__"
    where = os.path.abspath(str(module.__file__)) if of_file else module.__name__
    return f"{where}:{found.__qualname__}"


class Given(str):
    """The place of a function that was given in Python, and the function.

    A recipe records the place as text; whether :func:`load_outside` finds the function there in
    another process depends on the place (:func:`is_lost`).
    """

    __slots__ = ("found",)
    found: Any


_on_the_way: dict[str, Given] = {}
"""Functions of recipes that are being read: JSON, which recipes go through, carries their key."""


def given(found: Any) -> Given:  # noqa: ANN401
    """A function that stands in a recipe, with what the recipe records of it.

    That is module:qualname, or file.py:name for what a script or a loaded file defines. What
    cannot be found again by its name has ``<...>`` in it: lambdas, functions in functions, objects.
    """
    inner = found
    while hasattr(inner, "func") and not hasattr(inner, "__qualname__"):
        inner = inner.func  # of functools.partial
    name = getattr(inner, "__qualname__", None) or getattr(inner, "__name__", None)
    name = name or type(inner).__name__
    module = sys.modules.get(getattr(inner, "__module__", None) or "__main__")
    where = "__main__" if module is None else module.__name__
    if module is not None and getattr(module, name, None) is found:
        if where.startswith(_PREFIX) or (where == "__main__" and _is_script(module)):
            where = os.path.abspath(str(module.__file__))
    elif "<" not in name:
        name = f"<{name}>"
    place = Given(f"{where}:{name}")
    place.found = found
    return place


def _is_script(module: ModuleType) -> bool:
    return str(getattr(module, "__file__", None) or "").endswith(".py")


def is_lost(place: str) -> bool:
    """Whether no other process can find what was given in Python under this place."""
    where, _, name = place.rpartition(":")
    return where == "__main__" or "<" in name


def as_json(value: object) -> str:
    """What JSON holds for a value that it has no type for: a function's key, or the text."""
    if not callable(value):
        return str(value)
    place = given(value)
    key = f"{place} #{len(_on_the_way) + 1}"
    _on_the_way[key] = place
    return key


def from_json(text: str) -> str:
    """The place, with its function, that :func:`as_json` wrote a key of; other text unchanged."""
    return _on_the_way.get(text, text)


def with_absolute_places(data: Any, folder: Path) -> Any:  # noqa: ANN401
    """A recipe's data, its ``file.py:Name`` made absolute where the file is in ``folder``."""
    if isinstance(data, dict):
        return {key: with_absolute_places(value, folder) for key, value in data.items()}
    if isinstance(data, list):
        return [with_absolute_places(value, folder) for value in data]
    if isinstance(data, str) and _OF_FILE.fullmatch(data):
        file = data.rpartition(":")[0]
        path = os.path.abspath(folder / file)
        return path + data[len(file) :] if os.path.isfile(path) else data
    return data


def _module_of_file(file: str) -> ModuleType:
    path = Path(os.path.abspath(file))
    if not path.is_file():
        raise ValueError(
            f"there is no file {file!r} (looked for beside the recipe and in the working "
            "directory); give file.py:Name, relative to the recipe or absolute"
        )
    running = sys.modules["__main__"]
    if os.path.abspath(str(getattr(running, "__file__", ""))) == str(path):
        return running  # importing the script that runs would run it again
    # By its content too: who edits a file in a notebook and runs again gets what it says now.
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()[:12]
    name = f"{_PREFIX}{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # before it runs: pydantic resolves its annotations there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {_in_one_line(error)}") from error
    return module


def _module_called(name: str, place: str) -> ModuleType:
    try:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0] or os.getcwd() in sys.path:
                raise
            working_directory_last()
            return import_module(name)
    except Exception as error:
        raise ValueError(
            f"{place!r} cannot be imported ({_in_one_line(error)}); give file.py:Name, or "
            "package.module:Name of a module that Python finds"
        ) from error


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _defined_in(module: ModuleType, value: object) -> bool:
    return getattr(value, "__module__", None) == module.__name__ and callable(value)
