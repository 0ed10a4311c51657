"""The dashboard in real headless Chromium while runs go on: values come, what the reader did stays.

Afterwards nothing may have been logged, and nothing asked of anybody but the dashboard.
"""

import json
import shutil
import time

import pytest

from rlvr.files import locked
from rlvr.report import live_pages
from rlvr.report.run_state import LOCK
from tests.report.conftest import Page, RunMaker
from tests.report.serving import served
from tests.report.test_compare_page import drag, zoom
from tests.report.test_comparison import make
from tests.report.test_page import CONTRAST, NASTY, overflowing

pytestmark = pytest.mark.browser
REWARD = '[data-chart="reward/mean"]'


class Address(str):
    """An address that :class:`Page` opens as it opens a file."""

    def as_uri(self):
        return str(self)


@pytest.fixture
def browse(chromium, monkeypatch):
    """Opens addresses of a dashboard."""
    monkeypatch.setattr(live_pages, "EVERY_S", 0.2)
    bases = set()

    def open_page(base, path=""):
        bases.add(base)
        return Page(chromium, Address(base + path))

    yield open_page
    chromium.get("about:blank")
    console = [entry["message"] for entry in chromium.get_log("browser")]
    events = [json.loads(e["message"])["message"] for e in chromium.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert console == []
    assert any("news?" in url or "/runs" in url for url in asked)
    assert {url for url in asked if not url.startswith(tuple(bases))} <= {"data:,", "about:blank"}


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for seed in (0, 1):
        make(folder, f"seed{seed}", steps=20, seed=seed)
    return folder


def append(run, *rows):
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def wait(page, script, *arguments, seconds=10):
    """What a script returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := page.js(script, *arguments)):
        assert time.monotonic() < deadline, script
        time.sleep(0.05)
    return found


def steps(page, run=0):
    return page.js("return Report.curves.view.runs[arguments[0]].steps.at(-1)", run)


LAST = "return Report.curves.view.runs[arguments[0]].steps.at(-1) === arguments[1]"


def test_values_come_in_and_the_zoom_stays(browse, runs):
    maker = RunMaker(runs / "seed0")
    with served(runs) as url, locked(runs / "seed0" / LOCK, "the run"):
        page = browse(url, "compare")
        drag(page, REWARD, 0.4, 0.7)
        low, high = zoom(page)
        page.all(".legend .all")[1].click()
        page.all(".legend .all")[0].click()
        page.js("scrollTo(0, 120)")
        place = page.js("return scrollY")
        assert place > 0
        append(runs / "seed0", *(maker.metrics(step) for step in range(21, 31)))
        append(runs / "seed1", {"step": 21, "reward/mean": 0.5})
        wait(page, LAST, 0, 30)
        wait(page, LAST, 1, 21)
        assert zoom(page) == [low, high]
        assert page.js("return scrollY") == place
        page.one("button.reset").click()
        ticks = page.texts(f"{REWARD} text.tick")
        assert "30" in ticks, "the curve goes on to the new steps"
        values = page.js(
            "return Report.points(Report.curves.view.runs[1], 'reward/mean', 'steps').points"
        )
        assert values[-1][:2] == [21, 0.5]
        state = page.texts("#differences tbody tr")
        assert "running, step 30 of 60" in state[0]
        assert "min left" in state[0] or "s left" in state[0]
        assert "finished" in state[1]


def test_a_metric_that_is_new_gets_a_chart_and_a_resumed_run_is_rewound(browse, runs):
    with served(runs) as url:
        page = browse(url, "run?name=seed0")
        assert page.all('[data-chart="New"]') == []
        append(runs / "seed0", {"step": 21, "brand/new": 1.0}, {"step": 21, "eval/b/accuracy": 1})
        wait(page, "return document.querySelector('[data-chart=\"New\"]') !== null")
        assert page.js("return Report.curves.view.runs[0].steps.filter((s) => s === 21)") == [21]
        lines = (runs / "seed0" / "metrics.jsonl").read_text().splitlines()[:11]
        (runs / "seed0" / "new").write_text("\n".join([*lines, '{"step": 11, "a/b": NaN}', ""]))
        (runs / "seed0" / "new").replace(runs / "seed0" / "metrics.jsonl")
        wait(page, LAST, 0, 11)
        assert page.js("return Report.curves.view.runs[0].steps") == list(range(12))
        assert page.js("return Report.curves.view.runs[0].notFinite") == {"a/b": [11]}
        append(runs / "seed0", {"step": 9, "reward/mean": 0.125})
        wait(page, LAST, 0, 9)
        run = page.js("return Report.curves.view.runs[0]")
        assert run["steps"] == list(range(10))
        assert run["columns"]["reward/mean"][-1] == 0.125
        assert len(run["seconds"]) == 10
        assert page.js("return document.body.textContent.includes('NaN')") is False


def test_what_is_in_view_stays_when_charts_are_added_above(browse, runs):
    with served(runs) as url:
        page = browse(url, "run?name=seed0")
        page.js("document.querySelector('#completions').scrollIntoView()")
        top = page.js("return document.querySelector('#completions').getBoundingClientRect().top")
        svg = page.one('[data-chart="Memory"] svg')
        news = {f"brand{i}/new": 1.0 for i in range(8)}
        append(runs / "seed0", {"step": 21, **news})
        wait(page, "return document.querySelectorAll('[data-chart=\"New\"]').length === 8")
        after = page.js("return document.querySelector('#completions').getBoundingClientRect().top")
        assert after == pytest.approx(top, abs=2)
        assert svg.is_displayed(), "charts that were there are not made anew"


def test_a_run_is_seen_from_before_its_first_step(browse, runs):
    maker = RunMaker(runs / "seed0")
    (runs / "seed0" / "metrics.jsonl").unlink()
    for name in ("completions", "evaluations", "model"):
        shutil.rmtree(runs / "seed0" / name)
    with served(runs) as url, locked(runs / "seed0" / LOCK, "the run"):
        page = browse(url, "run?name=seed0")
        assert page.texts("#curves .empty") == ["No metric has been logged yet."]
        append(runs / "seed0", maker.metrics(0))
        wait(page, "return document.querySelectorAll('figure.chart').length > 0")
        append(runs / "seed0", *(maker.metrics(step) for step in (1, 2)))
        wait(page, LAST, 0, 2)
        assert len(page.all('[data-chart="Reward"] path.line')) == 1
        assert page.all("#curves > .charts > .empty:not([hidden])") == []
        maker.write_lines("completions/step_000001.jsonl", maker.completions(1, 2, 2))
        wait(page, "return document.querySelectorAll('.sample').length === 4")
        wait(page, "return document.querySelector('.summary').textContent.includes('step 2 of 60')")


def test_completions_are_fetched_and_filters_stay(browse, runs):
    maker = RunMaker(runs / "seed0", seed=5)
    with served(runs) as url:
        page = browse(url, "run?name=seed0")
        wait(page, "return document.querySelectorAll('.sample').length > 0")
        page.choose("Step", "step 19")
        wait(page, "return Report.browser.rows[0].step === 19")
        page.one("[data-filter=wrong]").click()
        page.one("#completions input[type=search]").send_keys("answer")
        page.one(".sample").click()
        opened = page.one(".detail .prompt").get_attribute("textContent")
        page.js("document.activeElement.blur()")
        maker.write_lines("completions/step_000021.jsonl", maker.completions(21, 2, 2))
        wait(page, "return Report.browser.steps.includes(21)")
        assert page.one(".detail .prompt").get_attribute("textContent") == opened
        assert page.one("#completions input[type=search]").get_attribute("value") == "answer"
        assert page.one("[data-filter=wrong]").get_attribute("aria-pressed") == "true"
        page.choose("Step", "step 21")
        wait(page, "return Report.browser.rows[0].step === 21")
        page.one(".problem-list option").click()
        wait(page, "return document.querySelector('#problem table') !== null")


def test_the_list_shows_states_and_leads_to_pages(browse, runs):
    make(runs, "third", steps=3, learner={"lr": NASTY})
    (runs / "third" / "model").rmdir()
    with served(runs) as url, locked(runs / "seed0" / LOCK, "the run"):
        page = browse(url)
        assert page.texts("tbody th") == ["seed0", "seed1", "third"]
        assert page.texts(".chip") == ["running", "finished", "stopped"]
        assert page.one(".button").text == "Compare all 3"
        box = page.all("tbody input")[1]
        box.click()
        page.all("tbody input")[2].click()
        append(runs / "seed0", {"step": 21, "time/step": 2.0, "reward/mean": 0.75})
        wait(page, "return document.querySelector('.steps-cell').textContent === '21 of 60'")
        assert page.js("return document.activeElement.getAttribute('aria-label')") == (
            "Compare third"
        ), "the focus stays in a list that is renewed"
        make(runs, "fourth", steps=2)
        wait(page, "return document.querySelectorAll('tbody tr').length === 4")
        assert page.one(".button").text == "Compare 2 chosen"
        assert box.id != page.all("tbody input")[2].id
        page.one("input[type=search]").send_keys("seed")
        assert page.texts("tbody th") == ["seed0", "seed1"]
        page.one(".button").click()
        wait(page, "return document.title === '2 runs compared'")
        assert page.texts("#differences tbody th") == ["seed1", "third"]
        page.one(".back a").click()
        wait(page, "return document.querySelectorAll('tbody tr').length === 4")
        page.all("tbody th a")[0].click()
        wait(page, "return document.querySelector('#completions') !== null")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_list_is_readable_in_a_narrow_window(browse, runs, scheme):
    with served(runs) as url, locked(runs / "seed0" / LOCK, "the run"):
        page = browse(url)
        page.scheme(scheme)
        page.resize(400, 800)
        assert page.js("return document.documentElement.scrollWidth") <= 400
        assert overflowing(page) == []
        assert page.js(CONTRAST) == []
        wait(page, "return performance.getEntriesByType('resource').length > 0")


def test_a_dashboard_that_ended_is_told_and_the_page_stays(chromium, runs, monkeypatch):
    monkeypatch.setattr(live_pages, "EVERY_S", 0.2)
    with served(runs) as url:
        page = Page(chromium, Address(url + "compare"))
        assert not page.one(".trouble").is_displayed()
    wait(page, "return !document.querySelector('.trouble').hidden")
    assert "does not answer" in page.one(".trouble").text
    assert page.all(f"{REWARD} path.line")
    page.logs()
