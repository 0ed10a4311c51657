"""Comparisons of evaluations whose verdicts are made up."""

import json

import pytest

from eval.compare import changed_problems, compare, comparison_table, leaderboard_table


def write_scored(folder, rights, n=4, protocol="rlvr", question="q"):
    """An evaluation of one benchmark per entry: right samples by problem."""
    folder.mkdir()
    item = {"samples": n, "temperature": 0.6, "top_p": 1.0, "max_tokens": 9, "template_sha256": ""}
    plan = {"protocol": protocol, "grader": "rlvr", "truncated": "wrong"}
    plan["benchmarks"] = dict.fromkeys(rights, item)
    (folder / "plan.json").write_text(json.dumps(plan))
    problems, scores = [], []
    for name, counts in rights.items():
        for index, count in enumerate(counts):
            place = {"benchmark": name, "problem": f"p{index}"}
            problems.append({**place, "question": question, "answer": "1", "prompt": ""})
            for sample in range(-1, n):
                right = sample < count if sample >= 0 else count > n // 2
                scores.append(
                    {
                        **place,
                        "greedy": sample < 0,
                        "sample": max(sample, 0),
                        "correct": right,
                        "truncated": False,
                        "answered": True,
                        "tokens": 5,
                        "vote": 0 if right else 1,
                    }
                )
    for file, rows in (("problems.jsonl", problems), ("scores.jsonl", scores)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_problems_won_and_lost_and_the_right_tests(tmp_path):
    a = write_scored(tmp_path / "a", {"x": [0, 4, 2, 0] * 5})
    b = write_scored(tmp_path / "b", {"x": [4, 4, 1, 0] * 5})
    found = compare([a, b])
    greedy, sampled = found.comparisons
    assert (greedy.metric, sampled.metric) == ("greedy", "avg@4")
    assert greedy.p == pytest.approx(2 / 2**5)
    assert len(greedy.won) == 5
    assert greedy.lost == ()
    assert sampled.difference == pytest.approx(0.75 / 4)
    assert (len(sampled.won), len(sampled.lost)) == (5, 5)
    assert sampled.won[0] == "p0"
    assert sampled.p == pytest.approx(0.08, abs=0.02), "1.75 standard errors"
    assert greedy.p_holm == pytest.approx(2 * greedy.p)
    assert "would be positive" in found.notes[0]
    assert comparison_table(found).row_count == 2
    assert any("won: p0, p4" in line for line in changed_problems(found))


def test_only_common_problems_count_and_other_questions_are_others(tmp_path):
    a = write_scored(tmp_path / "a", {"x": [4, 0, 2]})
    b = write_scored(tmp_path / "b", {"x": [4, 0], "y": [1]})
    assert compare([a, b]).comparisons[0].problems == 2
    c = write_scored(tmp_path / "c", {"x": [4, 0, 2]}, question="another")
    with pytest.raises(ValueError, match="no problem in common"):
        compare([a, c])


def test_other_protocols_are_pointed_out(tmp_path):
    a = write_scored(tmp_path / "a", {"x": [4, 0]})
    b = write_scored(tmp_path / "b", {"x": [4, 0]}, protocol="lp_reg")
    assert any("protocol 'lp_reg'" in note for note in compare([a, b]).notes)


def test_three_or_more_get_a_leaderboard(tmp_path):
    folders = [
        write_scored(tmp_path / name, dict.fromkeys(("x", "y", "z"), counts))
        for name, counts in (("low", [0, 1] * 8), ("high", [4, 3] * 8), ("middle", [2, 2] * 8))
    ]
    found = compare(folders, tournaments=2000, resamples=20)
    assert [item.rank for item in found.standings] == [3, 1, 2]
    assert leaderboard_table(found).row_count == 3
    assert any("With 3 models" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "message"), [(["a"], "needs two"), (["a", "none"], "is not an evaluation")]
)
def test_what_cannot_be_compared_is_refused(tmp_path, names, message):
    write_scored(tmp_path / "a", {"x": [1]})
    with pytest.raises(ValueError, match=message):
        compare([tmp_path / name for name in names])


def test_an_evaluation_that_is_not_scored_is_named(tmp_path):
    a = write_scored(tmp_path / "a", {"x": [1]})
    b = write_scored(tmp_path / "b", {"x": [1]})
    (b / "scores.jsonl").unlink()
    with pytest.raises(ValueError, match="not scored yet; run: rlvr score"):
        compare([a, b])
