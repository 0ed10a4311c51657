"""Text of a card: tables, links, and the removal of what must not be published."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


def public(text: str) -> str:
    """The text without the path of the home folder and without anything that looks like a token."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if token:
        text = text.replace(token, "hf_...")
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?=[/\s'\"]|$)", "~", text)
    return _TOKEN.sub("hf_...", text)


def is_hub_id(path: str) -> bool:
    """Whether a path of a model or data set looks like an id on the Hub."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).expanduser().exists()


def hub_link(path: str, kind: str = "") -> str:
    """A link to the Hub, or the last part of a local path."""
    if is_hub_id(path):
        return f"[{path}](https://huggingface.co/{kind}{path})"
    return f"`{Path(path).name or path}`"


def paper_link(number: str) -> str:
    """A link to a paper's page on arXiv."""
    return f"[{number}](https://arxiv.org/abs/{number})"


def card_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without the columns that are empty in every row."""
    body = [list(row) for row in rows]
    kept = [i for i in range(len(heads)) if any(row[i] for row in body)]
    lines = [[heads[i] for i in kept], ["---"] * len(kept)]
    lines += [[_cell(row[i]) for i in kept] for row in body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def fenced(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any fence in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def described(values: Mapping[str, object]) -> str:
    """Settings as ``key value``, without unset ones."""
    return ", ".join(
        f"{key} {value}"
        for key, value in values.items()
        if value is not None and value != "" and not isinstance(value, Mapping | list | tuple)
    )
