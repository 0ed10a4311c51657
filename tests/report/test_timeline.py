"""The timeline: which spans are read, and what of them a page shows."""

import json

import pytest

from rlvr.report import write_report
from rlvr.report.timeline import MAX_STEPS, read_timeline


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def span(step, lane="engine", phase="generate", begin=None, end=None):
    begin = 100.0 + step if begin is None else begin
    return {
        "lane": lane,
        "step": step,
        "phase": phase,
        "begin": begin,
        "end": begin + 0.5 if end is None else end,
    }


def test_spans_count_from_the_first_and_lanes_have_an_order(tmp_path):
    rows = [span(2), span(1, "learner", "update"), span(1), span(1, "other", "pause")]
    found = read_timeline(write(tmp_path / "t.jsonl", rows))
    assert found["lanes"] == ["engine", "learner", "other"]
    assert [phase["name"] for phase in found["phases"]] == ["generate", "update", "pause"]
    assert found["spans"][0][3:] == [0.0, 0.5]
    assert [0, 0, 2, 1.0, 1.5] in found["spans"]


def test_what_is_missing_broken_or_abandoned_is_left_out(tmp_path):
    assert read_timeline(tmp_path / "none.jsonl") == {"lanes": [], "phases": [], "spans": []}
    path = write(tmp_path / "t.jsonl", [span(1), {"step": 2}, span(3), {**span(1), "end": True}])
    with path.open("a") as file:
        file.write('{"step": 1, "la')
    assert len(read_timeline(path)["spans"]) == 2
    assert len(read_timeline(path, last=2)["spans"]) == 1


def test_a_long_run_keeps_its_newest_steps(tmp_path):
    path = write(tmp_path / "t.jsonl", [span(step) for step in range(MAX_STEPS + 50)])
    assert {item[2] for item in read_timeline(path)["spans"]} == set(range(50, MAX_STEPS + 50))


@pytest.mark.browser
def test_the_page_draws_it_and_pages_through_it(opened, run, maker):
    write(run / "timeline.jsonl", maker.timeline(20))
    page = opened(write_report(run))
    bars = page.js("""
        return [...document.querySelectorAll('.timeline rect.bar')].map((bar) =>
            [bar.dataset.phase, bar.x.baseVal.value, bar.y.baseVal.value, bar.width.baseVal.value])
    """)
    assert len(bars) == 6 * 4
    made = [bar for bar in bars if bar[0] == "generate"]
    used = [bar for bar in bars if bar[0] == "update"]
    assert made[0][2] != used[0][2], "lanes have rows of their own"
    assert any(
        m[1] < u[1] + u[3] and u[1] < m[1] + m[3] and m[2] != u[2] for m in made for u in used
    ), "what overlapped stands above each other"
    assert page.texts("#timeline .count") == ["steps 15 to 20"]
    earlier, later = page.all("#timeline button")
    assert not later.is_enabled()
    for _ in range(3):
        earlier.click()
    assert page.texts("#timeline .count") == ["steps 1 to 6"]
    assert not earlier.is_enabled()


@pytest.mark.browser
def test_a_run_without_one_shows_nothing(opened, run):
    page = opened(write_report(run))
    assert not page.one("#timeline").is_displayed()
