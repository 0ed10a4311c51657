"""One data set in every type of TRL and every kind of file gives the same rows."""

import csv
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from eval.benchmarks import FileRows, load_benchmark
from rlvr.data import Fields, FileSource, load_problems, load_template
from rlvr.data.cells import Cell, as_number, as_structure, as_truth
from rlvr.data.demonstrations import load_demonstrations
from rlvr.data.graded import write_preferences
from rlvr.data.labelled_responses import load_responses
from rlvr.data.preferences import PreferenceFile, load_preferences
from rlvr.data.solutions import load_solutions, step_labels
from rlvr.policy.tiny import character_tokenizer
from tests.data.byte_tokenizers import WITH_BEGIN, build

FORMATS = ["jsonl", "json", "csv", "parquet", "saved", "splits"]


def write(folder, ending, rows):
    """Rows as a file of a kind, or as a saved data set; cells of CSV hold lists in JSON."""
    path = folder / f"rows.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            for row in rows:
                nested = {k: json.dumps(v) for k, v in row.items() if isinstance(v, list | dict)}
                writer.writerow({**row, **nested})
    else:
        saved = Dataset.from_list(rows)
        (saved if ending == "saved" else DatasetDict({"train": saved})).save_to_disk(path)
    return path


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("2+2="), said("4")]},
        {"prompt": "2+2=", "completion": "4"},
        {"prompt": [user("2+2=")], "completion": [said("4")]},
        {"prompt": [user("2+2=")], "response": "4"},
        {"completion": [user("2+2="), said("4")]},
    ],
)
def test_demonstrations(tmp_path, ending, row):
    tokenizer = character_tokenizer()
    path = write(tmp_path, ending, [row])
    (found,) = load_demonstrations([path], load_template("plain"), tokenizer)
    assert tokenizer.decode(found.prompt_ids) == "<bos>2+2="
    assert tokenizer.decode(found.token_ids) == "4<eos>"


def test_a_whole_text_is_learnt_but_its_first_token(tmp_path):
    path = write(tmp_path, "jsonl", [{"text": "2+2=4"}])
    for tokenizer, first, rest in (
        (character_tokenizer(), "2", "+2=4<eos>"),
        (build(WITH_BEGIN, "<s> $A"), "<s>", "2+2=4</s>"),
    ):
        (found,) = load_demonstrations([path], load_template("plain"), tokenizer)
        assert tokenizer.decode(found.prompt_ids) == first
        assert tokenizer.decode(found.token_ids) == rest


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
        {"chosen": "2+2=4", "rejected": "2+2=5"},
        {"prompt": [user("2+2=")], "chosen": [said("4")], "rejected": [said("5")]},
        {"chosen": [user("2+2="), said("4")], "rejected": [user("2+2="), said("5")]},
    ],
)
def test_pairs(tmp_path, ending, row):
    scored = {**row, "chosen_score": 2, "rejected_score": 0.5}
    path = write(tmp_path, ending, [scored])
    (found,) = load_preferences(PreferenceFile(path=path), "pairs")
    assert (found.messages, found.completions) == ((user("2+2="),), ("4", "5"))
    assert found.scores == (2, 0.5)
    right, wrong = load_responses([path])
    assert (right.text, right.correct, wrong.text, wrong.correct) == ("4", True, "5", False)
    assert right.problem == wrong.problem


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "completions"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is", (" blue.", " green.")),
        ("The sky is blue.", "The sky is black.", "The sky is", (" blue.", " black.")),
        ("2+2=4", "2+2=42", "2+2=", ("4", "42")),
        ("Q: 2?\nA: 4", "Q: 2?\nA: 4 or 5", "Q: 2?\nA:", (" 4", " 4 or 5")),
    ],
)
def test_a_prompt_that_is_not_given_ends_where_the_sides_part(
    tmp_path, chosen, rejected, prompt, completions
):
    path = write(tmp_path, "jsonl", [{"chosen": chosen, "rejected": rejected}])
    (found,) = load_preferences(PreferenceFile(path=path), "pairs")
    assert (found.messages[0]["content"], found.completions) == (prompt, completions)


def test_replies_alone_are_no_prompt(tmp_path):
    row = {"chosen": [said("It is 4")], "rejected": [said("It is 5")]}
    with pytest.raises(ValueError, match="there is no prompt"):
        load_preferences(PreferenceFile(path=write(tmp_path, "jsonl", [row])), "pairs")


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(("good", "bad"), [(True, False), (1, 0), (1.0, 0.0)])
@pytest.mark.parametrize("conversational", [True, False])
def test_labels(tmp_path, ending, good, bad, conversational):
    rows = [
        {
            "prompt": [user("2+2=")] if conversational else "2+2=",
            "completion": [said(text)] if conversational else text,
            "label": label,
        }
        for text, label in (("4", good), ("5", bad))
    ]
    path = write(tmp_path, ending, rows)
    found = load_preferences(PreferenceFile(path=path), "labelled")
    assert [(item.completions, item.desirable) for item in found] == [
        (("4",), True),
        (("5",), False),
    ]
    responses = load_responses([path])
    assert [(item.text, item.correct) for item in responses] == [("4", True), ("5", False)]
    assert responses[0].messages == (user("2+2="),)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("names", [("steps", "step_labels"), ("completions", "labels")])
@pytest.mark.parametrize("labels", [[True, False], [1, 0]])
def test_steps(tmp_path, ending, names, labels):
    row = {
        "prompt": "9.8 or 9.11?",
        **dict(zip(names, (["0.8", "0.11 is more"], labels), strict=True)),
    }
    (found,) = load_solutions([write(tmp_path, ending, [row])], lambda text: [0])
    assert (step_labels(found), found.first_error) == ((1.0, 0.0), 1)
    first = {"problem": "q", "steps": ["a", "b"], "label": 1}
    (tmp_path / "own").mkdir()
    (found,) = load_solutions([write(tmp_path / "own", ending, [first])], lambda text: [0])
    assert found.first_error == 1


