"""The comparison in real headless Chromium: every control, by pointer and by keyboard."""

import json
import statistics

import pytest

from rlvr.report import write_comparison, write_report
from tests.report.conftest import RunMaker
from tests.report.test_comparison import make
from tests.report.test_page import CONTRAST, NASTY, overflowing

pytestmark = pytest.mark.browser
FRAMES = "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
REWARD = '[data-chart="reward/mean"]'


@pytest.fixture
def sweep(tmp_path):
    return [
        make(tmp_path, f"lr{lr}-seed{seed}", steps=20, seed=seed, learner={"lr": lr})
        for lr in (0.001, 0.01)
        for seed in (0, 1)
    ]


@pytest.fixture
def page(opened, sweep, tmp_path):
    return opened(write_comparison(sweep, tmp_path / "page.html"))


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def slide(page, value):
    page.js(
        "const s = document.querySelector('.smoothing'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))",
        value,
    )


def drag(page, chart, start, end):
    """Drag over a chart from one share of its width to another."""
    from selenium.webdriver import ActionChains

    svg = page.one(f"{chart} svg")
    page.js("arguments[0].scrollIntoView({block: 'center'})", svg)
    width = svg.size["width"]
    actions = ActionChains(page.driver, duration=20)
    actions.move_to_element_with_offset(svg, int((start - 0.5) * width), 0).click_and_hold()
    actions.move_by_offset(int((end - start) * width), 0).release().perform()
    page.js(FRAMES)


def zoom(page):
    return page.js("return Report.curves.view.zoom")


def test_groups_are_a_mean_and_a_band_and_can_be_taken_apart(page, sweep):
    assert page.texts(".legend .entry .name") == ["lr 0.001", "lr 0.01"]
    marks = "return [...document.querySelectorAll(arguments[0])].length"
    assert page.js(marks, f"{REWARD} path.line") == 2
    assert page.js(marks, f"{REWARD} path.band") == 2
    points = page.js("return Report.overlay('reward/mean', Report.curves.view)[0].points")
    pairs = [
        [row["reward/mean"] for row in rows]
        for rows in zip(rows_of(sweep[0])[1:], rows_of(sweep[1])[1:], strict=True)
    ]
    assert [point[1] for point in points] == pytest.approx([sum(p) / 2 for p in pairs], rel=1e-4)
    assert [point[2] for point in points] == pytest.approx([min(p) for p in pairs], rel=1e-4)
    assert [point[3] for point in points] == pytest.approx([max(p) for p in pairs], rel=1e-4)
    page.choose("Seeds", "mean \u00b1 standard deviation")
    points = page.js("return Report.overlay('reward/mean', Report.curves.view)[0].points")
    deviations = [statistics.stdev(pair) for pair in pairs]
    assert [point[3] - point[1] for point in points] == pytest.approx(deviations, rel=1e-3)
    page.choose("Seeds", "single runs")
    assert page.js(marks, f"{REWARD} path.line") == 4
    assert page.js(marks, f"{REWARD} path.band") == 0
    assert page.texts(".legend .entry .name") == [run.name for run in sweep]


