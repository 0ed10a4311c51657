"""Preferences in: the forms a row may have, and rows that nothing can be learned from."""

import json
import re

import pytest

from rlvr.data.graded import pairs_of_rows, write_preferences
from rlvr.data.local_file import Row
from rlvr.data.preferences import (
    PreferenceFile,
    PreferenceHub,
    encode_preferences,
    load_preferences,
)
from rlvr.data.templates import load_template
from rlvr.policy.tiny import character_tokenizer

USER = {"role": "user", "content": "2+2="}


def said(text):
    return {"role": "assistant", "content": text}


def source(tmp_path, *rows, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PreferenceFile(path=path, **settings)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [said("4")], "rejected": [said("5")]},
        {"chosen": [USER, said("4")], "rejected": [USER, said("5")]},
        {"prompt": "2+2=", "chosen": [USER, said("4")], "rejected": [USER, said("5")]},
    ],
)
def test_pairs_come_as_text_or_conversations(tmp_path, row):
    (found,) = load_preferences(source(tmp_path, row), "pairs")
    assert found.messages == (USER,)
    assert found.completions == ("4", "5")
    assert found.scores is None


def test_scores_are_kept(tmp_path):
    row = {"prompt": "2+2=", "chosen": "4", "rejected": "5", "chosen_score": 1, "rejected_score": 0}
    assert load_preferences(source(tmp_path, row), "pairs")[0].scores == (1.0, 0.0)


def test_single_completions_have_a_label(tmp_path):
    rows = [{"prompt": "2+2=", "completion": t, "label": t == "4"} for t in ("4", "5")]
    found = load_preferences(source(tmp_path, *rows), "labelled")
    assert [(item.completions, item.desirable) for item in found] == [
        (("4",), True),
        (("5",), False),
    ]


GOOD = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}


@pytest.mark.parametrize(
    ("kind", "row", "part"),
    [
        ("pairs", {**GOOD, "chosen": " "}, "chosen is empty"),
        ("pairs", {**GOOD, "rejected": ""}, "rejected is empty"),
        ("pairs", {**GOOD, "rejected": "4 "}, "are equal"),
        ("pairs", {"prompt": "2+2=", "chosen": "4"}, "rejected is missing"),
        ("pairs", {"chosen": "4", "rejected": "5"}, "there is no prompt"),
        ("pairs", {**GOOD, "prompt": " "}, "prompt is empty"),
        ("pairs", {**GOOD, "chosen": [USER]}, "not with the assistant"),
        ("pairs", {**GOOD, "chosen": 4}, "neither text nor a list"),
        ("pairs", {**GOOD, "chosen": [{"role": "robot", "content": "4"}]}, "role 'robot'"),
        (
            "pairs",
            {"chosen": [USER, said("4")], "rejected": [{**USER, "content": "3+3="}, said("5")]},
            "rejected answers another prompt, '3+3=', than '2+2='",
        ),
        ("pairs", {"prompt": "2+2=", "completion": "4", "label": True}, "use the loss kto"),
        ("labelled", {"prompt": "2+2=", "completion": "4", "label": 2}, "neither true nor false"),
        ("labelled", {"completion": "4", "label": True}, "there is no prompt"),
    ],
)  # fmt: skip
def test_rows_without_a_preference_are_refused_or_dropped(tmp_path, kind, row, part):
    with pytest.raises(ValueError, match=re.escape(part)) as caught:
        load_preferences(source(tmp_path, row), kind)
    assert "line 1" in str(caught.value)
    usable = GOOD if kind == "pairs" else {"prompt": "a", "completion": "b", "label": True}
    with pytest.warns(UserWarning, match="dropped 1 of 2 rows"):
        assert len(load_preferences(source(tmp_path, row, usable, bad_rows="drop"), kind)) == 1


def test_rows_come_from_a_data_set_folder(tmp_path):
    from datasets import Dataset

    Dataset.from_list([GOOD, {**GOOD, "chosen": "four"}]).save_to_disk(tmp_path / "set")
    found = load_preferences(PreferenceHub(path=str(tmp_path / "set"), limit=1), "pairs")
    assert [item.completions for item in found] == [("4", "5")]


def test_completions_end_with_the_end_token_and_long_ones_are_left_out(tmp_path):
    tokenizer, told = character_tokenizer(), []
    rows = load_preferences(source(tmp_path, GOOD, {**GOOD, "chosen": "4" * 9}), "pairs")

    def encode(limit):
        return encode_preferences(
            rows,
            load_template("plain"),
            tokenizer,
            max_prompt_tokens=8,
            max_completion_tokens=limit,
            notify=told.append,
        )

    (found,) = encode(4)
    assert found.completion_ids[0] == (*tokenizer.encode("4", add_special_tokens=False), 2)
    assert told == ["dropped 1 of 2 preferences that are over a token limit"]
    with pytest.raises(ValueError, match="none of 2 preferences is within"):
        encode(1)


def graded(prompt, response, correct, **more):
    return {"prompt": prompt, "response": response, "correct": correct, "reward": 1.0, **more}


def test_right_meets_wrong_within_a_prompt(tmp_path):
    lines = [
        graded("a", "1", True), graded("a", "2", False), graded("a", "3", False),
        graded("a", "1", True), graded("b", "4", True), graded("c", "5", False),
        graded("a", "9", True, finish_reason="length"),
    ]  # fmt: skip
    rows = [Row(str(number), line) for number, line in enumerate(lines)]
    (pair,) = pairs_of_rows(rows, per_prompt=4)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("a", "1", "2")
    assert [row["label"] for row in pairs_of_rows(rows, per_prompt=4, labelled=True)] == [
        True,
        False,
    ]
    with pytest.raises(ValueError, match="none of 1 prompts has both"):
        pairs_of_rows(rows[4:5], per_prompt=1)
    with pytest.raises(ValueError, match="correct = None"):
        pairs_of_rows([Row("x", {"prompt": "a", "response": "1"})], per_prompt=1)
    with pytest.raises(ValueError, match="is not a run that kept completions"):
        write_preferences([tmp_path], tmp_path / "pairs.jsonl")
    folder = tmp_path / "run" / "completions"
    folder.mkdir(parents=True)
    (folder / "step_000001.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert write_preferences([tmp_path / "run"], tmp_path / "pairs.jsonl") == 1
    assert len(load_preferences(PreferenceFile(path=tmp_path / "pairs.jsonl"), "pairs")) == 1
