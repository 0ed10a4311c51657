"""Files of every format, and every way in which a row or a file can be wrong."""

import csv
import json
import re
import warnings
from pathlib import Path

import hypothesis.strategies as st
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given

from rlvr.data import Fields, FileSource, load_problems, overlap
from rlvr.data.rows import RowError, decimal_text
from rlvr.settings import Settings, load_settings

ROWS = [
    {"problem": "1+1=", "answer": "2", "level": "easy"},
    {"problem": "2, or 3?", "answer": "\\frac{1}{2}", "level": "hard"},
    {"problem": 'say "ä"\nplease', "answer": "ä", "level": "odd"},
]


def write(path: Path, rows) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as text:
            writer = csv.DictWriter(text, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def load(path: Path, **settings):
    return load_problems(FileSource(path=path, **settings))


def refused(path: Path, *words: str, **settings) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    for word in words:
        assert word in message


@pytest.fixture
def rows_file(tmp_path):
    return lambda *rows: write(tmp_path / "data.jsonl", list(rows))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_problems(tmp_path, ending):
    path = write(tmp_path / f"data.{ending}", ROWS)
    problems = load(path, fields=Fields(metadata=("level",)))
    assert [p.messages for p in problems] == [
        ({"role": "user", "content": row["problem"]},) for row in ROWS
    ]
    assert [p.answer for p in problems] == [row["answer"] for row in ROWS]
    assert [p.metadata for p in problems] == [{"level": row["level"]} for row in ROWS]
    assert {p.source for p in problems} == {f"data.{ending}"}
    same = load(write(tmp_path / "other.json", ROWS))
    assert [p.id for p in problems] == [p.id for p in same]


def test_a_byte_order_mark_and_blank_lines_are_no_part_of_the_data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"problem": "p", "answer": "a"}\n\n  \n')
    assert [p.answer for p in load(path)] == ["a"]


def test_fields_are_mapped_and_reach_into_columns(rows_file):
    path = rows_file(
        {"q": "one?", "truth": {"value": {"text": "1"}}, "key": 7, "info": {"index": 3}},
        {"q": "two?", "truth": {"value": {"text": "2"}}, "key": "b", "info": {}},
    )
    fields = Fields(
        problem="q", answer="truth.value.text", id="key", metadata=("info.index", "info")
    )
    first, second = load(path, fields=fields)
    assert (first.id, first.answer) == ("7", "1")
    assert first.metadata == {"info.index": 3, "info": {"index": 3}}
    assert (second.id, second.metadata["info.index"]) == ("b", None)


def test_a_column_whose_name_holds_a_dot_is_taken_as_it_is(rows_file):
    path = rows_file({"a.b": "p", "answer": "x"})
    assert load(path, fields=Fields(problem="a.b"))[0].messages[0]["content"] == "p"


def test_ids_come_from_the_id_column_when_there_is_one(rows_file):
    path = rows_file(
        {"problem": "p", "answer": "a", "id": 3}, {"problem": "q", "answer": "a", "id": "x"}
    )
    assert [p.id for p in load(path)] == ["3", "x"]


def test_ids_without_a_column_do_not_depend_on_order_or_place(tmp_path):
    def ids(rows, name):
        path = write(tmp_path / name, rows)
        return {p.messages[0]["content"]: p.id for p in load(path)}

    first, second = ids(ROWS, "a.jsonl"), ids(ROWS[::-1], "b.json")
    assert first == second
    assert len(set(first.values())) == len(ROWS)
    assert all(re.fullmatch("[0-9a-f]{16}", identity) for identity in first.values())


def test_messages_are_taken_whole(rows_file):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ]
    path = rows_file({"prompt": turns, "answer": "4"})
    (problem,) = load(path, fields=Fields(messages="prompt"))
    assert list(problem.messages) == turns


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ("text", ["'text' is not a list of chat messages", "fields.problem"]),
        ([], ["[] is not a list of chat messages"]),
        (None, ["None is not a list of chat messages"]),
        ([{"role": "human", "content": "x"}], ["message 1", "role 'human'", "assistant"]),
        ([{"role": "user", "content": ""}], ["message 1", "content ''", "must be text"]),
        ([{"role": "user", "content": ["x"]}], ["message 1", "content ['x']"]),
        (["hello"], ["message 1", "role None"]),
        ([{"role": "assistant", "content": "x"}], ["end with role 'assistant'"]),
        (
            [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
            ["only the first message may be a system message"],
        ),
    ],
)
def test_messages_that_are_no_prompt_are_refused(rows_file, turns, words):
    path = rows_file({"prompt": turns, "answer": "4", "id": "q1"})
    refused(path, *words, "line 1", "'q1'", fields=Fields(messages="prompt"))


