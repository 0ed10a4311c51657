"""The page of evaluations in real headless Chromium, opened from its file."""

import json

import pytest

from eval.command import run_comparison
from eval.compare import compare, comparison_rows
from eval.report import write_report
from eval.report.samples import choose_samples
from eval.results import write_results
from eval.score import read_recorded, score
from tests.eval.small import NASTY, write_samples
from tests.report.conftest import chromium, opened  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three checkpoints that get better."""
    root = tmp_path_factory.mktemp("sweep")
    folders = []
    for seed, rate in enumerate((0.2, 0.5, 0.8)):
        folder = write_samples(root / f"step_{seed}", f"run-step_{seed}", rate, seed)
        recorded = read_recorded(folder)
        write_results(recorded, score(recorded, workers=1, alongside=("exact",)))
        folders.append(folder)
    return folders


def embedded(path, name):
    mark = f'<script type="application/json" id="{name}">'
    return json.loads(path.read_text().partition(mark)[2].partition("</script>")[0])


def test_the_page_holds_what_results_hold(sweep, tmp_path):
    path = write_report(sweep, tmp_path / "page.html")
    page = embedded(path, "page")
    results = json.loads((sweep[1] / "results.json").read_text())
    row = page["table"][2]
    assert (row["run"], row["metric"]) == ("run-step_1", "avg@4")
    assert row["accuracy"].startswith(
        f"{100 * results['benchmarks']['math500']['avg']['value']:.1f}"
    )
    assert [len(row) for row in page["problems"]["aime24"]["rows"]] == [8, 8, 8]
    assert NASTY not in path.read_text()
    assert embedded(path, "samples-0-math500")[3]["question"] == NASTY


def test_the_page_of_a_comparison_carries_its_tests(sweep, tmp_path, capsys):
    compared = compare(sweep)
    run_comparison(sweep, tmp_path / "page.html", 100, 0)
    page = embedded(tmp_path / "page.html", "page")
    assert page["tests"] == comparison_rows(compared)
    assert len(page["tests"]) == 4
    assert {"p", "p (Holm)"} <= page["tests"][0].keys()
    said = capsys.readouterr().out
    assert all(row["p (Holm)"] in said for row in page["tests"])
    assert any("Holm" in note for note in page["tests_notes"])
    assert embedded(write_report(sweep, tmp_path / "plain.html"), "page")["tests"] == []


def test_a_page_that_would_be_too_large_says_what_it_leaves_out(sweep):
    chosen = choose_samples(sweep[:1], most=24)
    assert [item["problems"] for item in chosen.index] == [3, 3]
    assert "3 of 12 math500 problems" in chosen.notes[0]
    assert len(chosen.values[0]) == 20, "the heat map has all of them"


@pytest.mark.browser
def test_everything_is_drawn_and_nothing_said_becomes_markup(sweep, tmp_path, opened):  # noqa: F811
    page = opened(write_report(sweep, tmp_path / "page.html"))
    assert page.texts("h1") == ["3 evaluations"]
    assert len(page.all("table.scores tbody tr")) == 6
    assert len(page.all('[data-chart="pass"]')) == 2
    assert len(page.all('path.line[data-kind="pass"]')) == 6
    assert len(page.all('[data-chart="bars"]')) == 2
    assert len(page.all(".heat button")) == 3 * (12 + 8)
    assert page.js("return document.title") == "3 evaluations"
    assert page.js("return document.querySelectorAll('img').length") == 0
    assert not page.js("return document.body.textContent.includes('NaN')")


@pytest.mark.browser
def test_the_heat_map_opens_a_problem_with_extraction_and_verdicts(sweep, tmp_path, opened):  # noqa: F811
    page = opened(write_report(sweep, tmp_path / "page.html"))
    page.all('.heat button[title^="math500-3:"]')[2].click()
    assert page.one(".detail .question").text == NASTY
    assert len(page.all(".detail article.sample")) == 4
    rows = [json.loads(line) for line in (sweep[2] / "scores.jsonl").read_text().splitlines()]
    wanted = [row["verdicts"]["rlvr"] for row in rows if row["problem"] == "math500-3"]
    shown = page.texts(".detail .verdicts tbody tr:first-child .extracted")
    assert shown == [verdict["extracted"] or "\u2013" for verdict in wanted]


@pytest.mark.browser
def test_filters_and_search_keep_what_they_name(sweep, tmp_path, opened):  # noqa: F811
    page = opened(write_report(sweep[:1], tmp_path / "page.html"))
    problems = embedded(page.path, "samples-0-math500")
    for name, test in (
        ("right", lambda s: s["correct"]),
        ("truncated", lambda s: s["truncated"]),
        ("disagree", lambda s: len({v["correct"] for v in s["verdicts"].values()}) > 1),
    ):
        page.one(f"[data-filter={name}]").click()
        wanted = [p["problem"] for p in problems if any(map(test, p["samples"]))]
        assert [e.get_attribute("data-problem") for e in page.all(".item")] == wanted
    page.one("[data-filter=all]").click()
    page.one("input[type=search]").send_keys("11 + 11")
    assert [e.get_attribute("data-problem") for e in page.all(".item")] == ["math500-11"]
