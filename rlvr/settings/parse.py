"""YAML as recipes want it: safe, every key once, and numbers such as 1e-5 as numbers."""

import re
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-5`` as a string and lets a key stand twice; recipes want neither."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for index, key in enumerate(keys):
        line = node.value[index][0].start_mark.line + 1
        if not isinstance(key, (str, int, float, list)):
            raise ValueError(f"key {str(key)!r} is not text (line {line}); put it in quotes")
        if key in keys[:index]:
            raise ValueError(f"key {key!r} stands twice (line {line}); keep one of them")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def parse_yaml(text: str, where: str) -> Any:  # noqa: ANN401  (YAML holds anything)
    """Parse one YAML document safely.

    Raises:
        ValueError: The text is not YAML, or a key stands twice; ``where`` and the line are named.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{where}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:  # the reader's own faults carry no mark
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_yaml(path: Path) -> Any:  # noqa: ANN401  (YAML holds anything)
    """Parse a file of one YAML document.

    Raises:
        ValueError: It is not UTF-8 text, not YAML, or a key stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is not UTF-8 text; save the recipe as UTF-8"
        ) from None
    return parse_yaml(text, str(path))