def test_a_problem_column_with_messages_points_to_the_setting(rows_file):
    path = rows_file({"problem": [{"role": "user", "content": "x"}], "answer": "4"})
    refused(path, "is a list", "set fields.messages: problem")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"problem": "p", "answer": ""}, ["answer (field 'answer') is empty", "remove the row"]),
        ({"problem": "p", "answer": " \n"}, ["answer (field 'answer') is empty"]),
        ({"problem": "p", "answer": None}, ["answer (field 'answer') is missing"]),
        ({"problem": "p"}, ["answer (field 'answer') is missing"]),
        ({"problem": "p", "answer": 5}, ["= 5 is a number", "fields.numbers_as_text: true"]),
        ({"problem": "p", "answer": True}, ["= True is not text"]),
        ({"problem": "p", "answer": {"x": 1}}, ["= {'x': 1} is not text"]),
        ({"problem": "", "answer": "a"}, ["problem (field 'problem') is empty"]),
        ({"problem": 3, "answer": "a"}, ["problem (field 'problem') = 3 is not text"]),
        ({"problem": "p", "answer": "a", "id": ""}, ["id (field 'id') = '' is neither text"]),
        ({"problem": "p", "answer": "a", "id": None}, ["id (field 'id') = None is neither text"]),
        ({"problem": "p", "answer": "a", "id": 1.5}, ["id (field 'id') = 1.5 is neither text"]),
    ],
)
def test_an_unusable_row_is_named_and_can_be_dropped(rows_file, row, words):
    good = {"problem": "good", "answer": "yes", "id": "g"}
    path = rows_file(good, {"id": "bad-one", **row})
    refused(path, *words, "line 2", repr(row["id"]) if row.get("id") else "line 2")
    with pytest.warns(UserWarning, match="dropped 1 unusable rows of 2, the first: .*line 2"):
        assert [p.id for p in load(path, bad_rows="drop")] == ["g"]


@pytest.mark.parametrize("field", ["id", "problem", "answer"])
def test_half_a_character_is_refused_before_a_run_stumbles_over_it(rows_file, field):
    good = {"id": "a", "problem": "1+1=", "answer": "2"}
    path = rows_file(good, {"id": "b", "problem": "1+2=", "answer": "3", field: "x\ud83d"})
    refused(path, "line 2", "half a character")
    with pytest.warns(UserWarning, match="dropped 1 unusable rows"):
        assert [problem.id for problem in load(path, bad_rows="drop")] == ["a"]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("value", "words"), [("[" * 100_000, "too deeply"), ("1" * 5000, "thousands of digits")]
)
def test_json_beyond_pythons_limits_is_refused(tmp_path, ending, value, words):
    path = tmp_path / f"data.{ending}"
    path.write_text(f'[{{"answer": {value}}}]')
    refused(path, words)


def test_a_row_without_id_among_rows_with_one_is_refused(rows_file):
    path = rows_file({"problem": "p", "answer": "a", "id": 1}, {"problem": "q", "answer": "a"})
    refused(path, "id (field 'id') = None", "line 2", "give every row an id")


def test_numbers_are_taken_as_decimals_when_asked(rows_file):
    values = [5, -3, 2.5, 4.0, 1e-7, 1e21, -0.1]
    path = rows_file(*({"problem": str(n), "answer": v} for n, v in enumerate(values)))
    answers = [p.answer for p in load(path, fields=Fields(numbers_as_text=True))]
    assert answers == ["5", "-3", "2.5", "4", "0.0000001", "1000000000000000000000", "-0.1"]


def test_a_number_that_is_not_finite_is_refused_even_then(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"problem": "p", "answer": NaN}\n')
    refused(path, "answer = nan is not a finite number", fields=Fields(numbers_as_text=True))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_decimal_reads_back_as_the_same_number(number):
    text = decimal_text(number)
    assert float(text) == number
    assert re.fullmatch(r"-?\d+(\.\d+)?", text)


