"""Every verb: help, a mistyped option and a missing file take one line and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from rlvr.cli import app
from tests.command import call, refused

ROOT = Path(__file__).parents[1]


def verbs(command, words=()):
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words
    for name, one in (inner or {}).items():
        yield from verbs(one, (*words, name))


VERBS = sorted(verbs(get_command(app)))
MISSING = {
    ("bench",): ["--parts", "run", "--recipe", "nowhere.yaml"],
    ("compare",): ["nowhere", "nowhere2"],
    ("distill", "filter"): ["nowhere.yaml"],
    ("distill", "generate"): ["nowhere.yaml"],
    ("distill", "page"): ["nowhere.jsonl", "--out", "page.html"],
    ("distill", "surprisal"): ["nowhere.jsonl", "--model", "./nowhere"],
    ("eval",): ["./nowhere"],
    ("export",): ["nowhere", "--to", "out"],
    ("fit",): ["./nowhere"],
    ("grade",): ["nowhere.jsonl"],
    ("import-gguf",): ["nowhere.gguf", "out"],
    ("launch",): ["nowhere.yaml", "--slurm"],
    ("pairs",): ["nowhere", "--out", "pairs.jsonl"],
    ("plan",): ["nowhere.yaml"],
    ("prm", "locate"): ["nowhere.jsonl", "--model", "./nowhere", "--no-reference"],
    ("prm", "prefixes"): ["nowhere.jsonl", "--model", "./m", "--policy", "./p", "--no-reference"],
    ("prm", "rank"): ["nowhere.jsonl"],
    ("prm", "score"): ["nowhere.jsonl", "--model", "./m", "--no-reference", "--out", "out.jsonl"],
    ("report",): ["nowhere"],
    ("score",): ["nowhere"],
    ("select",): ["nowhere", "--out", "out.jsonl"],
    ("train",): ["nowhere.yaml"],
}


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_says_what_a_verb_does(verb):
    done = call(*verb, "--help")
    assert done.returncode == 0
    assert f"Usage: rlvr {' '.join(verb)}" in done.stdout


@pytest.mark.parametrize("verb", [v for v in VERBS if v != ("serve",)], ids=" ".join)
def test_a_mistyped_option_takes_one_line(verb):
    assert "no such option" in refused(*verb, "--no-such-option").lower()


@pytest.mark.parametrize("verb", MISSING, ids=" ".join)
def test_a_missing_file_is_named_in_one_line(verb, tmp_path):
    """As a process of its own, in an empty folder."""
    assert verb in VERBS
    done = subprocess.run(
        [sys.executable, "-m", "rlvr", *verb, *MISSING[verb]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 2, done.stderr
    assert "nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
