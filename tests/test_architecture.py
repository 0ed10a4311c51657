"""docs/architecture.md says what the code is."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FILE = re.compile(r"`((?:rlvr|reward|eval|launch)/[\w/.]*)`((?: `\w+`,?)*)")
"""A file, with names that are in it."""


def test_the_table_of_rooms_is_the_import_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c for c in contracts["contracts"] if c["type"] == "layers")["layers"]
    table = PAGE.partition("<!-- rooms -->\n")[2].partition("<!-- end -->")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert [re.findall(r"`([\w.]+)`", row) for row in rows] == [
        [room.strip() for room in layer.split("|")] for layer in layers
    ]


@pytest.mark.parametrize(("file", "names"), FILE.findall(PAGE))
def test_files_exist_and_hold_the_names_behind_them(file, names):
    path = ROOT / file
    assert path.exists()
    for name in re.findall(r"\w+", names):
        assert re.search(rf"^ *(?:class|def) {name}\b", path.read_text(), re.MULTILINE), name


def test_names_in_the_paths_are_known():
    assert len(FILE.findall(PAGE)) > 40
