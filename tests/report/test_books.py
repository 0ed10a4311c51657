"""The panel of the books: what became of prompts and tokens."""

import pytest

from rlvr.report import write_report
from rlvr.report.books import read_books
from rlvr.runs.ledger import LEDGER, Ledger
from tests.report.conftest import embedded


def step(prompts, tokens):
    return {"kind": "step", "prompts": prompts, "tokens": tokens}


@pytest.fixture
def kept(maker):
    """Of eight prompts of step 1 two wait; one of them is trained on in step 2."""
    run = maker.write()
    ledger = Ledger(run / LEDGER)
    # A problem may be called anything.
    prompt = {"kind": "prompt", "problem": '"kind": "step"'}
    ledger.append(1, [prompt, step({"drawn": 8, "trained": 4, "filtered": 2, "carried": 2},
                                   {"generated": 80, "trained": 30, "skipped": 10,
                                    "filtered": 20, "carried": 20})])  # fmt: skip
    ledger.append(2, [step({"drawn": 4, "trained": 4, "surplus": 1},
                           {"generated": 40, "trained": 45, "surplus": 5})])  # fmt: skip
    return run


def test_every_prompt_and_token_is_in_one_place(kept):
    panel = read_books(kept / LEDGER)
    assert panel["steps"] == 2
    prompts, tokens = panel["flows"]
    assert {item["fate"]: item["count"] for item in prompts["fates"]} == {
        "trained": 8, "filtered": 2, "surplus": 1, "waiting": 1}  # fmt: skip
    for flow in (prompts, tokens):
        assert sum(item["count"] for item in flow["fates"]) == flow["total"]
    assert tokens["total"] == 120
    assert read_books(kept / LEDGER, last=1)["flows"][0]["total"] == 8
    assert read_books(kept / "none.jsonl") is None


def test_a_run_without_a_ledger_has_no_panel(maker):
    assert embedded(write_report(maker.write()))["books"] is None


@pytest.mark.browser
@pytest.mark.parametrize("width", [1440, 360])
def test_the_page_shows_a_bar_and_a_table_for_each(opened, kept, width):
    page = opened(write_report(kept))
    page.resize(width, 900)
    assert page.texts("#books tbody tr:first-child td")[:3] == ["trained", "8", "66.7 %"]
    assert len(page.all("#books .flow")) == 2
    parts = page.all("#books .flow:first-of-type .part")
    assert len(parts) == 4
    label = page.js("return document.querySelector('#books .flow').getAttribute('aria-label')")
    assert label == ("prompts drawn: trained 66.7 %, filtered 16.7 %, surplus 8.3 %, waiting 8.3 %")
    assert page.js("return document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_a_page_without_a_ledger_shows_no_such_section(opened, maker):
    page = opened(write_report(maker.write()))
    assert not page.one("#books").is_displayed()
