"""The page in real headless Chromium, opened from its file.

Every test ends by asking the browser's own logs whether anything was said on the console or asked
of the network.
"""

import json
import math

import pytest

from rlvr.report import write_report

pytestmark = pytest.mark.browser

WIDE, NARROW = (1440, 1000), (360, 780)
NASTY = "</script><img src=x onerror=\"document.title='taken'\"><svg onload=alert(1)> {{data}}"


@pytest.fixture
def page(opened, run):
    return opened(write_report(run))


def overflowing(page):
    """Elements with text that stick out of the window and are not inside a scrolling parent."""
    return page.js("""
        const width = document.documentElement.clientWidth;
        const inside = (e) => e && (e.scrollWidth > e.clientWidth
            && getComputedStyle(e).overflowX !== 'visible' || inside(e.parentElement));
        return [...document.body.querySelectorAll('*')]
            .filter((e) => e.getClientRects().length && e.getBoundingClientRect().right > width + 1)
            .filter((e) => !inside(e) && !e.closest('.skip, .hidden'))
            .map((e) => e.outerHTML.slice(0, 120));
    """)


def test_every_curve_of_the_run_is_drawn(page, run):
    titles = page.texts("figure.chart h3")
    for title in (
        "Reward",
        "Accuracy",
        "Response length",
        "Entropy",
        "KL divergence",
        "Clip fraction",
        "Gradient norm",
        "Learning rate",
        "Groups without variance",
        "Truncated responses",
        "Seconds per phase",
        "Tokens per second",
        "Memory",
    ):
        assert title in titles
    drawn = page.js("""
        return [...document.querySelectorAll('figure.chart')].map((f) =>
            [f.dataset.chart, f.querySelectorAll('path.line, rect.bar').length,
             f.querySelector('svg').getBoundingClientRect().width])
    """)
    assert all(marks > 0 and width > 200 for _, marks, width in drawn)
    assert page.js("return document.body.textContent.includes('NaN')") is False
    paths = page.js("return [...document.querySelectorAll('path')].map((p) => p.getAttribute('d'))")
    assert not any("NaN" in path or "Infinity" in path for path in paths)


def test_a_one_shot_run_shows_generalisation_words_and_probabilities(opened, maker):
    """Both accuracies on one axis, a line for each word, shaded shares that fill 1."""
    maker.path.mkdir()
    (maker.path / "recipe.yaml").write_text("model: tiny\n")
    rows = []
    for step in range(1, 41):
        row = {"step": step, "reward/correct": min(1.0, step / 20), "words/any": step / 80}
        row |= {"words/rethink": step / 90, "words/recheck": step / 100}
        row |= {f"watch/spark/tenth_{k}": 0.1 for k in range(10)}
        if step % 10 == 0:
            row |= {"eval/math/accuracy": step / 50, "eval/aime/accuracy": step / 200}
            row |= {"eval/math/words_any": step / 70, "eval/math/words_rethink": step / 75}
        rows.append(row)
    maker.write_lines("metrics.jsonl", rows)
    page = opened(write_report(maker.path))
    marks = page.js("""
        return [...document.querySelectorAll('figure.chart')].map((f) => [f.dataset.chart,
            f.querySelectorAll('path.line').length, f.querySelectorAll('rect.bar').length,
            [...f.querySelectorAll('.readout .name')].map((e) => e.textContent)])
    """)
    found = {title: (lines, bars, names) for title, lines, bars, names in marks}
    assert found["Accuracy"] == (3, 0, ["training", "math", "aime"])
    assert found["Watched words"] == (2, 0, ["training", "math"])
    assert found["Watched words, one by one"] == (2, 0, ["rethink", "recheck"])
    assert found["Watched words in math"] == (1, 0, ["rethink"])
    lines, bars, names = found["Probabilities of watched tokens: spark"]
    assert (lines, bars % 10, len(names)) == (0, 0, 10)
    assert bars >= 10
    shades = page.js("""
        const chart = document.querySelector('[data-chart^="Probabilities of"]');
        return [...chart.querySelectorAll('rect.bar')].slice(0, 10).map(
            (e) => getComputedStyle(e).fill);
    """)
    assert len(set(shades)) == 10
    facts = dict(zip(page.texts("dl.run dt"), page.texts("dl.run dd"), strict=True))
    assert "from step 20 on; math since then 40.0 % to 80.0 %" in facts["Saturation"]


