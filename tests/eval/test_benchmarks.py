"""Benchmarks: the registry, local files, faults."""

import json
import warnings

import pytest

from eval.benchmarks import BENCHMARKS, FOLDER_VARIABLE, known_benchmark, load_benchmark


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


AIME = [{"id": i, "problem": f"Problem {i}", "answer": f"{i:03d}"} for i in range(30)]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_its_rows_and_is_the_known_copy(name, shared):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_benchmark(name, shared / "data")
    benchmark = BENCHMARKS[name]
    assert len(loaded.problems) == benchmark.rows
    assert loaded.fingerprint == benchmark.fingerprint
    for attribute in ("subject", "level"):
        has = getattr(benchmark, attribute) is not None
        assert all((attribute in problem.metadata) == has for problem in loaded.problems)


def test_a_folder_replaces_the_hub_by_option_and_by_variable(tmp_path, monkeypatch):
    write(tmp_path / "aime24.jsonl", AIME)
    assert len(load_benchmark("aime24", tmp_path).problems) == 30
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert load_benchmark("AIME_2024").problems[7].answer == "007"
    with pytest.raises(
        ValueError, match=r"contains no file for gsm8k: gsm8k_test.jsonl is missing"
    ):
        load_benchmark("gsm8k")


def test_a_wrong_number_of_rows_is_said_with_both(tmp_path):
    write(tmp_path / "aime24.jsonl", AIME[:29])
    with pytest.warns(UserWarning, match="aime24 has 29 problems instead of 30"):
        load_benchmark("aime24", tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1, "problem": "2+2"}, "there is no field 'answer'"),
        ({"id": 1, "problem": "", "answer": "4"}, "is empty"),
    ],
)
def test_missing_fields_are_named(tmp_path, row, message):
    write(tmp_path / "aime24.jsonl", [row])
    with pytest.raises(ValueError, match=message):
        load_benchmark("aime24", tmp_path)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown benchmark 'mth500'; did you mean 'math500'"):
        known_benchmark("mth500")


def test_a_file_of_ones_own_is_a_benchmark(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"problem": "2+2", "answer": 4, "level": 1}])
    loaded = load_benchmark(str(path))
    assert (loaded.name, loaded.problems[0].answer) == ("mine", "4")
    assert loaded.problems[0].metadata == {"level": "1"}
    assert load_benchmark(f"other={path}").name == "other"
    with pytest.raises(ValueError, match="benchmark name 'a b'"):
        load_benchmark(f"a b={path}")


def test_a_limit_is_spread_over_the_file_and_changes_the_fingerprint(tmp_path):
    path = write(tmp_path / "aime24.jsonl", AIME)
    whole, part = load_benchmark("aime24", tmp_path), load_benchmark("aime24", tmp_path, limit=3)
    assert [problem.id for problem in part.problems] == ["0", "10", "20"]
    assert (part.total, len(part.problems)) == (30, 3)
    assert part.fingerprint != whole.fingerprint
    assert [p.id for p in load_benchmark(str(path), only=["4"]).problems] == ["4"]


def test_the_fingerprint_follows_every_answer(tmp_path):
    rows = [dict(row) for row in AIME]
    write(tmp_path / "aime24.jsonl", rows)
    before = load_benchmark("aime24", tmp_path).fingerprint
    rows[12]["answer"] = "13"
    write(tmp_path / "aime24.jsonl", rows)
    assert load_benchmark("aime24", tmp_path).fingerprint != before
