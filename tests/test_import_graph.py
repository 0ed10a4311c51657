"""No circle of files and none of rooms, and contracts without exceptions."""

import tomllib

import pytest

from tests.import_graph import ROOT, circles, files, imports


@pytest.mark.parametrize("inner", [False, True], ids=["when loaded", "when called"])
def test_no_files_import_each_other_in_a_circle(inner):
    assert circles(_ours(inner)) == []


def test_no_rooms_import_each_other_in_a_circle():
    rooms: dict[str, set[str]] = {}
    for module, names in _ours(inner=True).items():
        rooms.setdefault(_room(module), set()).update(_room(name) for name in names)
    assert circles({room: frozenset(others - {room}) for room, others in rooms.items()}) == []


def test_a_circle_is_found():
    graph = {"a": "b", "b": "c", "c": "ad", "d": "", "e": "ae", "f": "g", "g": "f"}
    named = {node: frozenset(others) for node, others in graph.items()}
    assert circles(named) == [["a", "b", "c"], ["f", "g"]]


def test_the_graph_holds_what_is_imported():
    assert len(files()) > 200
    assert "rlvr.cli.training" in imports("rlvr.cli")
    assert "rlvr.tasks.registry" not in imports("rlvr.cli.training")
    assert "rlvr.tasks.registry" in imports("rlvr.cli.training", inner=True)
    assert "typer" in imports("rlvr.cli")


def test_import_contracts_have_no_exceptions():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    excepted = [one["name"] for one in settings["contracts"] if one.get("ignore_imports")]
    assert excepted == []
    assert "ignore_imports" not in settings


def _ours(inner: bool) -> dict[str, frozenset[str]]:
    return {module: imports(module, inner) & files().keys() for module in files()}


def _room(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "rlvr" else parts[0]