def test_a_curve_runs_through_its_values(page, run):
    """Read the polyline of the reward back through the axis and compare with metrics.jsonl."""
    points, ticks = page.js("""
        const chart = document.querySelector('[data-chart="Reward"]');
        const ticks = [...chart.querySelectorAll('text.tick[text-anchor=end]')]
            .filter((t) => !t.nextElementSibling || t.nextElementSibling.tagName === 'line')
            .map((t) => [t.textContent, Number(t.getAttribute('y')) - 4]);
        return [chart.querySelector('path.line').getAttribute('d'), ticks];
    """)
    (low, low_y), (high, high_y) = [(float(t.replace("\u2212", "-")), y) for t, y in ticks[:2]]
    heights = [float(point.split(",")[1]) for point in points[1:].split("L")]
    values = [low + (y - low_y) / (high_y - low_y) * (high - low) for y in heights]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert values == pytest.approx([row["reward/mean"] for row in rows[1:]], abs=0.005)


def test_hovering_one_chart_reads_the_same_step_off_all(page):
    from selenium.webdriver import ActionChains

    ActionChains(page.driver).move_to_element(page.one('[data-chart="Reward"] svg')).perform()
    page.js(
        "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    steps = set(page.texts("figure.chart .step"))
    assert len(steps) == 1
    assert steps != {"step 60"}
    ActionChains(page.driver).move_to_element(page.one("h1")).perform()


def test_arrow_keys_read_a_chart(page, run):
    from selenium.webdriver.common.keys import Keys

    chart = page.one('[data-chart="Reward"]')
    page.js("arguments[0].querySelector('svg').focus()", chart)
    page.press(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.js(
        "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shown = chart.find_element("css selector", ".readout").text
    assert "step 2" in shown
    assert f"{rows[2]['reward/mean']:.4g}"[:5] in shown


def test_smoothing_draws_the_raw_line_faintly_beside(page):
    assert page.all("path.raw") == []
    page.js("""
        const slider = document.querySelector('.smoothing');
        slider.value = 0.8;
        slider.dispatchEvent(new Event('input'));
    """)
    assert len(page.all('[data-chart="Reward"] path.line')) == 2
    assert len(page.all('[data-chart="Reward"] path.raw')) == 1


def rows_of(run, name):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("correct", lambda row: row["correct"]),
        ("wrong", lambda row: not row["correct"]),
        ("truncated", lambda row: row["finish_reason"] == "length"),
    ],
)
def test_filters_show_the_rows_they_name(page, run, name, test):
    page.choose("Step", "step 12")
    wanted = [i for i, r in enumerate(rows_of(run, "completions/step_000012.jsonl")) if test(r)]
    assert wanted, "the run holds such a row"
    page.one(f"[data-filter={name}]").click()
    assert [int(e.get_attribute("data-row")) for e in page.all(".sample")] == wanted
    assert page.one(f"[data-filter={name}]").get_attribute("aria-pressed") == "true"


def test_search_and_sort(page, run):
    page.choose("Sort", "reward, lowest first")
    rewards = [
        [float(e.text) for e in group.find_elements("css selector", ".sample .reward")]
        for group in page.all(".group")
    ]
    assert all(group == sorted(group) for group in rewards)
    means = [sum(group) / len(group) for group in rewards]
    assert means == sorted(means)
    rows = rows_of(run, "completions/step_000060.jsonl")
    page.one("#completions input[type=search]").send_keys(rows[8]["response"][:12].upper())
    found = [int(e.get_attribute("data-row")) for e in page.all(".sample")]
    word = rows[8]["response"][:12].lower()
    text = [f"{r['prompt']}\n{r['response']}".lower() for r in rows]
    assert sorted(found) == [i for i in range(len(rows)) if word in text[i]]
    page.one("#completions input[type=search]").send_keys("no such text")
    assert page.texts(".list .empty") == ["No completion matches."]


def test_evaluation_completions_can_be_chosen_by_set(page, run):
    page.choose("From", "evaluation")
    page.choose("Step", "step 20")
    page.choose("Set", "subtraction")
    rows = rows_of(run, "evaluations/step_000020.jsonl")
    wanted = [i for i, row in enumerate(rows) if row["set"] == "subtraction"]
    assert [int(e.get_attribute("data-row")) for e in page.all(".sample")] == wanted


def test_an_opened_completion_shows_all_that_was_kept(page, run):
    row = rows_of(run, "completions/step_000060.jsonl")[3]
    page.one('[data-row="3"]').click()
    assert page.one(".detail .prompt").get_attribute("textContent") == row["prompt"]
    tokens = page.js("return [...document.querySelectorAll('.token')].map((t) => t.textContent)")
    assert [token.replace("\u21b5", "") for token in tokens] == row["tokens"]
    facts = dict(zip(page.texts(".detail .facts dt"), page.texts(".detail .facts dd"), strict=True))
    assert facts["Gold answer"] == row["answer"]
    assert facts["Extracted answer"] == (row["extracted"] or "none found")
    assert facts["Grader's reason"] == row["reason"]
    assert facts["Tokens"] == str(len(row["tokens"]))
    assert float(facts["Advantage"].replace("\u2212", "-")) == pytest.approx(row["advantage"])
    assert page.texts(".rewards th") == list(row["rewards"])
    shares = page.js("""
        return [...document.querySelectorAll('.token')].map(
            (t) => Number(t.style.getPropertyValue('--share')))
    """)
    assert shares == pytest.approx([1 - math.exp(v) for v in row["logprobs"]], abs=2e-3)


def test_a_token_tells_its_probability(page, run):
    from selenium.webdriver import ActionChains

    row = rows_of(run, "completions/step_000060.jsonl")[0]
    page.one('[data-row="0"]').click()
    ActionChains(page.driver).move_to_element(page.all(".token")[4]).perform()
    lines = page.one("#tip").text.splitlines()
    assert lines[0] == json.dumps(row["tokens"][4])
    label, probability = lines[1].split()
    assert label == "probability"
    assert float(probability) == pytest.approx(math.exp(row["logprobs"][4]), abs=2e-4)
    assert lines[3] == f"token 5 of {len(row['tokens'])}"


def test_keys_walk_through_the_completions(page):
    from selenium.webdriver.common.keys import Keys

    def current():
        return [int(e.get_attribute("data-row")) for e in page.all(".sample[aria-current]")]

    page.press("j")
    assert current() == [0]
    page.press("jjk")
    assert current() == [1]
    page.one('[data-row="1"]').click()
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert current() == [3]
    page.press(Keys.ARROW_UP, Keys.ESCAPE)
    assert current() == []
    page.one("#completions input[type=search]").send_keys("j")
    assert current() == [], "typing in the search field opens nothing"


def test_other_lists_per_token_can_colour_the_response(opened, run, maker):
    row = maker.completion(61, 0, 0, 12, 34)
    values = [(-1.0) ** i * (i % 5) / 4 for i in range(len(row["tokens"]))]
    maker.write_lines("completions/step_000061.jsonl", [row | {"token_rewards": values}])
    page = opened(write_report(run))
    page.one('[data-row="0"]').click()
    page.choose("Colour by", "token rewards")
    sides = page.js("return [...document.querySelectorAll('.token')].map((t) => t.classList[1])")
    assert sides == ["low" if value < 0 else "high" for value in values]
    assert page.one(".scale").text.split() == ["\u22121", "1"]


def test_the_step_of_the_lowest_reward_is_marked_under_token_rewards(opened, run, maker):
    row = maker.completion(61, 0, 0, 12, 34)
    count = len(row["tokens"])
    assert count > 7
    ends, values = [3, 6, count], [0.5] * 3 + [1.0, -4.0, 1.0] + [0.25] * (count - 6)
    written = row | {"token_rewards": values, "step_ends": ends}
    maker.write_lines("completions/step_000061.jsonl", [written])
    page = opened(write_report(run))
    page.one('[data-row="0"]').click()
    page.choose("Colour by", "token rewards")
    blamed = page.js(
        "return [...document.querySelectorAll('.token.blamed')].map((t) => Number(t.dataset.index))"
    )
    assert blamed == [3, 4, 5]
    tokens = page.js("return [...document.querySelectorAll('.token')].map((t) => t.classList[1])")
    assert tokens == ["low" if value < 0 else "high" for value in values]
    page.one(".text.tokens").click()
    page.js("document.querySelector('.text.tokens').focus()")
    page.press("\ue014")  # the right arrow key
    assert any(line.startswith("step ") for line in page.texts("#tip span"))
    page.choose("Colour by", "sampled probability")
    assert page.all(".token.blamed") == []


def test_an_episode_shows_who_said_what(opened, run, maker):
    row = maker.completion(61, 0, 0, 12, 34)
    assert len(row["tokens"]) > 7
    row |= {"turns": [[0, 3, 0.5], [5, len(row["tokens"]), None]], "finish_reason": "turns"}
    maker.write_lines("completions/step_000061.jsonl", [row])
    page = opened(write_report(run))
    page.one('[data-row="0"]').click()
    said = page.js(
        "return [...document.querySelectorAll('.token.observed')]"
        ".map((t) => [Number(t.dataset.index), t.classList.contains('low')])"
    )
    assert said == [[3, False], [4, False]]
    assert "truncated" in page.texts(".detail-head .verdict")
    page.js("document.querySelector('.text.tokens').focus()")
    told = []
    for _ in range(6):
        page.press("\ue014")  # the right arrow key
        told.append(page.texts("#tip span"))
    assert any("turn 1 of 2: 0.5" in line for line in told[0])
    assert "said by the environment" in told[3]
    assert any("turn 2 of 2" in line for line in told[5])


def test_markup_in_data_is_inert_and_readable(opened, run, maker):
    row = maker.completion(61, 0, 0, 12, 34)
    fields = ("response", "prompt", "answer", "extracted", "reason", "problem_id", "group")
    row |= dict.fromkeys(fields, NASTY) | {"rewards": {NASTY: 1.0}, NASTY: "extra"}
    row |= {"tokens": ["ok", NASTY], "logprobs": [-0.1, -3.0], NASTY + "list": [1.0, 2.0]}
    maker.write_lines("completions/step_000061.jsonl", [row])
    maker.write_lines("evaluations/step_000061.jsonl", [row | {"set": NASTY}])
    (run / "recipe.yaml").write_text(json.dumps({"model": NASTY, "data": {"name": NASTY}}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 61, NASTY: 1, f"eval/{NASTY}/accuracy": 0.5}) + "\n")
    page = opened(write_report(run))
    for kind in ("training", "evaluation"):
        page.choose("From", kind)
        page.one('[data-row="0"]').click()
        page.choose("Colour by", NASTY + "list")
        assert page.one(".detail .prompt").get_attribute("textContent") == NASTY
    title = page.one("h1").get_attribute("textContent")
    assert page.driver.title == title
    assert title.endswith(f" on {NASTY}")
    assert page.js("return document.querySelectorAll('img, [onerror], [onload]').length") == 0
    assert (
        page.js("return document.scripts.length - document.querySelectorAll('script[type]').length")
        == 1
    )


