"""A log file gets a plain line now and then; standard output keeps its results."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rlvr.progress import PlainLines, duration, progress_bar
from tests.command import call
from tests.training import small_recipe

ROOT = Path(__file__).parents[1]


def command(*words, folder, every="0.02"):
    """``rlvr`` as a process of its own whose output goes to pipes."""
    done = subprocess.run(
        [sys.executable, "-m", "rlvr", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RLVR_PROGRESS_SECONDS": every},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=40)


def test_lines_come_at_intervals_with_rate_and_what_is_left(console):
    with PlainLines(console, every_s=0.05) as lines:
        lines.show("sampling a long [name] of a model", 0, 8)
        for done in range(1, 5):
            time.sleep(0.05)
            lines.show("sampling a long [name] of a model", done, 8)
    said = console.file.getvalue().splitlines()
    assert 2 <= len(said) <= 5
    assert said[-1].startswith("sampling a long [name] of a model: ")
    assert " of 8 (" in said[-1]
    assert " a second, 0 s left" in said[-1]


def test_work_that_does_not_move_is_seen_to_live(console):
    with PlainLines(console, every_s=0.02) as lines:
        lines.show("starting vllm", 0, 0)
        time.sleep(0.2)
    assert "starting vllm: 0 s so far" in console.file.getvalue()


def test_short_work_says_nothing_and_an_interval_of_0_never(console, monkeypatch):
    with progress_bar(console) as bar:
        bar.show("sampling", 1, 2)
    monkeypatch.setenv("RLVR_PROGRESS_SECONDS", "0")
    with progress_bar(console) as bar:
        bar.show("sampling", 1, 2)
        time.sleep(0.1)
    assert console.file.getvalue() == ""


def test_an_interval_that_is_no_number_is_named(console, monkeypatch):
    monkeypatch.setenv("RLVR_PROGRESS_SECONDS", "soon")
    with pytest.raises(ValueError, match="RLVR_PROGRESS_SECONDS 'soon'"), progress_bar(console):
        pass


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "7 s"), (521, "8 min 41 s"), (12000, "3 h 20 min")]
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_an_evaluation_says_how_far_it_is(tmp_path, tiny_folder):
    rows = [{"problem": f"{one} + 1 =", "answer": str(one + 1)} for one in range(40)]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("eval", tiny_folder, "-b", f"sums={data}", "--out", "out", "--max-tokens", 32)
    done = command(*words, folder=tmp_path)
    assert "sampling" in done.stdout
    assert " of 40 (" in done.stdout


def test_a_scoring_says_how_far_it_is_beside_its_result(tmp_path, tiny_folder):
    rows = [{"prompt": "1 + 1 =", "response": "2" * 40, "label": 1}] * 60
    data = tmp_path / "responses.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("prm", "score", data, "--model", tiny_folder, "--no-reference", "--out", "scored")
    often = {"RLVR_PROGRESS_SECONDS": "0.02"}
    done = call(*words, "--tokens", 64, folder=tmp_path, environment=often)
    assert done.returncode == 0, done.stderr
    assert f"scoring by {tiny_folder}: " in done.stderr
    assert done.stdout == "60 responses: scored\n"


def test_a_run_says_what_it_does_between_its_steps(tmp_path, tiny_folder):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe(tiny_folder, tmp_path / "run") | {"steps": 1}))
    often = {"RLVR_PROGRESS_SECONDS": "0.02"}
    said = call("train", recipe, folder=tmp_path, environment=often).stdout
    assert "loading data, model and engine: " in said
    assert "evaluating held_out: " in said or "generating: " in said or "updating: " in said
