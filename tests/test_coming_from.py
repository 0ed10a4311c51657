"""The tables of docs/from_*.md name settings that exist, on both sides."""

import dataclasses
import re
from pathlib import Path

import pytest

from rlvr.convert.trl import _classes
from rlvr.settings import describe
from rlvr.tasks.registry import TASKS

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"`([\w.\[\]]+?)(?:=([\w]+))?`")


def rows(page):
    """(heading of the table's second column, theirs, ours), row by row."""
    heading = ""
    for line in (ROOT / "docs" / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 3 or set(line) <= set("|- "):
            continue
        if cells[2] == "remarks":
            heading = cells[1]
        else:
            yield heading, cells[0], cells[1]


def known(task):
    """Keys of a task's settings; of a choice both as ``loss[clip].low`` and ``loss.low``."""
    keys = {item.key for item in describe(TASKS[task].schema)}
    return keys | {re.sub(r"\[\w+\]", "", key) for key in keys}


@pytest.mark.parametrize("page", ["from_trl.md", "from_verl.md"])
def test_our_settings_exist(page):
    checked, keys = 0, {task: known(task) for task in TASKS}
    for heading, _, ours in rows(page):
        task = heading.rpartition(" ")[2] if "of task" in heading else "rl"
        for key, value in NAME.findall(ours):
            if key.endswith(".name"):
                assert f"{key.removesuffix('.name')}[{value}]" in keys[task], f"{page}: {ours}"
            else:
                assert key in keys[task], f"{page}: {ours}"
            checked += 1
    assert checked > 50


def test_settings_of_trl_exist():
    names = {f.name for own in _classes().values() for cls in own for f in dataclasses.fields(cls)}
    theirs = {key for _, cell, _ in rows("from_trl.md") for key, _ in NAME.findall(cell)}
    assert len(theirs) > 60
    assert theirs - names == set()
