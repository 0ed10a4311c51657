"""Fixtures of the evaluation's tests."""

import json
import shutil
from pathlib import Path

import pytest

import eval.score
from tests.eval.small import ENGINE, ROWS, run


def write_benchmark(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(autouse=True)
def _one_grader(monkeypatch):
    """Each further grader starts processes of its own; tests of scoring name those they want."""
    monkeypatch.setattr(eval.score, "ALONGSIDE", ())


@pytest.fixture
def benchmark_file(tmp_path) -> Path:
    return write_benchmark(tmp_path / "sums.jsonl")


@pytest.fixture(scope="session")
def finished(tiny_folder, tmp_path_factory) -> Path:
    """An evaluation of the tiny model; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_benchmark(folder / "sums.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval.score, "ALONGSIDE", ())
        (out,) = run(tiny_folder, path, folder / "out", engine=ENGINE, greedy=True)
    return out


@pytest.fixture
def undisturbed(finished, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "whole"))
