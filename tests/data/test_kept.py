"""Kept completions: how they ended, and which are no data for other tasks."""

import pytest

from rlvr.data.graded import pairs_of_rows
from rlvr.data.kept import check_one_turn, was_cut
from rlvr.data.rows import Row


def test_every_end_but_its_own_cuts_a_completion():
    for reason in ("length", "turns", "tokens", "seconds", "tool_calls"):
        assert was_cut({"finish_reason": reason})
    for reason in ("stop", None, "eos"):
        assert not was_cut({"finish_reason": reason})


def test_an_episode_is_no_answer_to_its_prompt():
    check_one_turn({"turns": [[0, 3, None]]}, "line 1")
    check_one_turn({}, "line 1")
    row = {"prompt": "a", "response": "b", "correct": True, "turns": [[0, 1, 0.0], [2, 3, 1.0]]}
    with pytest.raises(ValueError, match="line 7: the completion is an episode of 2 turns"):
        pairs_of_rows([Row("line 7", row)], per_prompt=1)