@given(st.integers())
def test_a_whole_number_is_written_exactly(number):
    assert int(decimal_text(number)) == number


def test_infinity_has_no_decimal_text():
    with pytest.raises(RowError, match="not a finite number"):
        decimal_text(float("inf"))


def test_the_answer_can_be_what_follows_a_mark(rows_file):
    path = rows_file({"problem": "p", "answer": "2+3=5 #### so\n#### 5 "})
    assert load(path, fields=Fields(answer_after="####"))[0].answer == "5"


@pytest.mark.parametrize(
    ("answer", "word"), [("5", "answer does not contain '####'"), ("x #### ", "empty after '####'")]
)
def test_an_answer_without_the_mark_is_refused(rows_file, answer, word):
    path = rows_file({"problem": "p", "answer": answer})
    refused(path, word, "line 1", fields=Fields(answer_after="####"))


def test_an_id_that_stands_twice_is_refused_with_both_places(rows_file):
    path = rows_file(
        {"problem": "p", "answer": "a", "id": "x"},
        {"problem": "r", "answer": "a", "id": "y"},
        {"problem": "q", "answer": "a", "id": "x"},
    )
    refused(path, "line 3", "'x' already occurs in line 1", "fields.id")


def test_two_answers_to_one_problem_are_refused_with_both_places(rows_file):
    path = rows_file(
        {"problem": "p", "answer": "a", "id": "x"},
        {"problem": "r", "answer": "c", "id": "z"},
        {"problem": " p ", "answer": "b", "id": "y"},
    )
    refused(path, "line 3", "'y'", "line 1", "'x'", "'a' instead of 'b'", "bad_rows: drop")
    with pytest.warns(UserWarning, match="dropped 2 rows of 1 problems"):
        assert [p.id for p in load(path, bad_rows="drop")] == ["z"]


def test_exact_duplicates_are_reported_and_settled_as_asked(rows_file):
    row, other = {"problem": "p", "answer": "a"}, {"problem": "q", "answer": "a"}
    path = rows_file(row, other, row, row)
    with pytest.warns(UserWarning, match="dropped 2 exact duplicates of 4.*line 3.*line 1"):
        assert len(load(path)) == 2
    with pytest.warns(UserWarning, match="kept 2 exact duplicates"):
        kept = load(path, duplicates="keep")
    assert len({p.id for p in kept}) == 4
    assert kept[2].id == f"{kept[0].id}-2"
    assert kept[3].id == f"{kept[0].id}-3"
    refused(path, "2 problems occur twice", "line 3", "duplicates: drop", duplicates="error")


def test_clean_data_give_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(write(tmp_path / "d.jsonl", ROWS))


def test_the_same_text_after_different_turns_is_another_problem(rows_file):
    def prompt(first):
        return [
            {"role": "user", "content": first},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": "and now?"},
        ]

    path = rows_file({"m": prompt("1"), "answer": "a"}, {"m": prompt("2"), "answer": "b"})
    assert len(load(path, fields=Fields(messages="m"))) == 2


def test_skip_and_limit_part_a_file(rows_file):
    path = rows_file(*({"problem": str(n), "answer": "a"} for n in range(10)))

    def texts(**settings):
        return [p.messages[0]["content"] for p in load(path, **settings)]

    assert texts(limit=3) == ["0", "1", "2"]
    assert texts(skip=8) == ["8", "9"]
    assert texts(skip=3, limit=4) == ["3", "4", "5", "6"]
    refused(path, "skip=10 leaves none of the 10 rows", skip=10)


def test_a_missing_column_is_named_with_the_nearest_and_all(rows_file):
    path = rows_file({"problem": "p", "anwser": "a"}, {"problem": "q", "extra": 1})
    refused(path, "no field 'answer'", "did you mean 'anwser'", "'extra'", "'problem'")
    refused(path, "no field 'level'", fields=Fields(answer="anwser", metadata=("level",)))
    refused(path, "no field 'key'", fields=Fields(answer="anwser", id="key"))
    refused(path, "no field 'chat'", fields=Fields(answer="anwser", messages="chat"))


