"""Trace rows survive being written and read, and broken ones are named."""

import json

import pytest

from rlvr.distill.trace import Trace, read_traces, trace_line, write_traces


def trace(**changes) -> Trace:
    values = {
        "id": "p/0",
        "problem_id": "p",
        "sample": 0,
        "prompt": "1+1=",
        "prompt_ids": (1, 2),
        "token_ids": (5, 6, 2),
        "text": "→ 2",
        "finish_reason": "stop",
        "reward": 1.0,
        "answer": "2",
        "writer": "tst",
        "teacher_prob": (0.123456789, 0.0, None),
        "student_prob": (0.5, 1e-9, 1.0),
        "settings": "abc",
    }
    return Trace(**{**values, **changes})


def test_a_file_gives_back_what_was_written(tmp_path):
    written = [trace(), trace(id="p/1", sample=1, reward=None, answer=None)]
    write_traces(tmp_path / "traces.jsonl", written)
    assert read_traces(tmp_path / "traces.jsonl") == written
    assert written[0].teacher_prob == (0.123457, 0.0, None)
    assert written[0].fallback_rate == pytest.approx(1 / 3)
    assert "→" in (tmp_path / "traces.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"writer": "ts"}, "writer has 2 entries for 3 tokens"),
        ({"writer": "txs"}, "writer"),
        ({"student_prob": [0.1, 1.5, 0.2]}, "student_prob"),
        ({"finish_reason": "eos"}, "finish_reason"),
    ],
)
def test_a_broken_row_is_named_with_its_line(tmp_path, change, said):
    row = {**json.loads(trace_line(trace())), **change}
    path = tmp_path / "traces.jsonl"
    path.write_text(trace_line(trace()) + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="line 2") as fault:
        read_traces(path)
    assert said in str(fault.value)


def test_a_trace_that_stands_twice_and_no_traces_at_all_are_refused(tmp_path):
    path = tmp_path / "traces.jsonl"
    write_traces(path, [trace(), trace()])
    with pytest.raises(ValueError, match="'p/0' occurs twice"):
        read_traces(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no traces found"):
        read_traces(path)
    with pytest.raises(ValueError, match="not a file"):
        read_traces(tmp_path / "none.jsonl")
