"""Graders of other domains in runs, named by a source or a row."""

import json

import pytest

from reward.sandbox import ways
from rlvr.data import FileSource, GymSource, load_problems
from rlvr.data.consistency import MATHEMATICS, Grader
from rlvr.data.rows import Fields
from tests.command import call, refused
from tests.reward.test_sandbox import needs_sandbox
from tests.training import column, run


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def values(recipe_values, tmp_path):
    """A short run on rows of which each names its grader."""
    rows = [
        {"problem": "1", "answer": {"answer": "B", "choices": ["x", "y"]}, "kind": "choice"},
        {"problem": "2", "answer": ["no", "none"], "kind": "text"},
        {"problem": "3", "answer": {"pattern": "[0-9]", "match": "search", "on": "response"},
         "kind": "pattern"},
        {"problem": "4", "answer": "5"},
    ]  # fmt: skip
    path = write(tmp_path / "mixed.jsonl", rows)
    source = {"name": "file", "path": str(path), "fields": {"grader": "kind"}}
    only_digits = write(tmp_path / "digits.jsonl", [{"problem": "1", "answer": "(?s).*[0-9].*"}])
    held_out = {"name": "file", "path": str(only_digits), "grader": "pattern"}
    return {
        **recipe_values,
        "steps": 2,
        "data": {**recipe_values["data"], "source": source},
        "rollout": {**recipe_values["rollout"], "prompts_per_step": 4},
        "reward": {"functions": [{"function": "credit"}]},
        "evaluation": {"every": 2, "sets": {"digits": held_out}},
    }


def test_rows_are_judged_by_the_graders_they_name(values):
    folder, metrics = run(values)
    kept = [
        json.loads(line)
        for path in sorted((folder / "completions").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    searched = [row for row in kept if row["prompt"].endswith("3")]
    assert searched
    for row in searched:
        assert row["correct"] is any(mark.isdigit() for mark in row["response"])
        assert row["reward"] == float(row["correct"])
    assert {row["reason"] for row in searched} <= {
        "it matches",
        "it does not match",
        "the response is empty",
    }
    assert column(metrics, "eval/digits/accuracy")


def test_all_graders_are_named_and_their_references_are_text_in_problems(tmp_path):
    from reward.domains import DOMAINS
    from reward.graders import GRADERS

    assert {*Grader.__args__} == {*GRADERS, *DOMAINS}
    assert {*MATHEMATICS} == {*GRADERS}
    path = write(tmp_path / "a.jsonl", [{"problem": "?", "answer": {"items": [2, 1]}}])
    (problem,) = load_problems(FileSource(path=path, grader="sorting"))
    assert (problem.grader, json.loads(problem.answer)) == ("sorting", {"items": [2, 1]})
    with pytest.raises(ValueError, match="is not text"):
        load_problems(FileSource(path=path))


def test_rows_of_ifeval_are_taken_as_they_are(tmp_path):
    row = {"key": 1, "prompt": "Say no commas.", "instruction_id_list": ["punctuation:no_comma"],
           "kwargs": [{"num_words": None}]}  # fmt: skip
    path = write(tmp_path / "ifeval.jsonl", [row])
    (problem,) = load_problems(FileSource(path=path, grader="instructions"))
    assert json.loads(problem.answer)["instruction_id_list"] == ["punctuation:no_comma"]


def test_a_row_that_names_no_grader_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"problem": "?", "answer": "B", "kind": "choise"}])
    fields = Fields(grader="kind")
    with pytest.raises(ValueError, match=r"line 1.*did you mean 'choice'"):
        load_problems(FileSource(path=path, fields=fields))


def test_gym_tasks_are_judged_by_their_own_scorers_unless_these_execute_answers():
    source = GymSource(task="tower_of_hanoi", size=2, grader="reasoning_gym")
    assert all(problem.grader == "reasoning_gym" for problem in load_problems(source))
    with pytest.raises(ValueError, match="executes the answer; leave grader out"):
        load_problems(GymSource(task="n_queens", size=2, grader="reasoning_gym"))


def test_a_source_whose_references_are_faulty_leaves_no_folder(values, tmp_path):
    path = write(tmp_path / "bad.jsonl", [{"problem": "1", "answer": "no letter"}])
    source = {"name": "file", "path": str(path), "grader": "choice"}
    bad = {**values, "data": {**values["data"], "source": source}}
    with pytest.raises(ValueError, match="none of 1 reference answers can be graded"):
        run(bad)


def test_a_file_is_graded_by_a_domain_from_the_command_line(tmp_path):
    reference = {"answer": "B", "choices": ["red", "green"]}
    rows = [
        {"pred": "green", "gold": json.dumps(reference)},
        {"pred": "green", "gold": reference},
        {"pred": "A", "gold": ["A", "C"]},  # both are asked for
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    done = call("grade", path, "--grader", "choice", "--out", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    graded = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in graded] == [True, True, False]
    assert "did you mean 'choice'" in refused("grade", path, "--grader", "choise")


@pytest.fixture
def programs(values, tmp_path):
    """A run whose problems are judged by running programs."""
    reference = {"runs": [{"input": "", "output": "1"}]}
    rows = [{"problem": str(n), "answer": reference, "kind": "code"} for n in range(4)]
    path = write(tmp_path / "programs.jsonl", rows)
    source = {"name": "file", "path": str(path), "fields": {"grader": "kind"}}
    data = {**values["data"], "source": source}
    return {**values, "data": data, "evaluation": {"every": 2, "sets": {}}}


@needs_sandbox
def test_a_run_is_rewarded_by_programs(programs):
    folder, metrics = run(programs)
    kept = [
        json.loads(line)
        for path in sorted((folder / "completions").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert kept
    assert all(row["correct"] is False for row in kept)
    said = {row["reason"] for row in kept}
    assert any("of 1 tests" in reason or "no fenced block" in reason for reason in said), said
    assert not any(column(metrics, "verifier/errors"))


def test_a_run_without_a_sandbox_is_refused_and_leaves_no_folder(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(ways, "_fault", lambda way: "not here")
    ways.way_of.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"reward.code.sandbox=auto: no sandbox .*not here"):
            run(programs)
        assert not [path for path in tmp_path.iterdir() if path.is_dir() and any(path.iterdir())]
    finally:
        ways.way_of.cache_clear()


@needs_sandbox
def test_programs_are_graded_from_the_command_line(tmp_path):
    reference = {"calls": [{"function": "add", "args": [1, 2], "result": 3}]}
    text = "```python\ndef add(a, b):\n    return {}\n```"
    rows = [{"response": text.format(body), "gold": reference} for body in ("a + b", "a - b")]
    path = write(tmp_path / "rows.jsonl", rows)
    done = call("grade", path, "--grader", "code", "--out", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    graded = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in graded] == [True, False]
    assert "choose one of auto" in refused("grade", path, "--grader", "code", "--sandbox", "no")