def test_a_missing_file_a_folder_and_an_unknown_ending_are_refused(tmp_path):
    refused(tmp_path / "none.jsonl", "does not exist")
    refused(tmp_path, "is a folder", "name: hub")
    other = tmp_path / "data.txt"
    other.write_text("x")
    refused(other, "ending '.txt'", ".jsonl, .json, .csv, .parquet")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.jsonl", "", ["the data set is empty"]),
        ("d.jsonl", "\n\n", ["the data set is empty"]),
        ("d.json", "[]", ["the data set is empty"]),
        ("d.csv", "problem,answer\n", ["the data set is empty"]),
        ("d.csv", "", ["the data set is empty"]),
        ("d.jsonl", '{"problem": "p", "answer": "a"}\n{"problem":\n', ["line 2: not valid JSON"]),
        ("d.jsonl", "[1]\n", ["line 1: a row must be an object with fields, not a list"]),
        ("d.json", "[1, 2", ["line 1: not valid JSON"]),
        ("d.json", '{"a": 1}\n{"a": 2}', ["line 2", "Extra data", "name it .jsonl"]),
        ("d.json", '{"a": 1}', ["must hold a list of objects, not an object"]),
        ("d.json", "null", ["must hold a list of objects, not null"]),
        ("d.json", '["x"]', ["row 1: a row must be an object with fields, not text"]),
        ("d.json", "[3]", ["row 1: a row must be an object with fields, not a int"]),
        ("d.csv", "problem,answer\np,a,x\n", ["row 1 (line 2)", "the header's, 2", "quote commas"]),
        ("d.csv", "problem,answer\np\n", ["row 1 (line 2)", "number of cells"]),
        ("d.csv", 'problem,answer\n"p"x,a\n', ["line 2: not valid CSV"]),
        ("d.csv", "problem,answer,answer\np,a,b\n", ["column 'answer' occurs twice"]),
        (
            "d.jsonl",
            '{"problem": "p", "answer": "1"}\n{"problem": "q", "answer": "2", "answer": "3"}\n',
            ["line 2: field 'answer' occurs twice", "'2' and '3'"],
        ),
        ("d.json", '[{"problem": "p", "problem": "q"}]', ["field 'problem' occurs twice"]),
        ("d.parquet", "no parquet", ["not a readable parquet file"]),
    ],
)
def test_content_of_another_kind_is_refused(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    refused(path, *words)


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path):
    columns = [pyarrow.array(["x"])] * 3
    table = pyarrow.Table.from_arrays(columns, names=["problem", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    refused(tmp_path / "d.parquet", "column 'answer' occurs twice")


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv"])
def test_text_in_another_encoding_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes('{"problem": "ä", "answer": "a"}\n'.encode("latin-1"))
    refused(path, "is not UTF-8 text")


def test_when_every_row_is_dropped_nothing_is_loaded(rows_file):
    path = rows_file({"problem": "p", "answer": "", "x": 1}, {"problem": "", "answer": "a"})
    with pytest.warns(UserWarning, match="dropped 2"):
        refused(path, "no usable problem is left", bad_rows="drop")


def test_a_recipe_chooses_a_source_by_name(tmp_path):
    from rlvr.data import Source

    class Recipe(Settings):
        data: Source
        """Problems."""

    path = write(tmp_path / "d.jsonl", ROWS)
    recipe = load_settings(Recipe, {"data": {"name": "file", "path": str(path), "limit": 2}})
    assert len(load_problems(recipe.data)) == 2
    with pytest.raises(ValueError, match=r"unknown name 'fil'.*'file'"):
        load_settings(Recipe, {"data": {"name": "fil"}})
    with pytest.raises(ValueError, match=r"unknown setting 'data.fields.anser'.*'answer'"):
        load_settings(Recipe, {"data": {"name": "file", "path": "x", "fields": {"anser": "a"}}})


def test_overlap_names_held_out_problems_that_are_trained_on(tmp_path):
    train = load(write(tmp_path / "a.jsonl", ROWS[:2]))
    held_out = load(
        write(tmp_path / "b.jsonl", [*ROWS[1:], {"problem": " 1+1= ", "answer": "2", "level": ""}])
    )
    assert overlap(train, held_out) == [held_out[0].id, held_out[2].id]
    assert overlap(train[:1], held_out[:2]) == []
