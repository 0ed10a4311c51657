"""Which completions a page carries, and how they are written into it."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.report.completions import choose_completions, embed, spread_order

NASTY = '</script><img src=x onerror=alert(1)><!--<script>\u2028 "\\'


def rows_of(file):
    return json.loads(file.text)["rows"]


@given(st.integers(0, 300))
def test_spread_order_visits_every_index_once_newest_and_first_in_front(count):
    order = spread_order(count)
    assert sorted(order) == list(range(count))
    if count > 1:
        assert order[:2] == [count - 1, 0]


@given(st.integers(20, 300), st.integers(4, 19))
def test_any_front_of_the_spread_order_leaves_no_wide_gap(count, taken):
    chosen = sorted(spread_order(count)[:taken])
    widest = max(b - a for a, b in pairwise(chosen))
    assert widest <= 4 * count / taken + 1


def test_everything_is_kept_where_it_fits(run):
    chosen = choose_completions(run)
    assert [f.step for f in chosen.files if f.kind == "training"] == list(range(1, 61))
    assert [f.step for f in chosen.files if f.kind == "evaluation"] == list(range(0, 61, 10))
    assert all(f.rows == f.total for f in chosen.files)
    assert chosen.notes == ()


def test_rows_keep_what_was_written(run, maker):
    path = run / "completions/step_000007.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()]
    file = next(f for f in choose_completions(run).files if (f.kind, f.step) == ("training", 7))
    data = json.loads(file.text)
    for source, row in zip(written, data["rows"], strict=True):
        assert data["prompts"][row["prompt"]] == source["prompt"]
        assert row.get("response", "".join(row["tokens"])) == source["response"]
        assert row["tokens"] == source["tokens"]
        assert row["lists"]["logprobs"] == pytest.approx(source["logprobs"], abs=5e-5)
        assert {k: row[k] for k in ("reward", "rewards", "correct", "answer")} == {
            k: source[k] for k in ("reward", "rewards", "correct", "answer")
        }


def test_a_row_budget_keeps_newest_and_first_and_whole_groups_and_says_so(run):
    chosen = choose_completions(run, max_rows=200)
    training = [f for f in chosen.files if f.kind == "training"]
    assert sum(f.rows for f in chosen.files) <= 200
    assert {1, 60} <= {f.step for f in training}
    for file in training:
        groups = [row["group"] for row in rows_of(file)]
        assert all(groups.count(group) == 8 for group in groups)
    assert any("of the 60 steps with training completions" in note for note in chosen.notes)


def test_a_byte_budget_holds(run):
    chosen = choose_completions(run, max_bytes=60_000)
    assert 0 < sum(len(f.text.encode()) for f in chosen.files) <= 62_000
    assert chosen.notes


def test_steps_of_an_abandoned_attempt_are_skipped(run):
    assert max(f.step for f in choose_completions(run, last_step=43).files) == 43


def test_other_lists_with_one_number_per_token_are_kept_for_colouring(run, maker):
    row = maker.completion(61, 0, 0, 12, 34)
    row |= {"token_rewards": [0.5] * len(row["tokens"]), "short": [1.0], "margin": 0.25}
    maker.write_lines("completions/step_000061.jsonl", [row])
    (kept,) = rows_of(next(f for f in choose_completions(run).files if f.step == 61))
    assert set(kept["lists"]) == {"logprobs", "token_rewards"}
    assert kept["extra"] == {"margin": 0.25}


@pytest.mark.parametrize(
    ("ends", "kept"), [("all", True), ([2], False), ([3, 2], False), ("x", False), ([], False)]
)
def test_ends_of_steps_are_kept_where_they_part_the_tokens(run, maker, ends, kept):
    row = maker.completion(61, 0, 0, 12, 34)
    ends = [2, len(row["tokens"])] if ends == "all" else ends
    maker.write_lines("completions/step_000061.jsonl", [row | {"step_ends": ends}])
    (found,) = rows_of(next(f for f in choose_completions(run).files if f.step == 61))
    assert found.get("steps") == (ends if kept else None)


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        ([[0, 2, 0.5], [3, 5, None]], True),
        ([[0, 2, 0.5]], False),  # one turn is an answer as any other
        ([[0, 3, 0.5], [2, 5, None]], False),
        ([[0, 2, 0.5], [3, 5000, None]], False),
        ([[0, 2], [3, 5]], False),
        ([[0, 2, 0.5], ["3", 5, None]], False),
        ("x", False),
    ],
)
def test_turns_are_kept_where_they_lie_in_the_tokens(run, maker, turns, kept):
    row = maker.completion(61, 0, 0, 12, 34)
    maker.write_lines("completions/step_000061.jsonl", [row | {"turns": turns}])
    (found,) = rows_of(next(f for f in choose_completions(run).files if f.step == 61))
    assert found.get("turns") == (turns if kept else None)


def test_rows_with_missing_fields_and_broken_lines_do_not_stop_the_page(run, maker):
    path = maker.write_lines("completions/step_000061.jsonl", [{"step": 61}, {"response": "x"}])
    path.write_text(path.read_text() + '{"step": 61, "resp')
    chosen = choose_completions(run)
    file = next(f for f in chosen.files if f.step == 61)
    assert file.rows == 2
    assert any("completions/step_000061.jsonl is incomplete" in note for note in chosen.notes)


@given(st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x), max_leaves=5))
def test_embedded_json_reads_back_and_cannot_leave_its_element(value):
    text = embed([value, NASTY])
    assert "<" not in text
    text.encode("utf-8")
    assert json.loads(text) == [value, NASTY]


def test_lone_surrogates_become_a_question_mark():
    assert json.loads(embed("a\ud83db")) == "a?b"
