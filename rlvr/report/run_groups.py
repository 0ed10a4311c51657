"""What runs have in common and what tells them apart, by their recipes.

Runs that differ only in ``seed`` and in where they write are repetitions of one experiment: they
form a group, whose curves are drawn as a mean and a band.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlvr.report.recorded_run import RunFolder

REPETITION = ("seed", "output", "hub", "log")
"""Settings whose sections do not tell experiments apart: the seed, and where records go."""
UNINTERESTING = ("output", "hub")
PARENT = "started from"
MOST_IN_LABEL = 3


@dataclass(frozen=True)
class RunGroup:
    """Runs that are repetitions of one experiment: indices into the list of runs."""

    label: str
    runs: tuple[int, ...]


def flatten(value: object, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; lists stay whole."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        key: leaf
        for name, item in value.items()
        for key, leaf in flatten(item, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def differing(runs: Sequence[RunFolder]) -> dict[str, list[str | None]]:
    """The settings in which runs differ: a value for each run as text, None where it is not set.

    The folder and the Hub repository always differ and are left out. A run that was started from
    another run's checkpoint has that as its setting ``started from``.
    """
    flat = [_settings(run) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = {
        key: [_text(settings[key]) if key in settings else None for settings in flat]
        for key in keys
        if key.partition(".")[0] not in UNINTERESTING
    }
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def group_runs(runs: Sequence[RunFolder], names: Sequence[str]) -> list[RunGroup]:
    """Groups of runs that differ only in seed and destination, in order of first occurrence.

    A group is labelled by the settings that tell it from other groups, or, where these are many,
    by the name of its first run.
    """
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        settings = {
            k: v for k, v in _settings(run).items() if k.partition(".")[0] not in REPETITION
        }
        key = json.dumps(settings, sort_keys=True, default=str)
        groups.setdefault(key, []).append(index)
    firsts = [members[0] for members in groups.values()]
    apart = {
        key: values
        for key, values in differing([runs[first] for first in firsts]).items()
        if key.partition(".")[0] not in REPETITION
    }
    if len(firsts) == 1 < len(runs):
        return [RunGroup("all runs", tuple(range(len(runs))))]
    labels = [_label(apart, place, names[first]) for place, first in enumerate(firsts)]
    return [
        RunGroup(label if labels.count(label) == 1 else names[members[0]], tuple(members))
        for label, members in zip(labels, groups.values(), strict=True)
    ]


def _label(apart: Mapping[str, Sequence[str | None]], place: int, name: str) -> str:
    if not 0 < len(apart) <= MOST_IN_LABEL:
        return name
    parts = [
        f"{key.rpartition('.')[2]} {values[place] or 'unset'}" for key, values in apart.items()
    ]
    text = ", ".join(parts)
    return text if len(text) <= 60 else name


def _settings(run: RunFolder) -> dict[str, Any]:
    settings = flatten(run.recipe)
    parent = run.info.get("parent") or run.info.get("from")
    return settings if not parent else {PARENT: _parent(parent), **settings}


def _parent(value: object) -> str:
    """A parent as ``FOLDER, step N``, if its record says so; otherwise as it is."""
    if isinstance(value, Mapping):
        folder = value.get("run") or value.get("folder") or value.get("path")
        if folder is not None:
            step = value.get("step")
            return f"{folder}, step {step}" if step is not None else str(folder)
    return _text(value)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
