"""Alarms in a report: the table, the shades of their charts, and no chart of their own."""

import json

import pytest

from rlvr.report import write_report
from rlvr.report.alarms import marks_of, read_alarms
from rlvr.report.charts import plan_charts
from rlvr.runs.alarm_readings import ALARMS
from tests.report.conftest import embedded

MARKUP = "<img src=x onerror=alert(1)>"


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def begins(step, name="truncation", **more):
    return {"step": step, "alarm": name, "event": "begins", "evidence": f"at {step}", **more}


def ends(step, name="truncation"):
    return {"step": step, "alarm": name, "event": "ends", "evidence": "well"}


def test_each_begin_has_its_end(tmp_path):
    path = lines(
        tmp_path / "alarms.jsonl",
        begins(3), begins(4, "mismatch"), ends(7), begins(9), {"step": "x"}, begins(20), ends(30),
    )  # fmt: skip
    found = [(row["alarm"], row["begin"], row["end"]) for row in read_alarms(path, 12)]
    assert found == [("truncation", 3, 7), ("mismatch", 4, None), ("truncation", 9, None)]
    assert read_alarms(path, 12)[0]["evidence"] == "at 3"
    assert read_alarms(tmp_path / "none.jsonl") == []


def test_the_charts_of_its_figures_are_marked_and_it_has_none_of_its_own():
    columns = {
        "completion/truncated": [0.4], "reward/mean": [0.1], "eval/test/accuracy": [0.2],
        "alarm/truncation": [1.0], "alarm/held_out_gap": [1.0], "alarm/unknown": [1.0],
    }  # fmt: skip
    charts = {chart["title"]: chart for chart in plan_charts(columns)}
    assert charts["Truncated responses"]["alarms"] == ["alarm/truncation"]
    assert charts["Accuracy"]["alarms"] == ["alarm/held_out_gap"]
    assert charts["Reward"]["alarms"] == ["alarm/held_out_gap"]
    shown = [item["metric"] for chart in charts.values() for item in chart["series"]]
    assert not [name for name in shown if name.startswith("alarm/")]
    for name, alarm in ALARMS.items():
        figures = [pattern.replace("*", "x") for pattern in alarm.shown]
        assert marks_of(figures, [f"alarm/{name}"]) == [f"alarm/{name}"]


@pytest.fixture
def alarmed(maker):
    run = maker.write()
    rows = [maker.metrics(step) for step in range(61)]
    for row in rows[3:9]:
        row["alarm/truncation"] = 1.0
    rows[9]["alarm/truncation"] = 0.0
    rows[60]["alarm/truncation"] = 1.0
    maker.write_lines("metrics.jsonl", rows)
    told = [begins(3, advice=MARKUP, action="warn"), ends(9), begins(60)]
    maker.write_lines("alarms.jsonl", told)
    return run


def test_the_page_holds_the_table(alarmed):
    first, last = embedded(write_report(alarmed))["alarms"]
    assert (first["begin"], first["end"], first["evidence"]) == (3, 9, "at 3")
    assert (last["begin"], last["end"]) == (60, None)


@pytest.mark.browser
def test_the_page_shades_the_steps_and_lists_the_evidence(opened, alarmed):
    page = opened(write_report(alarmed))
    chart = '[data-chart="Truncated responses"]'
    titles = [page.js("return arguments[0].textContent", shade)
              for shade in page.all(f"{chart} rect.alarm title")]  # fmt: skip
    assert titles == ["alarm/truncation: steps 3 to 8", "alarm/truncation: steps 60 to 60"]
    assert not page.all('[data-chart="Reward"] rect.alarm')
    assert page.texts("#alarms tbody tr:first-child td")[:4] == ["truncation", "3", "9", "at 3"]
    assert page.texts("#alarms tbody tr:last-child td")[2] == "holds"
    assert page.all("#alarms img") == []
    page.resize(360, 900)
    heights = [page.js("return arguments[0].offsetHeight", head)
               for head in page.all("#alarms thead th")]  # fmt: skip
    assert 0 < max(heights) < 40, "no word is cut in two"
    assert page.js("return document.documentElement.scrollWidth") <= 360


@pytest.mark.browser
def test_a_run_without_alarms_has_no_such_section(opened, run):
    assert not opened(write_report(run)).one("#alarms").is_displayed()
