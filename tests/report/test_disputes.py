"""The panel of the second judge: what it says in words, the table, and the curves' intervals."""

from collections import Counter

import pytest

from rlvr.report import write_report
from rlvr.report.charts import plan_charts
from rlvr.report.disputes import MOST, read_disputes
from rlvr.report.history import read_history
from rlvr.runs.rewards import CheckSettings
from rlvr.runs.verdict_errors import check_metrics
from tests.report.conftest import embedded

SHOWN = "return Report.number(Number(arguments[0].toPrecision(6)), 'fraction')"
MARKUP = "<img src=x onerror=alert(1)>"


def row(step, answer="12", **changes):
    verdict = {"correct": True, "extracted": "7", "path": "structure", "reason": "equal",
               "certainty": "exact"}  # fmt: skip
    second = {**verdict, "correct": False, "path": "sympy and math-verify", "reason": "different",
              "certainty": ""}  # fmt: skip
    return {"step": step, "problem_id": f"add-{step}", "group": f"{step}/0", "sample": 0,
            "response": f"so \\boxed{{7}} {MARKUP}", "answer": answer, "reward": 1.0,
            "verdict": verdict, "second": second} | changes  # fmt: skip


def metrics(step):
    """A verifier of which a twentieth of the accepted is wrong, over 40 verdicts a step."""
    known = Counter(accepted=20 * step, accepted_judged=4 * step, accepted_disputed=step // 5,
                    accepted_undecided=step // 2, rejected=20 * step, rejected_judged=2 * step,
                    rejected_disputed=step // 20)  # fmt: skip
    return check_metrics(known, CheckSettings(accepted=0.2, rejected=0.1))


@pytest.fixture
def checked(maker):
    run = maker.write()
    rows = [maker.metrics(step) | (metrics(step) if step else {}) for step in range(61)]
    maker.write_lines("metrics.jsonl", rows)
    maker.write_lines("disputed.jsonl", [row(step) for step in range(1, 61)])
    return run


def test_the_newest_disputes_are_listed_and_the_estimates_said(checked):
    history = read_history(checked / "metrics.jsonl")
    panel = read_disputes(checked / "disputed.jsonl", history)
    assert [item["step"] for item in panel["rows"]] == list(range(60, 60 - MOST, -1))
    assert panel["total"] == 60
    accepted, rejected = panel["lines"]
    assert accepted.startswith("Of 1,200 accepted answers 240 were judged again: 12 contradicted")
    low, high = (history.columns[f"check/false_accepts_{end}"][-1] for end in ("low", "high"))
    assert f"5.7 % (95 % interval {100 * low:.1f} % to {100 * high:.1f} %); between" in accepted
    assert "between 5.0 % and 17.5 % of those judged again" in accepted
    assert rejected.startswith("Of 1,200 rejected answers 120 were judged again: 3 contradicted")


def test_runs_without_a_second_judge_have_no_panel_and_broken_lines_are_left_out(maker):
    run = maker.write()
    history = read_history(run / "metrics.jsonl")
    assert read_disputes(run / "disputed.jsonl", history) is None
    assert embedded(write_report(run))["disputes"] is None
    maker.write_lines("metrics.jsonl", [{"step": 1, **metrics(1)}, {"step": 2, **metrics(2)}])
    history = read_history(run / "metrics.jsonl")
    assert read_disputes(run / "none.jsonl", history)["rows"] == []
    broken = [row(1), row(2, verdict=None), row("3"), row(4, second={"correct": "no"}), row(5)]
    path = maker.write_lines("disputed.jsonl", broken)
    assert [item["step"] for item in read_disputes(path, history)["rows"]] == [5, 1]
    assert [item["step"] for item in read_disputes(path, history, last=2)["rows"]] == [1]


def test_the_charts_have_an_interval_and_bounds_and_use_every_metric():
    columns = {name: [value] for name, value in metrics(60).items()}
    charts = {chart["title"]: chart for chart in plan_charts(columns)}
    estimate, least, most = charts["Wrongly accepted, estimated"]["series"]
    assert estimate["interval"] == ("check/false_accepts_low", "check/false_accepts_high")
    assert [item["dashed"] for item in (estimate, least, most)] == [False, True, True]
    assert (least["interval"], most["interval"]) == (None, None)
    shown = [item["metric"] for chart in charts.values() for item in chart["series"]]
    ends = [end for chart in charts.values() for item in chart["series"]
            for end in item["interval"] or ()]  # fmt: skip
    assert sorted(shown + ends) == sorted(columns)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1440, 360])
def test_the_page_shows_intervals_and_a_table_in_which_text_is_text(opened, checked, width):
    page = opened(write_report(checked))
    page.resize(width, 900)
    chart = '[data-chart="Wrongly accepted, estimated"]'
    assert len(page.all(f"{chart} path.band")) == 1
    assert len(page.all(f"{chart} path.line.dashed")) == 2
    # The band is not symmetric: the readout names both ends.
    ends = [metrics(60)[f"check/false_accepts_{end}"] for end in ("low", "high")]
    shown = page.one(f"{chart} .readout").text
    assert f"({' to '.join(page.js(SHOWN, end) for end in ends)})" in shown
    assert len(page.all("#disputes tbody tr")) == MOST
    assert page.texts("#disputes tbody tr:first-child td")[:3] == ["60", "add-60", "12"]
    assert page.texts("#disputes tbody tr:first-child td")[4].startswith(
        "right: equal, by structure"
    )
    page.js("document.querySelector('#disputes details').open = true")
    assert MARKUP in page.one("#disputes details pre").text
    assert page.all("#disputes img") == []
    assert "The newest 50 of 60 recorded." in page.one("#disputes .help").text
    assert page.js("return document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_a_run_without_a_second_judge_has_no_such_section(opened, run):
    page = opened(write_report(run))
    assert not page.one("#disputes").is_displayed()