def test_inline_handlers_would_not_run_even_if_they_got_in(page):
    """The second line of defence: the page's policy refuses markup that some change let in."""
    page.js("""
        const div = document.createElement('div');
        div.innerHTML = '<img src="data:," onerror="document.title=1">'
            + '<style>body{display:none}</style>';
        document.body.append(div);
    """)
    page.js("return new Promise((done) => setTimeout(done, 200))")
    assert page.driver.title.startswith("SmolLM2")
    console, _ = page.logs()
    assert any("Content Security Policy" in line for line in console)
    page.driver.get(page.path.as_uri())


@pytest.mark.parametrize("size", [WIDE, NARROW, (800, 600)])
def test_nothing_sticks_out_of_a_wide_or_narrow_window(opened, run, maker, size):
    row = maker.completion(61, 0, 0, 12, 34)
    long = "x" * 3000
    row |= {"response": long, "prompt": long, "answer": long, "reason": long, "problem_id": long}
    maker.write_lines(
        "completions/step_000061.jsonl", [row | {"tokens": [long], "logprobs": [-1.0]}]
    )
    page = opened(write_report(run))
    page.resize(*size)
    page.js("return new Promise((done) => setTimeout(done, 150))")
    assert overflowing(page) == []
    below = "document.documentElement.scrollHeight - document.body.offsetHeight"
    assert page.js(f"return {below}") <= 1, "nothing hangs below the page"
    page.one('[data-row="0"]').click()
    assert overflowing(page) == []
    assert page.js("return document.documentElement.scrollWidth") <= size[0]
    box = page.one(".text.tokens")
    assert page.js("return arguments[0].scrollHeight > arguments[0].clientHeight", box)
    page.one("[aria-label='Close']").click()
    assert page.one(".sample").is_displayed()


