"""The command line beyond training: grading, reports, settings, imports."""

import json
from pathlib import Path

import pytest

from tests.command import call

ROOT = Path(__file__).parents[1]


def rlvr(*arguments):
    return call(*arguments, folder=ROOT)


def test_a_file_of_answers_is_graded_row_by_row(tmp_path):
    rows = [
        {"id": 1, "pred": "0.5", "gold": "\\frac12"},
        {"id": 2, "pred": "3", "gold": "4"},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = rlvr("grade", source, "--out", target)
    assert done.returncode == 0, done.stderr
    graded = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["id"], row["correct"]) for row in graded] == [(1, True), (2, False)]
    assert all({"extracted", "kind", "path", "reason"} <= set(row) for row in graded)
    assert "0.500" in done.stdout


def test_responses_are_graded_by_their_box(tmp_path):
    row = {"text": "So \\boxed{12}.", "key": "12"}
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row) + "\n")
    done = rlvr("grade", source, "--response-field", "text", "--gold-field", "key")
    assert "1.000" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["none.jsonl"], "no such file"),
        (["a", "b"], "give one file"),
        (["--explain", "1"], "takes an answer and a reference"),
        (["--explian", "1", "2"], "no such option '--explian'"),
        (["README.md"], "README.md"),
    ],
)
def test_grading_faults_take_one_line(arguments, part):
    done = rlvr("grade", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert part in done.stderr


def test_explaining_takes_negative_numbers():
    done = rlvr("grade", "--explain", "-3", "-3.0")
    assert done.returncode == 0, done.stderr
    assert "verdict     correct" in done.stdout


def test_help_names_the_verbs():
    done = rlvr("--help")
    assert done.returncode == 0, done.stderr
    for verb in ("train", "eval", "score", "compare", "report", "grade", "doctor", "settings"):
        assert verb in done.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["report", "nowhere"], "nowhere"),
        (["import-gguf", "nowhere.gguf", "out"], "nowhere.gguf"),
        (["import-gguf", "README.md", "out"], "README.md"),
    ],
)
def test_missing_files_are_named_in_one_line(arguments, part):
    done = rlvr(*arguments)
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.strip().splitlines()) == 1
    assert part in done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["eval"], "give a model folder"),
        (["eval", "m", "--n", "0"], "greater than or equal to 1"),
        (["score", "docs"], "is not an evaluation"),
        (["compare", "docs"], "needs two evaluations"),
    ],
)
def test_evaluation_faults_take_one_line(arguments, part):
    done = rlvr(*arguments)
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.strip().splitlines()) == 1
    assert part in done.stderr


def test_benchmarks_and_protocols_are_listed():
    done = rlvr("eval", "--list")
    assert done.returncode == 0, done.stderr
    for name in ("math500", "gsm8k", "one_shot_rlvr", "lighteval"):
        assert name in done.stdout
