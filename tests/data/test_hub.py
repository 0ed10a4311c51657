"""Data sets through the datasets library, from folders on this machine."""

import json
import re

import datasets
import pytest

from rlvr.data import Fields, HubSource, load_problems

ROWS = [{"question": f"{n}+1=", "answer": f"work #### {n + 1}", "level": n} for n in range(6)]
FIELDS = Fields(problem="question", answer_after="####")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    """A folder of data files, as a repository on the Hub has them."""
    path = tmp_path / "sums"
    path.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(path / "train.parquet")
    (path / "test.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    (path / "test.jsonl").rename(path / "unused.md")
    return path


def texts(problems):
    return [problem.messages[0]["content"] for problem in problems]


def test_a_folder_of_data_files_is_loaded(folder):
    source = HubSource(path=str(folder), fields=Fields(**{**dict(FIELDS), "metadata": ("level",)}))
    problems = load_problems(source)
    assert texts(problems) == [row["question"] for row in ROWS]
    assert [p.answer for p in problems] == [str(n + 1) for n in range(6)]
    assert [p.metadata["level"] for p in problems] == list(range(6))
    assert {p.source for p in problems} == {str(folder)}


def test_a_slice_of_a_split_is_loaded(folder):
    source = HubSource(path=str(folder), split="train[2:4]", fields=FIELDS)
    assert texts(load_problems(source)) == ["2+1=", "3+1="]


def test_subsets_are_folders_named_in_the_card(folder):
    (folder / "easy").mkdir()
    (folder / "train.parquet").rename(folder / "easy" / "train.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: easy\n  data_files: easy/*.parquet\n---\n"
    )
    source = HubSource(path=str(folder), subset="easy", fields=FIELDS)
    assert len(load_problems(source)) == 6
    refused(HubSource(path=str(folder), subset="esy", fields=FIELDS), "(esy)", "easy")


def test_what_save_to_disk_wrote_is_loaded(tmp_path):
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    saved.save_to_disk(tmp_path / "dict")
    saved["train"].save_to_disk(tmp_path / "single")
    for name in ("dict", "single"):
        source = HubSource(path=str(tmp_path / name), fields=FIELDS)
        assert texts(load_problems(source)) == [row["question"] for row in ROWS]
    refused(
        HubSource(path=str(tmp_path / "dict"), split="trian", fields=FIELDS),
        "unknown split",
        "did you mean 'train'",
    )


def refused(source, *words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        load_problems(source)
    message = str(caught.value)
    assert "\n" not in message
    assert source.path in message
    for word in words:
        assert word in message


def test_an_unknown_split_is_named_with_those_there_are(folder):
    refused(HubSource(path=str(folder), split="tests", fields=FIELDS), "'tests'", "train")


def test_a_missing_field_lists_all_the_columns(folder):
    fields = Fields(problem="problem")
    refused(
        HubSource(path=str(folder), fields=fields), "no field 'problem'", "'level'", "'question'"
    )


def test_an_id_column_is_found_and_others_are_not_read(tmp_path, monkeypatch):
    rows = [{"problem": "p", "answer": "a", "id": "x", "image": "big"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "d")
    chosen = []
    select = datasets.Dataset.select_columns
    monkeypatch.setattr(
        datasets.Dataset,
        "select_columns",
        lambda self, names: chosen.append(names) or select(self, names),
    )
    assert load_problems(HubSource(path=str(tmp_path / "d")))[0].id == "x"
    assert [sorted(names) for names in chosen] == [["answer", "id", "problem"]]


def test_nested_columns_are_reached(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "p"}], "reward": {"truth": "a"}}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "d")
    fields = Fields(messages="prompt", answer="reward.truth")
    (problem,) = load_problems(HubSource(path=str(tmp_path / "d"), fields=fields))
    assert (problem.messages[0]["content"], problem.answer) == ("p", "a")


def test_a_data_set_that_cannot_be_reached_is_refused_with_the_remedy():
    source = HubSource(path="nobody/nothing-of-that-name")
    refused(source, "split 'train'", "Hub can be reached", "local folder")


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(HubSource(path=str(tmp_path / "empty")), "check subset, split and the files")


def test_a_data_set_that_is_a_script_is_not_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("raise SystemExit('ran')")
    refused(HubSource(path=str(folder)), "check subset")


def test_an_empty_data_set_is_refused(tmp_path):
    empty = datasets.Dataset.from_dict({"problem": [], "answer": []})
    empty.save_to_disk(tmp_path / "d")
    refused(HubSource(path=str(tmp_path / "d")), "is empty")
