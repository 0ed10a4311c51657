"""Scoring: graders, disagreements, votes, faults."""

import json

import pytest

from eval.evaluation_folder import Appender, differences, read_lines
from eval.metrics import benchmark_metrics
from eval.results import results_table, write_results
from eval.score import equal_answers, outcomes_by_benchmark, read_recorded, score, verifier
from tests.eval.small import write_samples

BOX = "\\boxed{9}"
RESPONSES = [
    (r"so \boxed{\frac{1}{2}}", "0.5", {"rlvr": True, "qwen": True, "exact": False}),
    ("I think it is 7", "7", {"rlvr": False, "qwen": True, "exact": False}),
    (r"\boxed{50}", "0.5", {"rlvr": False, "qwen": True, "exact": False}),
    (r"\boxed{12}", "12", {"rlvr": True, "qwen": True, "exact": True}),
    (r"\boxed{13}", "12", {"rlvr": False, "qwen": False, "exact": False}),
    (f"<think>\n{BOX}", "9", {"rlvr": False, "qwen": True, "exact": False}),
    (f"<|open_plan|>{BOX}", "9", {"rlvr": False, "qwen": True, "exact": False}),
]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The responses above as one problem each, and one more that was cut after its box."""
    folder = write_samples(tmp_path_factory.mktemp("scored") / "run", "m", 0.5)
    plan = json.loads((folder / "plan.json").read_text())
    plan["benchmarks"] = {"x": {**plan["benchmarks"]["math500"], "samples": 1}}
    plan["thoughts"] = [["<|open_plan|>", "<|end_plan|>"]]
    (folder / "plan.json").write_text(json.dumps(plan))
    pairs = [*[(text, gold, "stop") for text, gold, _ in RESPONSES], (r"\boxed{3}", "3", "length")]
    problems, samples = [], []
    for index, (text, gold, finish) in enumerate(pairs):
        place = {"benchmark": "x", "problem": str(index)}
        # As if the prompt had opened the thought.
        opened, response = ("<think>\n", BOX) if "<think>" in text else ("", text)
        problems.append({**place, "prompt": opened, "question": "q", "answer": gold})
        draw = {"greedy": False, "sample": 0, "response": response, "tokens": 3}
        samples.append({**place, **draw, "finish_reason": finish})
    for name, rows in (("problems.jsonl", problems), ("samples.jsonl", samples)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, score(read_recorded(folder), workers=1, alongside=("rlvr", "qwen", "exact"))


def test_every_grader_gives_its_own_verdict(scored):
    for row, (text, _, expected) in zip(scored[1], RESPONSES, strict=False):
        found = {name: verdict["correct"] for name, verdict in row["verdicts"].items()}
        assert found == expected, text
        assert row["correct"] == expected["rlvr"]


def test_disagreements_are_listed_with_what_was_read(scored):
    rows = read_lines(scored[0] / "disagreements.jsonl", ended=True).objects
    assert [row["problem"] for row in rows] == ["0", "1", "2", "5", "6"]
    assert rows[1]["verdicts"]["qwen"][:2] == [True, "7"]
    assert rows[1]["response_end"] == "I think it is 7"


def test_a_cut_response_is_wrong_where_the_protocol_says_so(scored):
    row = scored[1][-1]
    assert row["truncated"]
    assert row["verdicts"]["rlvr"]["correct"]
    assert not row["correct"]


def test_results_say_who_judged_and_how_often_they_differ(scored):
    folder, rows = scored
    results = write_results(read_recorded(folder), rows)
    item = results["benchmarks"]["x"]
    assert item["graders"] == {
        "correct": {"rlvr": 3, "qwen": 7, "exact": 2}, "samples": 8, "disagreements": 5
    }  # fmt: skip
    assert item["avg"]["value"] == pytest.approx(2 / 8, abs=1e-6)
    assert item["grader_statuses"] == {"no_answer": 3}
    assert results_table(results).row_count == 2


def test_equal_answers_share_a_vote():
    with verifier("rlvr", 1, 5.0) as pool:
        found = equal_answers(pool, ["0.5", "1", "1.0", "\\frac{1}{2}", "x+1", "1+x"])
    assert found["0.5"] == found["\\frac{1}{2}"]
    assert found["1"] == found["1.0"]
    assert found["x+1"] == found["1+x"]
    assert len(set(found.values())) == 3


def test_votes_make_the_majority(tmp_path):
    folder = write_samples(tmp_path / "run", "m", 0.5, n=5)
    rows = score(read_recorded(folder), workers=1, alongside=())
    recorded = read_recorded(folder)
    outcomes = outcomes_by_benchmark(recorded.plan, recorded.problems, rows)["math500"]
    for problem in outcomes:
        for outcome in problem.sampled:
            assert (outcome.vote == 0) == outcome.correct
    assert benchmark_metrics(outcomes, "x")["maj"][1].value == pytest.approx(
        sum(problem.average for problem in outcomes) / len(outcomes)
    )


def test_what_was_not_finished_or_is_damaged_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not an evaluation"):
        read_recorded(tmp_path)
    folder = write_samples(tmp_path / "run", "m", 0.5)
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"benchmark": "math500"')
    with pytest.raises(ValueError, match="1 lines that are not JSON objects"):
        read_recorded(folder)
    (folder / "samples.jsonl").unlink()
    with pytest.raises(ValueError, match=r"not finished.*run the same `rlvr eval` again"):
        read_recorded(folder)


def test_a_cut_line_is_dropped_before_the_next_is_written(tmp_path):
    path = tmp_path / "part.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert read_lines(path, ended=True).incomplete
    with Appender(path) as part:
        part.add({"a": 3})
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_differences_are_named_by_their_path():
    before, after = {"a": {"b": 1, "c": 2}, "d": 0}, {"a": {"b": 1, "c": 3}, "e": 4}
    assert list(differences(before, after)) == [
        "a.c was 2 and is 3", "d was 0 and is null", "e was null and is 4"
    ]  # fmt: skip
