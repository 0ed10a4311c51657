"""Responses without a label are judged against the reference, in a process with a time limit."""

import json

import pytest

import reward
from rlvr.data.labelled_responses import load_responses


def test_a_reference_judges_what_has_no_label(tmp_path, monkeypatch):
    def here(*_):
        pytest.fail("graded in the caller's process, where nothing limits its time")

    monkeypatch.setattr(reward, "grade", here)
    rows = [
        {"prompt": "1+1?", "response": r"so \boxed{2}", "answer": "2"},
        {"prompt": "1+1?", "response": r"so \boxed{3}", "answer": "2"},
        {"prompt": "1+1?", "response": "no box", "answer": "2", "correct": True},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = load_responses([file])
    assert [(one.correct, one.extracted) for one in found] == [
        (True, "2"),
        (False, "3"),
        (True, None),
    ]
