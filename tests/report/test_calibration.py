"""The reliability plot: in the report of a reward model's run, and on the page of a ranking."""

import random

import pytest

from rlvr.data.labelled_responses import Response
from rlvr.report import write_report
from rlvr.report.calibration import read_calibration
from rlvr.report.ranking import write_ranking_page
from rlvr.tasks.tools.rank import method_labels, rank
from rlvr.tasks.tools.score import ScoredResponse


def line(step, name="held_out", **changes):
    one = {"low": 0.2, "high": 0.3, "count": 30, "probability": 0.25, "right": 0.2}
    two = {"low": 0.8, "high": 0.9, "count": 10, "probability": 0.84, "right": 0.6}
    return {"step": step, "set": name, "brier": 0.2, "ece": 0.1, "bins": [one, two]} | changes


def test_the_newest_of_each_set_counts_and_what_is_broken_does_not(maker):
    maker.path.mkdir()
    rows = [line(0), line(20, brier=0.19), line(20, "other"), line(40, bins=[]), line(40, ece=None)]
    path = maker.write_lines("calibration.jsonl", rows)
    found = read_calibration(path)
    assert [(item["label"], item["brier"]) for item in found] == [
        ("held_out, step 20", 0.19),
        ("other, step 20", 0.2),
    ]
    assert [item["label"] for item in read_calibration(path, last=10)] == ["held_out, step 0"]
    assert read_calibration(maker.path / "none.jsonl") == []


def ranked(problems=30, samples=8, seed=0):
    """A model whose reward means what it says, about answers that are right half the time."""
    generator, scored = random.Random(seed), []
    for problem in range(problems):
        for _ in range(samples):
            right = generator.random() < 0.5
            reward = generator.gauss(40 if right else -40, 30)
            answer = "1" if right else str(generator.randrange(2, 6))
            item = Response(str(problem), (), "", right, answer, True, {})
            scored.append(ScoredResponse(item, (reward,), (reward / 2, reward / 2), (1, 2)))
    return rank(scored)


def test_the_page_of_a_ranking_holds_its_curves_and_needs_no_network(tmp_path):
    found = ranked()
    page = write_ranking_page(found, method_labels(found), tmp_path / "page.html").read_text()
    assert "weighted vote (0.05)" in page
    assert '"method":"best_of_n"' in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    with pytest.raises(ValueError, match="is a folder"):
        write_ranking_page(found, method_labels(found), tmp_path)


def points(page, figure):
    """Centres of the circles, in shares of the plot's width and height."""
    return page.js(f"""
        return [...document.querySelectorAll('[data-chart="{figure}"] circle')].map((c) =>
            [Number(c.getAttribute('cx')), Number(c.getAttribute('cy')),
             Number(c.getAttribute('r')), c.textContent])
    """)


@pytest.mark.browser
def test_the_report_of_a_run_draws_the_reliability_of_each_set(opened, maker):
    run = maker.write()
    maker.write_lines("calibration.jsonl", [line(0), line(20), line(20, "<b>other")])
    page = opened(write_report(run))
    titles = page.texts('[data-chart="reliability"] h3')
    assert titles == ["Reliability: held_out, step 20", "Reliability: <b>other, step 20"]
    (x1, y1, r1, text), (x2, y2, r2, _), *_ = points(page, "reliability")
    assert text == "0.2 to 0.3: 30 responses, 0.25 given, 0.2 right"
    # Both lie below the diagonal: too sure. The bin of 30 is drawn larger than that of 10.
    diagonal = page.js("""
        const d = document.querySelector('.diagonal');
        return ['x1', 'y1', 'x2', 'y2'].map((name) => Number(d.getAttribute(name)));
    """)
    for x, y, given, right in ((x1, y1, 0.25, 0.2), (x2, y2, 0.84, 0.6)):
        assert x == pytest.approx(diagonal[0] + given * (diagonal[2] - diagonal[0]))
        assert y == pytest.approx(diagonal[1] + right * (diagonal[3] - diagonal[1]))
    assert r1 > r2
    assert "40 responses. Brier 0.2" in page.one('[data-chart="reliability"] .readout').text
    assert page.one('[data-chart="reliability"] svg').size["width"] > 200


@pytest.mark.browser
def test_a_run_without_a_reward_model_has_no_such_section(opened, run):
    page = opened(write_report(run))
    assert not page.one("#reliability").is_displayed()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1440, 360])
def test_the_page_of_a_ranking_draws_curves_and_reliability(opened, tmp_path, width):
    found = ranked()
    page = opened(write_ranking_page(found, method_labels(found), tmp_path / "page.html"))
    page.resize(width, 900)
    methods = page.js("return [...document.querySelectorAll('path.line')].map((p) => p.dataset)")
    assert [item.get("method") for item in methods[:5]] == list(found["curves"])
    assert len(points(page, "curves")) == 5 * 4  # N = 1, 2, 4, 8
    rewards = found["quality"]["calibration"]["bins"]
    assert len(points(page, "reliability")) == len(rewards) > 5
    assert page.js("return document.documentElement.scrollWidth") <= width
    last = found["curves"]["best_of_n"]["8"]["value"]
    assert f"best of N (diff min){100 * last:.1f} %" in page.one(".readout").text.replace("\n", "")
    assert "NaN" not in page.js("return document.body.innerHTML")