def test_cells_have_types_where_a_field_wants_them():
    assert [as_truth(Cell(x)) for x in ("True", "false", "1", "0.0", "2", "")] == [
        True, False, True, False, None, None,
    ]  # fmt: skip
    assert [as_truth(x) for x in (1, 0, 1.0, True, "True", "1", 2, None)] == [
        True, False, True, True, True, None, None, None,
    ]  # fmt: skip
    assert [as_number(x) for x in (Cell("-1.5"), 2, Cell("a"), "2", True)] == [
        -1.5, 2.0, None, None, None,
    ]  # fmt: skip
    assert as_structure(Cell("[1, null]")) == [1, None]
    assert as_structure(Cell("[1, 2)")) == "[1, 2)"
    assert as_structure("[1]") == "[1]"


def test_csv_keeps_text_where_text_is_wanted(tmp_path):
    rows = [{"problem": "[1, 2]?", "answer": "[0, 1]", "info": json.dumps(["x" * 140_000])}]
    before = csv.field_size_limit()
    (found,) = load_problems(FileSource(path=write(tmp_path, "csv", rows)))
    assert (found.messages, found.answer) == ((user("[1, 2]?"),), "[0, 1]")
    assert type(found.answer) is type(found.messages[0]["content"]) is str
    assert csv.field_size_limit() == before
    fields = Fields(metadata=("info.0",))
    (found,) = load_problems(FileSource(path=tmp_path / "rows.csv", fields=fields))
    assert len(found.metadata["info.0"]) == 140_000


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "saved"])
def test_rewards_with_lists_of_answers(tmp_path, ending):
    """As verl writes them."""
    rows = [{"prompt": [user("2+2=")], "reward_model": {"ground_truth": ["4", "four"]}}]
    path = write(tmp_path, ending, rows)
    fields = {"messages": "prompt", "answer": "reward_model.ground_truth"}
    with pytest.raises(ValueError, match=re.escape("fields.answer: reward_model.ground_truth.0")):
        load_problems(FileSource(path=path, fields=Fields(**fields)))
    for name in ("reward_model.ground_truth.0", "reward_model.ground_truth"):
        rows[0]["reward_model"]["ground_truth"] = ["4", "four"][: 1 + name.endswith("0")]
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, ending, rows)
        (found,) = load_problems(FileSource(path=path, fields=Fields(**{**fields, "answer": name})))
        assert (found.messages, found.answer) == ((user("2+2="),), "4")


def test_a_response_votes_whether_or_not_its_label_is_given(tmp_path):
    rows = [
        {"prompt": "2+2=", "response": "so \\boxed{4}", "correct": True, "answer": "4"},
        {"prompt": "2+2=", "response": "so \\boxed{5}", "correct": 0, "answer": "4"},
        {"prompt": "2+2=", "response": "so \\boxed{5}", "answer": "4"},
        {"prompt": "2+2=\n<think>\n", "response": "so \\boxed{5}", "correct": False},
        {"prompt": "2+2=", "response": "so", "correct": False, "extracted": "7"},
    ]
    found = load_responses([write(tmp_path, "jsonl", rows)])
    assert [item.extracted for item in found] == ["4", "5", "5", None, "7"]
    assert [item.correct for item in found] == [True, False, False, False, False]


@pytest.mark.parametrize("ending", ["csv", "saved"])
def test_graded_completions_become_pairs_from_any_file(tmp_path, ending):
    rows = [
        {"prompt": "2+2=", "response": text, "correct": right, "reward": right}
        for text, right in (("4", 1), ("5", 0))
    ]
    assert write_preferences([write(tmp_path, ending, rows)], tmp_path / "pairs.jsonl") == 1
    row = json.loads((tmp_path / "pairs.jsonl").read_text())
    assert (row["chosen"], row["chosen_score"]) == ("4", 1)


def test_a_benchmark_of_files_takes_other_columns(tmp_path):
    rows = [{"question": "2+2=", "solution": 4, "level": 1}, {"question": "?", "solution": None}]
    own = FileRows(Fields(problem="question", answer="solution"), "drop")
    for ending in FORMATS:
        path = write(tmp_path, ending, rows)
        with pytest.raises(ValueError, match="name the right one under 'fields'"):
            load_benchmark(f"x={path}")
        with pytest.warns(UserWarning, match="dropped 1 unusable rows"):
            loaded = load_benchmark(f"x={path}", rows=own)
        assert [problem.answer for problem in loaded.problems] == ["4"]
    assert load_benchmark(str(tmp_path / "rows.saved"), rows=own).name == "rows"
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        load_benchmark(f"x={tmp_path}")


def test_splits_of_a_saved_data_set_are_named_by_their_folders(tmp_path):
    rows = Dataset.from_list([{"prompt": "2+2=", "response": "4"}])
    DatasetDict({"one": rows, "two": rows}).save_to_disk(tmp_path / "both")
    tokenizer, template = character_tokenizer(), load_template("plain")
    with pytest.raises(ValueError, match=re.escape(f"name one, as {tmp_path / 'both' / 'one'}")):
        load_demonstrations([tmp_path / "both"], template, tokenizer)
    assert len(load_demonstrations([tmp_path / "both" / "two"], template, tokenizer)) == 1
    with pytest.raises(ValueError, match="wrote; name a file in it"):
        load_demonstrations([tmp_path], template, tokenizer)
