"""The methods that a recipe uses, described in words, with links to their papers.

Nothing is written twice: names come from the settings, descriptions from the docstrings of their
classes, and papers from a loss's ``paper`` or from the arXiv numbers in the docstrings of the
methods' files.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlvr.settings import Settings

_ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")

# The parts of a recipe that determine how it learns, with their names for readers.
_PARTS = {
    "losses": "preference loss",
    "objective": "objective",
    "loss": "loss",
    "head": "head",
    "advantage": "advantage",
    "policy_loss": "policy loss",
    "prime": "process rewards",
    "correction": "correction",
    "filters": "token filter",
    "regularisers": "regulariser",
    "reducer": "reduction",
}
_SWITCHES = {
    "ld_alpha": ("length desensitising (LD-DPO)", "2409.06411"),
    "weighting": ("weighting of pairs by the policy (WPO)", "2406.11827"),
}
_LORA = "2106.09685"


@dataclass(frozen=True)
class Method:
    """One method: its role, name, changed settings, description and arXiv numbers."""

    role: str
    name: str
    settings: str
    meaning: str
    papers: tuple[str, ...]


def methods_of(recipe: Settings) -> list[Method]:
    """The methods of a recipe in reading order, without parts that do nothing."""
    parts = dict(_PARTS)
    if hasattr(recipe, "objective"):  # it is equivalent to a preference loss
        del parts["losses"]
    found = [
        _method(role, chosen)
        for field, role in parts.items()
        for chosen in _chosen(getattr(recipe, field, None))
        if getattr(chosen, "active", True)
    ]
    for field, (words, paper) in _SWITCHES.items():
        value = getattr(recipe, field, None)
        if value:
            shown = "" if value is True else f"{field} {value:g}"
            found.append(Method("modifier", field, shown, words, (paper,)))
    lora = getattr(recipe.model, "lora", None)  # type: ignore[attr-defined]
    if lora is not None:
        meaning = "Low-rank adapters; the base model does not change."
        found.append(Method("trained weights", "LoRA", _changed(lora), meaning, (_LORA,)))
    return found


def papers_of(methods: Sequence[Method]) -> list[str]:
    """The arXiv numbers of all methods, each once."""
    return list(dict.fromkeys(paper for method in methods for paper in method.papers))


def _chosen(value: Any) -> Iterator[Settings]:  # noqa: ANN401
    if isinstance(value, Settings):
        yield value
    elif isinstance(value, tuple):
        yield from (item for item in value if isinstance(item, Settings))


def _name(settings: Settings) -> str:
    named = getattr(settings, "name", None)
    return str(named or type(settings).__name__.removesuffix("Settings").lower())


def _method(role: str, settings: Settings) -> Method:
    meaning = (type(settings).__doc__ or "").strip().partition("\n\n")[0]
    return Method(
        role,
        _name(settings),
        _changed(settings),
        " ".join(meaning.split()),
        _papers(settings),
    )


def _changed(settings: Settings) -> str:
    """The scalar settings as ``key value``."""
    values = settings.model_dump(mode="json")
    return ", ".join(
        f"{key} {value}"
        for key, value in values.items()
        if key != "name" and value is not None and not isinstance(value, dict | list)
    )


def _papers(settings: Settings) -> tuple[str, ...]:
    """Papers from the class's docstring; else from its file, or the lines of the file that name it.

    An objective that is equivalent to a preference loss also has that loss's papers.
    """
    kind = type(settings)
    own = str(getattr(kind, "paper", "")) or (kind.__doc__ or "")
    about = sys.modules[kind.__module__].__doc__ or ""
    if _methods_in(kind.__module__) > 1:
        about = "\n".join(line for line in about.splitlines() if _name(settings) in line.split())
    numbers = _ARXIV.findall(own) or _ARXIV.findall(about)
    numbers += _ARXIV.findall(str(getattr(getattr(settings, "loss", None), "paper", "")))
    return tuple(dict.fromkeys(numbers))


def _methods_in(module: str) -> int:
    """Number of methods that a file defines."""
    return sum(
        isinstance(item, type)
        and issubclass(item, Settings)
        and item.__module__ == module
        and "name" in item.model_fields
        for item in vars(sys.modules[module]).values()
    )
