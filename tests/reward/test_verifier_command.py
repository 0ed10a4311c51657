"""Grading a file: every row comes back, in order, with its verdict; errors name the row."""

import json

import pytest

from reward.command import explain, grade_file

ROWS = [
    {"id": 1, "response": "so \\boxed{\\frac{1}{2}}", "gold": "0.5"},
    {"id": 2, "response": "so \\boxed{4}", "gold": "3"},
    {"id": 3, "response": "nothing", "gold": "3"},
    {"id": 4, "response": "\\boxed{9^{9^{9}}}", "gold": 3},
    {"id": 5, "response": "\\boxed{3}", "gold": ""},
    {"id": 6, "response": "\\boxed{3}", "gold": ["4", "3"]},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_come_back_in_order_with_their_verdicts(tmp_path):
    said = []
    out = tmp_path / "new" / "out.jsonl"
    summary = grade_file(write(tmp_path / "in.jsonl", ROWS), out, workers=2, echo=said.append)
    graded = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in graded] == [1, 2, 3, 4, 5, 6]
    assert [row["correct"] for row in graded] == [True, False, False, False, False, True]
    assert {"extracted", "kind", "path", "reason"} <= set(graded[0])
    assert graded[0]["response"] == ROWS[0]["response"]
    assert summary.correct == 2
    assert summary.accuracy == pytest.approx(2 / 5)
    assert summary.kinds["decimal"] == (1, 1)
    assert list(summary.skipped) == [4]
    assert summary.counters["no_answer"] == 1
    assert "row 5 skipped: the reference answer is empty" in said[0]
    assert "no_answer: 1" in said[0]


def test_bare_answers_are_read_from_their_own_field(tmp_path):
    rows = [{"pred": "1/2", "answer": "0.5"}, {"pred": "1/3", "answer": "0.5"}]
    path = write(tmp_path / "in.jsonl", rows)
    summary = grade_file(path, pred_field="pred", gold_field="answer", echo=lambda text: None)
    assert (summary.rows, summary.correct) == (2, 1)
    with_gold = write(tmp_path / "gold.jsonl", [{"pred": "1/2", "gold": "0.5"}])
    assert grade_file(with_gold, echo=lambda text: None).correct == 1


@pytest.mark.parametrize("grader", ["rlvr", "one_shot_rlvr", "qwen", "exact"])
def test_every_grader_grades_a_file(tmp_path, grader):
    path = write(tmp_path / "in.jsonl", [{"response": "\\boxed{3}", "gold": "3"}] * 3)
    assert grade_file(path, grader=grader, echo=lambda text: None).correct == 3


@pytest.mark.parametrize(
    ("content", "keywords", "message"),
    [
        (None, {}, "no such file"),
        ("", {}, "no rows"),
        ('{"response": "x", "gold": "3"}\n{oops', {}, "line 2: not JSON"),
        ("[1]\n", {}, "line 1: a list"),
        ('{"response": "x"}\n', {}, "row 1: no field 'gold'; it has response"),
        ('{"answer": "x", "gold": "3"}\n', {}, "no field 'response'"),
        ('{"response": null, "gold": "3"}\n', {}, "'response' is None, not text"),
        ('{"response": "x", "gold": "3"}\n', {"grader": "qwem"}, "did you mean 'qwen'"),
        ('{"response": "x", "gold": "3"}\n', {"workers": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_graded_is_named(tmp_path, content, keywords, message):
    path = tmp_path / "in.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        grade_file(path, tmp_path / "out.jsonl", echo=lambda text: None, **keywords)
    assert not (tmp_path / "out.jsonl").exists()


def test_binary_and_overwriting_are_refused(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        grade_file(path)
    write(path, ROWS)
    with pytest.raises(ValueError, match="is the input"):
        grade_file(path, path)
    assert len(path.read_text().splitlines()) == len(ROWS)


def test_an_explanation_shows_each_step():
    text = explain(r"x = \frac{2}{4}", "0.5")
    assert "relation of 2" in text
    assert "kind        decimal" in text
    assert text.endswith("verdict     correct")
    text = explain(r"so \boxed{(1,2]}", "1<x<2")
    assert "extracted   '(1,2]'" in text
    assert text.endswith("verdict     not correct")


def test_rows_may_call_the_reference_an_answer(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"response": "\\boxed{5}", "answer": "5"}) + "\n")
    assert grade_file(rows, echo=lambda text: None).correct == 1
