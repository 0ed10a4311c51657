"""The recipe that fits, as a file: its command first, then the settings, on top of a base."""

import os
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlvr.fit.asked import as_words
from rlvr.fit.search import Candidate
from rlvr.memory import GIB
from rlvr.settings.load import apply_overrides

_WIDTH = 98


def recipe_text(best: Candidate, place: Path) -> str:
    """A recipe as YAML.

    Args:
        best: Settings that fit.
        place: Where the file will be; what it inherits from is named relative to it.
    """
    asked = best.asked
    body: dict[str, Any] = {}
    if asked.recipe is not None:
        body["base"] = os.path.relpath(asked.recipe.resolve(), place.resolve().parent)
        body |= apply_overrides({}, [*asked.given, *as_words(best.changes)])
        if "output" not in body:
            body["output"] = f"runs/{place.stem}"
    else:
        body = apply_overrides(asked.data, [*asked.given, *as_words(best.changes)])
        body = {"output": body.pop("output"), **body}
    body["model"]["path"] = _path(asked.model)
    settings = yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)
    return "\n".join(_comment(best, place)) + "\n" + settings


def launch_command(best: Candidate, place: Path) -> str:
    """The command that starts the recipe as the estimate takes it."""
    file, launched = shlex.quote(str(place)), best.found.processes
    if launched.count == 1 and not launched.stage:
        return f"rlvr train {file}"
    stage = f"zero{launched.stage}" if launched.stage else "multi_gpu"
    stage += "_offload" if launched.offload else ""
    where = "--local" if launched.nodes == 1 else f"--slurm --nodes {launched.nodes}"
    return f"rlvr launch {file} {where} --gpus-per-node {launched.gpus} --accelerate {stage}"


def _comment(best: Candidate, place: Path) -> list[str]:
    asked, found = best.asked, best.found
    name = Path(asked.model).name
    about = (
        f"Written by `rlvr fit` for {asked.text}: {found.total / GIB:.1f} GiB a process by "
        f"estimate, by {best.level.name}. --dry-run prints the table."
    )
    if asked.recipe is None:
        about += (
            " The problems are generated arithmetic: put your own under data.source, and a "
            "template that goes with the model."
        )
    return [
        f"# {name} within {asked.text}.",
        "#",
        f"#   {launch_command(best, place)}",
        "#",
        *textwrap.wrap(about, _WIDTH, initial_indent="# ", subsequent_indent="# "),
    ]


def _path(model: str) -> str:
    """A local folder as it is found from anywhere."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


class _Dumper(yaml.SafeDumper):
    """Small innermost mappings on one line, as recipes have them."""


def _mapping(dumper: yaml.SafeDumper, data: Mapping[str, Any]) -> yaml.Node:
    flat = not any(isinstance(value, Mapping | list) for value in data.values())
    inline = flat and len(str(data)) < 60 and "path" not in data
    return dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=inline)


_Dumper.add_representer(dict, _mapping)
