"""metrics.jsonl as running, killed and resumed runs leave it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.report.history import read_history


def write(folder, *lines):
    path = folder / "metrics.jsonl"
    path.write_text(
        "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    )
    return path


def test_columns_hold_values_at_their_steps(tmp_path):
    history = read_history(
        write(tmp_path, {"step": 0, "eval/a/accuracy": 0.25}, {"step": 1, "reward/mean": 0.5})
    )
    assert history.steps == (0, 1)
    assert history.columns == {"eval/a/accuracy": [0.25, None], "reward/mean": [None, 0.5]}
    assert history.points("reward/mean") == [(1, 0.5)]
    assert history.notes == ()


def test_steps_written_again_after_a_resume_replace_the_abandoned_attempt(tmp_path):
    first = [{"step": step, "reward/mean": 0.1} for step in range(1, 8)]
    second = [{"step": step, "reward/mean": 0.9} for step in (5, 6)]
    history = read_history(write(tmp_path, *first, *second))
    assert history.steps == (1, 2, 3, 4, 5, 6), "step 7 of the abandoned attempt is gone"
    assert history.columns["reward/mean"] == [0.1] * 4 + [0.9] * 2
    assert history.rewound
    assert any("resumed" in note and "step 5" in note for note in history.notes)


def test_a_second_line_of_a_step_with_other_metrics_joins_the_first(tmp_path):
    history = read_history(
        write(tmp_path, {"step": 1, "a": 1}, {"step": 1, "eval/x/accuracy": 0.5})
    )
    assert history.columns == {"a": [1.0], "eval/x/accuracy": [0.5]}
    assert not history.rewound


def test_not_finite_values_leave_a_gap_and_a_note(tmp_path):
    lines = ['{"step": 1, "policy/loss": NaN}\n', '{"step": 2, "policy/loss": -Infinity}\n']
    history = read_history(write(tmp_path, *lines, {"step": 3, "policy/loss": None, "x": 1}))
    assert history.columns["policy/loss"] == [None, None, None]
    assert history.not_finite == {"policy/loss": [1, 2]}
    assert any("policy/loss is not a finite number at step 1, 2" in note for note in history.notes)


@pytest.mark.parametrize("tail", ['{"step": 2, "reward/me', '{"step": 2, "x": "\xff', "{", "nul"])
def test_an_incomplete_last_line_is_left_out_and_told(tmp_path, tail):
    history = read_history(write(tmp_path, {"step": 1, "reward/mean": 0.5}, tail))
    assert history.steps == (1,)
    assert any("last line" in note and "incomplete" in note for note in history.notes)


def test_unreadable_lines_in_the_middle_are_told_by_number(tmp_path):
    history = read_history(
        write(tmp_path, {"step": 1, "a": 1}, "oops\n", "\n", {"step": 2, "a": 2})
    )
    assert history.steps == (1, 2)
    assert any("could not be read: 2" in note for note in history.notes)


@pytest.mark.parametrize("text", ["", "\n\n", '{"loss": 3}\n', '{"step": 1.5, "a": 1}\n'])
def test_a_file_without_steps_says_so(tmp_path, text):
    history = read_history(write(tmp_path, text))
    assert history.steps == ()
    assert any("No step" in note for note in history.notes)


def test_long_runs_are_thinned_but_keep_evaluations_and_the_last_step(tmp_path):
    rows = [{"step": step, "a": step} for step in range(1, 1001)]
    rows[502]["eval/x/accuracy"] = 0.5
    history = read_history(write(tmp_path, *rows), max_steps=100)
    assert len(history.steps) <= 102
    assert {1, 503, 1000} <= set(history.steps)
    assert any("1,000 steps were logged" in note for note in history.notes)


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(0, 60))
def test_any_order_and_any_cut_gives_rising_steps_with_the_newest_values(
    tmp_path_factory, steps, cut
):
    """Lines cut at an arbitrary byte: steps rise and each value is the last written of its step."""
    lines = [json.dumps({"step": step, "a": index}) for index, step in enumerate(steps)]
    text = "\n".join(lines)[: -cut or None]
    path = tmp_path_factory.mktemp("any") / "metrics.jsonl"
    path.write_text(text)
    history = read_history(path)
    assert all(np.diff(history.steps) > 0)
    whole = [json.loads(line) for line in text.split("\n") if line.endswith("}")]
    newest = {row["step"]: row["a"] for row in whole}
    assert all(newest[step] == value for step, value in history.points("a"))
    if whole:
        assert history.steps[-1] == whole[-1]["step"]
