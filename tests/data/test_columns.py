"""Rows with their problems: only where they are wanted, and read only where they are looked at."""

import json

import pytest

from rlvr.data import FileSource, HubSource, RowsWanted, load_problems

EVERYTHING = RowsWanted(answers=False, columns=True)


def test_columns_of_a_data_set_are_decoded_when_they_are_asked_for(tmp_path):
    from datasets import Dataset, Features, Image, Value

    rows = {
        "problem": ["one", "two"],
        "level": [1, 2],
        "image": [{"bytes": b"no image", "path": None}] * 2,
    }
    kinds = Features(problem=Value("string"), level=Value("int64"), image=Image())
    Dataset.from_dict(rows, features=kinds).save_to_disk(str(tmp_path / "saved"))
    source = HubSource(path=str(tmp_path / "saved"))
    problems = load_problems(source, EVERYTHING)
    assert [problem.columns["level"] for problem in problems] == [1, 2]
    assert set(problems[0].columns) == {"problem", "level", "image"}
    with pytest.raises(Exception, match=r"image|PIL|Pillow"):
        problems[0].columns["image"]
    assert all(not problem.columns for problem in load_problems(source, RowsWanted(answers=False)))


def test_an_answer_is_a_fault_only_where_it_is_wanted_or_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"problem": "one", "answer": [1, 2]},
        {"problem": "two"},
        {"problem": "3", "answer": "3"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FileSource(path=path)
    assert [problem.answer for problem in load_problems(source, EVERYTHING)] == ["", "", "3"]
    assert load_problems(source, EVERYTHING)[0].columns["answer"] == [1, 2]
    with pytest.raises(ValueError, match="list of 2"):
        load_problems(source)
    with pytest.raises(ValueError, match="there is no field 'solution'"):
        load_problems(FileSource(path=path, fields={"answer": "solution"}), EVERYTHING)
