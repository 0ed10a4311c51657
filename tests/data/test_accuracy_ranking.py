"""Ranking by historical variance: the published ranking from the published history."""

import json
import random

import pytest

from rlvr.data import (
    FileSource,
    ProblemSampler,
    accuracy_counts,
    load_problems,
    rank_by_variance,
    read_accuracy_history,
    write_selection,
)

# arXiv:2504.20571 and its released data: rank -> row id
PUBLISHED = {
    **{1: 124, 2: 267, 3: 531, 4: 931, 5: 212, 6: 25, 7: 568, 8: 131, 9: 649, 10: 724, 11: 875},
    **{12: 925, 13: 682, 14: 100, 15: 291, 16: 50, 17: 870, 605: 60, 606: 906},
}
BY_FILE_ORDER = {1201: 847, 1207: 174, 1208: 770, 1209: 789}


@pytest.fixture
def history(shared):
    return read_accuracy_history(shared / "data" / "dsr_sub_acc_history.jsonl")


def test_the_shipped_history_gives_the_published_ranking(history, shared):
    ranking = rank_by_variance(history)
    for rank, row in (PUBLISHED | BY_FILE_ORDER).items():
        assert (ranking[rank - 1].rank, ranking[rank - 1].id) == (rank, str(row))
    first = ranking[0]
    assert (round(first.std, 4), round(first.mean, 3), first.visits) == (0.4068, 0.441, 53)
    assert round(ranking[1].std, 4) == 0.3961
    assert round(ranking[12].std, 4) == 0.2726
    assert round(sorted(found.std for found in ranking)[604], 4) == 0.1073
    assert sum(found.std == 0 for found in ranking) == 104
    assert sum(len(values) for values in history.values()) == 64_000
    lines = (shared / "data" / "dsr_sub_acc_history.jsonl").read_text().splitlines()
    assert [found.id for found in ranking] == [str(json.loads(line)["id"]) for line in lines]


def test_the_ranking_comes_from_the_values_and_not_from_the_order_of_the_file(history):
    ids = list(history)
    random.Random(0).shuffle(ids)
    ranking = rank_by_variance({problem: history[problem] for problem in ids})
    for rank, row in PUBLISHED.items():
        assert ranking[rank - 1].id == str(row)
    assert [r.id for r in ranking[-104:]] == [i for i in ids if len(set(history[i])) == 1]


def test_the_selected_file_is_the_shipped_one(history, shared, tmp_path):
    problems = load_problems(FileSource(path=shared / "data" / "dsr_sub.jsonl", bad_rows="drop"))
    out = tmp_path / "chosen.jsonl"
    write_selection(out, rank_by_variance(history), [1, 2, 13, 1209], problems)
    ours = load_problems(FileSource(path=out))
    theirs = load_problems(FileSource(path=shared / "data" / "train_pi1_pi2_pi13_pi1209.jsonl"))
    assert [(p.id, p.messages, p.answer) for p in ours] == [
        (p.id, p.messages, p.answer) for p in theirs
    ]


def test_a_runs_history_counts_copies_exactly(tmp_path):
    graded = [("a", True)] * 5 + [("b", False)] * 8 + [("a", False)] * 11
    assert accuracy_counts(graded) == {"a": [5, 16], "b": [0, 8]}
    rows = [
        {"step": 1, "counts": accuracy_counts(graded)},
        {"step": 2, "counts": {"a": [16, 16]}},
        {"step": 3, "counts": {"b": [1, 8]}},
    ]
    (tmp_path / "accuracy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    history = read_accuracy_history(tmp_path)
    assert history == {"a": [5 / 16, 1.0], "b": [0.0, 1 / 8]}
    assert [found.id for found in rank_by_variance(history)] == ["a", "b"]


@pytest.mark.parametrize("k", [1, 2, 4, 16])
def test_few_problems_fill_a_batch_evenly(k):
    batch = ProblemSampler(k, seed=3).next(128)
    assert [batch.count(index) for index in range(k)] == [128 // k] * k


@pytest.mark.parametrize(
    "line", ['{"id": 1}', '{"id": 1, "acc_history": [2.0]}', "[]", "{", '{"step": 1, "counts": 3}']
)
def test_lines_that_are_no_history_are_named(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_text('{"id": 0, "acc_history": [1.0]}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_accuracy_history(path)


def test_a_rank_or_problem_that_is_not_there_is_refused(tmp_path):
    ranking = rank_by_variance({"a": [0.0, 1.0]})
    with pytest.raises(ValueError, match="rank 2"):
        write_selection(tmp_path / "x.jsonl", ranking, [2], [])
    with pytest.raises(ValueError, match="does not contain problem 'a'"):
        write_selection(tmp_path / "x.jsonl", ranking, [1], [])
    with pytest.raises(ValueError, match="no accuracy history"):
        read_accuracy_history(tmp_path / "nowhere")