CONTRAST = """
    const parse = (c) => c.match(/[\\d.]+/g).map(Number);
    const over = (top, below) => top.slice(0, 3).map(
        (v, i) => v * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
    const ground = (e) => {
        const layers = [];
        for (; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
        return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map(
            (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const texts = [...document.body.querySelectorAll('*')].filter((e) =>
        e.getClientRects().length && !e.closest('.hidden, .skip, svg, button:disabled') &&
        [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
    return texts.map((e) => {
        const a = light(over(parse(getComputedStyle(e).color), ground(e)));
        const b = light(ground(e));
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return [ratio, e.className, e.textContent.slice(0, 40)];
    }).filter(([ratio]) => ratio < 4.5);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast_also_on_the_deepest_tint(opened, run, maker, scheme):
    """Source: WCAG 2.2, success criterion 1.4.3 (4.5 to 1)."""
    row = maker.completion(61, 0, 0, 12, 34)
    row |= {"logprobs": [-20.0] * len(row["tokens"]), "margin": [1.0] * len(row["tokens"])}
    maker.write_lines(
        "completions/step_000061.jsonl", [row, {**row, "sample": 1, "correct": False}]
    )
    page = opened(write_report(run))
    page.scheme(scheme)
    dark = page.js("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark == (scheme == "dark")
    page.one('[data-row="0"]').click()
    assert page.js(CONTRAST) == []
    page.choose("Colour by", "margin")
    assert page.js(CONTRAST) == []


def test_every_control_has_a_name(page):
    page.press("j")
    nameless = page.js("""
        return [...document.querySelectorAll('button, input, select, svg[tabindex], [role=group]')]
            .filter((e) => !(e.getAttribute('aria-label') || e.closest('label')
                             || e.textContent.trim()))
            .map((e) => e.outerHTML.slice(0, 100))
    """)
    assert nameless == []


def test_odd_runs_open_without_a_word_on_the_console(opened, tmp_path):
    """One row, no row, only values that are not finite, no completions."""
    for index, metrics in enumerate(
        ['{"step": 0, "eval/a/accuracy": 0.5}\n', "", '{"step": 1, "policy/loss": NaN}\n{"st']
    ):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "recipe.yaml").write_text("model: tiny\n")
        (folder / "metrics.jsonl").write_text(metrics)
        page = opened(write_report(folder))
        assert page.one("h1").text
        assert page.texts("#completions .empty") == ["The run has kept no completions yet."]
        assert len(page.all("circle.dot")) == (1 if index == 0 else 0)
        assert page.all(".notes li")


def test_a_value_that_is_not_finite_breaks_the_curve_and_is_marked(opened, run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "policy/loss": NaN}\n{"step": 62, "policy/loss": 0.1}\n')
    page = opened(write_report(run))
    assert len(page.all('[data-chart="Loss"] path.line')) == 1
    assert len(page.all('[data-chart="Loss"] text.broken')) == 1
    assert len(page.all('[data-chart="Entropy"] text.broken')) == 0


@pytest.mark.timed
def test_a_run_of_thousands_of_steps_opens_quickly(opened, tmp_path, maker):
    maker.path.mkdir()
    (maker.path / "recipe.yaml").write_text("model: tiny\n")
    rows = [maker.metrics(step) for step in range(5001)]
    maker.write_lines("metrics.jsonl", rows)
    page = opened(write_report(maker.path))
    took = page.js("return performance.getEntriesByType('navigation')[0].domComplete")
    assert took < 10_000
    assert page.js("return document.querySelectorAll('svg *').length") < 20_000
    assert len(page.all('[data-chart="Reward"] path.line')) == 2, "long runs start smoothed"