def test_the_legend_hides_and_shows_also_by_keyboard(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    count = f"return document.querySelectorAll('{REWARD} path.line').length"
    first, second = page.all(".legend .entry")[:2]
    first.click()
    assert page.js(count) == 1
    assert first.get_attribute("aria-pressed") == "false"
    page.press(Keys.SPACE)
    assert page.js(count) == 2
    ActionChains(page.driver).key_down(Keys.SHIFT).click(second).key_up(Keys.SHIFT).perform()
    pressed = [e.get_attribute("aria-pressed") for e in page.all(".legend .entry")[:2]]
    assert pressed == ["false", "true"]
    page.all(".legend .all")[1].click()
    assert page.js(count) == 0
    assert page.js("return document.body.textContent.includes('NaN')") is False
    page.all(".legend .all")[0].click()
    assert page.js(count) == 2


def test_smoothing_is_exponential_without_the_bias_of_the_start(page, sweep):
    page.choose("Seeds", "single runs")
    slide(page, 0.9)
    assert page.one("output").text == "0.90"
    points = page.js("return Report.overlay('reward/mean', Report.curves.view)[0].points")
    total = weight = 0.0
    wanted = []
    for row in rows_of(sweep[0])[1:]:
        total, weight = 0.9 * total + 0.1 * row["reward/mean"], 0.9 * weight + 0.1
        wanted.append(total / weight)
    assert [point[1] for point in points] == pytest.approx(wanted, rel=1e-4)
    assert len(page.all(f"{REWARD} path.raw")) == 4
    slide(page, 0)
    assert page.all(f"{REWARD} path.raw") == []


def test_a_logarithmic_axis_leaves_out_what_is_not_above_zero(page):
    page.one("input.log").click()
    loss = page.one('[data-chart="policy/loss"]')
    assert "0 or less" in loss.find_element("css selector", ".note").text
    ticks = [e.text for e in page.all('[data-chart="learner/lr"] text.tick[text-anchor=end]')]
    assert len(ticks) >= 2
    paths = page.js("return [...document.querySelectorAll('path')].map((p) => p.getAttribute('d'))")
    assert not any("NaN" in path or "Infinity" in path for path in paths)
    page.one("input.log").click()
    assert not loss.find_element("css selector", ".note").is_displayed()


def test_dragging_zooms_all_charts_and_show_all_resets(page):
    reset = page.one("button.reset")
    assert not reset.is_enabled()
    drag(page, REWARD, 0.4, 0.7)
    low, high = zoom(page)
    assert 5 < low < 9 < 12 < high < 16
    ticks = page.js("""
        return [...document.querySelectorAll('[data-chart="policy/entropy"] text.tick')]
            .filter((t) => t.getAttribute('text-anchor') === 'middle')
            .map((t) => Number(t.textContent));
    """)
    assert ticks
    assert all(low <= tick <= high for tick in ticks)
    assert page.one(f"{REWARD} .readout .step").text == f"step {int(high)}", "the last in view"
    reset.click()
    assert zoom(page) is None
    drag(page, REWARD, 0.5, 0.502)
    assert zoom(page) is None, "a click is no zoom"


def test_keys_zoom_and_read_a_chart(page):
    from selenium.webdriver.common.keys import Keys

    page.js(f"document.querySelector('{REWARD} svg').focus()")
    page.press(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.one(f"{REWARD} .readout .step").text == "step 2"
    page.press("++")
    low, high = zoom(page)
    assert low <= 2 <= high
    assert high - low == pytest.approx(5, abs=2.6)
    page.press("-")
    assert zoom(page)[1] > high
    page.press("0")
    assert zoom(page) is None


def test_hovering_reads_all_runs_highest_first(page):
    from selenium.webdriver import ActionChains

    page.choose("Seeds", "single runs")
    svg = page.one(f"{REWARD} svg")
    page.js("arguments[0].scrollIntoView({block: 'center'})", svg)
    ActionChains(page.driver).move_to_element(svg).perform()
    page.js(FRAMES)
    at = page.js("return Report.curves.view.at")
    assert at in (9, 10, 11)
    assert page.one(".hover-box .step").text == f"step {at}"
    values = [float(text) for text in page.texts(".hover-box b")]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)
    assert page.all(".hover-box small") == []
    slide(page, 0.5)
    ActionChains(page.driver).move_to_element_with_offset(svg, 30, 0).perform()
    page.js(FRAMES)
    assert [text.split()[0] for text in page.texts(".hover-box small")] == ["smoothed"] * 4
    ActionChains(page.driver).move_to_element(page.one("h1")).perform()
    page.js(FRAMES)
    assert not page.one(".hover-box").is_displayed()


def test_the_axis_can_be_tokens_or_time(page, sweep):
    rows = rows_of(sweep[0])[1:]
    page.choose("Horizontal axis", "time")
    seconds = page.js("return Report.curves.view.whole()")
    spent = [sum(r.get(f"time/{n}", 0) for n in ("step", "evaluate", "checkpoint")) for r in rows]
    assert seconds[1] >= 0.9 * sum(spent)
    assert any("min" in text or " s" in text for text in page.texts(f"{REWARD} text.tick"))
    page.choose("Horizontal axis", "tokens")
    last = page.js(
        "return Report.points(Report.curves.view.runs[0], 'reward/mean', 'tokens').points.at(-1)"
    )
    tokens = [r["throughput/generated_tokens_per_second"] * r["time/generate"] for r in rows]
    assert last[0] == pytest.approx(sum(tokens), rel=1e-3)
    drag(page, REWARD, 0.4, 0.7)
    assert zoom(page)[1] < last[0]
    page.choose("Horizontal axis", "steps")
    assert zoom(page) is None


def test_metrics_are_found_by_name(page):
    page.one("input.metrics").send_keys("ENTROPY")
    shown = [e.get_attribute("data-chart") for e in page.all("figure.chart") if e.is_displayed()]
    assert shown == ["policy/entropy"]
    page.one("input.metrics").send_keys("zzz")
    assert page.one(".charts > .empty").is_displayed()


def test_tables_tell_settings_and_final_values(page, sweep):
    table = [
        [cell.text for cell in row.find_elements("css selector", "th, td")]
        for row in page.all("#differences tr")
    ]
    assert table[0] == ["Run", "Steps", "seed", "learner.lr"]
    assert table[2] == [sweep[1].name, "20", "1", "0.001"]
    reward = next(row for row in page.all("#finals tbody tr") if row.text.startswith("Reward"))
    values = [rows_of(run)[-1]["reward/mean"] for run in sweep[:2]]
    cell = reward.find_element("css selector", "td").text
    mean, deviation = (float(part) for part in cell.removesuffix(" (2)").split(" \u00b1 "))
    assert mean == pytest.approx(sum(values) / 2, rel=1e-3)
    assert deviation == pytest.approx(statistics.stdev(values), rel=1e-3)


def test_one_problem_is_followed_over_steps_side_by_side(opened, tmp_path):
    runs = []
    for name in ("a", "b"):
        run = make(tmp_path, name, steps=4, seed=len(runs), learner={"lr": len(runs)})
        maker = RunMaker(run, seed=len(runs))
        for step in (0, 2, 4):
            row = maker.completion(step, 0, 0, 7, 8) | {"set": "sums", "correct": step > 0}
            row |= {"response": f"{name} at {step} {NASTY}", "tokens": None}
            maker.write_lines(f"evaluations/step_{step:06d}.jsonl", [row])
        counts = [{"step": s, "counts": {"add-7-8": [s, 4]}} for s in range(1, 5)]
        maker.write_lines("accuracy.jsonl", counts)
        runs.append(run)
    page = opened(write_comparison(runs, tmp_path / "page.html"))
    page.one(".problem-search").send_keys("add-7-8")
    options = page.all(".problem-list option")
    assert len(options) == 2, "one in training, one in the evaluation set"
    evaluated = next(option for option in options if option.text.startswith("sums: "))
    evaluated.click()
    assert page.texts("#problem thead th") == ["Step", "a", "b"]
    assert page.texts("#problem tbody th") == ["0", "2", "4"]
    found = page.js(
        "return Report.problems.figure.series.map((s) => s.points.map((p) => [p[4], p[1]]))"
    )
    assert found == [[[0, 0], [2, 1], [4, 1]]] * 2
    summary = page.all("#problem summary")[3]
    page.js("arguments[0].focus()", summary)
    page.press("\ue007")
    text = page.one("#problem details[open] .text").get_attribute("textContent")
    assert text == f"b at 2 {NASTY}"
    page.all(".legend .entry")[0].click()
    assert page.texts("#problem thead th") == ["Step", "b"], "the legend chooses the runs"
    assert page.all("#problem details[open]"), "what is read stays open"
    next(option for option in options if not option.text.startswith("sums: ")).click()
    found = page.js("return Report.problems.figure.series[0].points.map((p) => [p[4], p[1]])")
    assert found == [[1, 0.25], [2, 0.5], [3, 0.75], [4, 1]]


def shown_rows(page):
    return page.js("return Report.browser.order.map((i) => Report.browser.rows[i])")


def bound(page, name, value):
    page.one(f'[data-bound="{name}"]').clear()
    page.one(f'[data-bound="{name}"]').send_keys(str(value))


def test_completions_are_filtered_by_run_step_and_ranges(page, sweep):
    assert page.all(".origin")[0].text == sweep[0].name
    page.choose("Run", sweep[2].name)
    page.choose("Step", "all steps")
    rows = shown_rows(page)
    assert {row["run"] for row in rows} == {2}
    assert {row["step"] for row in rows} == set(range(1, 21))
    page.one(".more-filters").click()
    assert page.one(".more-filters").get_attribute("aria-expanded") == "true"
    bound(page, "reward-from", 0.5)
    assert {row["reward"] >= 0.5 for row in shown_rows(page)} == {True}
    assert len(shown_rows(page)) < len(rows)
    bound(page, "reward-from", "")
    page.choose("Reward term", "boxed")
    bound(page, "term-to", 0)
    assert {row["rewards"]["boxed"] for row in shown_rows(page)} == {0}
    page.one("#ranges button").click()
    bound(page, "length-from", 22)
    bound(page, "length-to", 30)
    assert all(22 <= len(row["tokens"]) <= 30 for row in shown_rows(page))
    assert 0 < len(shown_rows(page)) < len(rows)
    page.one("#ranges button").click()
    page.choose("Sort", "longest first")
    firsts = page.js(
        "const { groups, rows } = Report.browser;"
        "return groups.map((g) => g.map((i) => Report.length(rows[i])))"
    )
    assert all(lengths == sorted(lengths, reverse=True) for lengths in firsts)


def test_search_takes_patterns_and_says_when_one_is_broken(page):
    search = page.one("#completions input[type=search]")
    search.send_keys(r"= \d+\.")
    assert shown_rows(page) == []
    page.one("input.pattern").click()
    assert len(shown_rows(page)) > 0
    search.send_keys("(")
    assert "no regular expression" in page.one("#completions .count").text
    assert search.get_attribute("aria-invalid") == "true"
    assert len(shown_rows(page)) > 0, "a broken pattern filters nothing"
    search.clear()
    search.send_keys("x")
    assert search.get_attribute("aria-invalid") == "false"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_narrow_windows(opened, sweep, tmp_path, scheme):
    page = opened(write_comparison(sweep, tmp_path / "page.html"))
    page.scheme(scheme)
    page.resize(400, 800)
    page.one(".more-filters").click()
    page.all(".legend .entry")[0].click()
    page.js("""
        const list = document.querySelector('.problem-list');
        list.selectedIndex = 0;
        list.dispatchEvent(new Event('change'));
    """)
    page.js("return new Promise((done) => setTimeout(done, 150))")
    assert page.js("return document.documentElement.scrollWidth") <= 400
    assert overflowing(page) == []
    assert page.js(CONTRAST) == []
    page.resize(1440, 1000)
    page.js("return new Promise((done) => setTimeout(done, 150))")
    assert overflowing(page) == []
    nameless = page.js("""
        return [...document.querySelectorAll('button, input, select, svg[tabindex], [role=region]')]
            .filter((e) => !(e.getAttribute('aria-label') || e.closest('label')
                             || e.textContent.trim()))
            .map((e) => e.outerHTML.slice(0, 100))
    """)
    assert nameless == []


def test_names_with_markup_are_text(opened, tmp_path):
    names = ["<b onclick=alert(1)>a", "&lt;script&gt;b", "c'\"{{data}}"]
    runs = [make(tmp_path, name, steps=2, learner={NASTY: i}) for i, name in enumerate(names)]
    page = opened(write_comparison(runs, tmp_path / "page.html"))
    page.choose("Seeds", "single runs") if page.all(".view-controls select")[1:] else None
    assert page.texts("#differences tbody th") == names
    assert page.js("return document.querySelectorAll('[onclick], img').length") == 0
    assert NASTY in page.texts("#differences thead th")[-1]


def test_reduced_runs_open_without_a_word_on_the_console(opened, tmp_path):
    """No step, one step, only values that are not finite, no completions, a metric of its own."""
    lines = [
        "",
        '{"step": 0, "eval/a/accuracy": 0.5}\n',
        '{"step": 1, "policy/loss": NaN}\n{"step": 2, "policy/loss": 1.5}\n',
        '{"step": 1, "only/here": 3}\n',
    ]
    for index, metrics in enumerate(lines):
        folder = tmp_path / f"run{index}"
        folder.mkdir()
        (folder / "recipe.yaml").write_text(f"model: tiny{index}\n")
        (folder / "metrics.jsonl").write_text(metrics)
    page = opened(write_comparison([tmp_path], tmp_path / "page.html"))
    charts = [e.get_attribute("data-chart") for e in page.all("figure.chart")]
    assert set(charts) == {"eval/a/accuracy", "policy/loss", "only/here"}
    assert len(page.all('[data-chart="policy/loss"] text.broken')) == 1
    assert page.texts("#completions .empty") == ["The run has kept no completions yet."]
    assert page.js("return document.body.textContent.includes('NaN')") is False
    slide(page, 0.5)
    page.one("input.log").click()


@pytest.mark.timed
def test_many_steps_and_runs_stay_usable(opened, tmp_path):
    runs = []
    for seed in range(6):
        maker = RunMaker(tmp_path / f"run{seed}", seed=seed)
        maker.path.mkdir()
        (maker.path / "recipe.yaml").write_text(f"model: tiny\nseed: {seed}\n")
        maker.write_lines("metrics.jsonl", [maker.metrics(step) for step in range(3001)])
        runs.append(maker.path)
    page = opened(write_comparison(runs, tmp_path / "page.html"))
    took = page.js("return performance.getEntriesByType('navigation')[0].domComplete")
    assert took < 15_000
    assert page.js("return document.querySelectorAll('svg *').length") < 30_000
    assert page.js("return Report.curves.view.runs[0].steps.length") == 3001
    assert len(page.all(f"{REWARD} path.raw")) == 1, "long runs start smoothed"


def test_a_single_run_has_the_same_controls(opened, tmp_path):
    page = opened(write_report(make(tmp_path, "one", steps=20)))
    drag(page, '[data-chart="Reward"]', 0.3, 0.6)
    assert zoom(page) is not None
    assert page.all('[data-chart="Seconds per phase"] rect.bar')
    page.one("input.log").click()
    page.choose("Horizontal axis", "time")
    slide(page, 0.7)
    assert page.all('[data-chart="Reward"] path.raw')
    assert page.all('[data-chart="Seconds per phase"] rect.bar')
    assert not page.one(".legend").is_displayed()
    page.choose("Step", "all steps")
    assert len({row["step"] for row in shown_rows(page)}) == 20
    page.one(".problem-list option").click()
    assert page.all("#problem table")
