"""The page of traces: what it holds, and how it looks in a browser."""

import json

import pytest

from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.report.traces import PageSettings, token_pieces, write_traces_page
from tests.data.byte_tokenizers import build

NASTY = "</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder, 0, TinySettings(hidden_size=32, layers=1, heads=2, key_value_heads=2))
    return folder


@pytest.fixture
def traces(tmp_path, model):
    """Forty traces; of each the student wrote the second token, and finds the third improbable."""
    tokenizer = load_tokenizer(ModelSettings(path=str(model)))
    rows = []
    for n in range(40):
        ids = [*tokenizer.encode(f"0{n}\n\\boxed{{{n}}}", add_special_tokens=False), 2]
        rows.append(
            {
                "id": f"p{n}/0",
                "problem_id": f"p{n}",
                "sample": 0,
                "prompt": "q",
                "prompt_ids": tokenizer.encode("12+34=", add_special_tokens=False),
                "token_ids": ids,
                "text": tokenizer.decode(ids, skip_special_tokens=True),
                "finish_reason": "stop",
                "reward": n % 2,
                "answer": NASTY if n == 3 else str(n),
                "writer": "ts" + "t" * (len(ids) - 2),
                "teacher_prob": [0.9] * len(ids),
                "student_prob": [0.5, 0.4, 0.004, *[0.9] * (len(ids) - 3)],
                "settings": "x",
            }
        )
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def embedded(page):
    text = page.read_text().partition('id="page">')[2].partition("</script>")[0]
    return json.loads(text)


def test_it_holds_what_the_traces_say(traces, model, tmp_path):
    settings = PageSettings(tokenizer=str(model), most=10)
    data = embedded(write_traces_page([traces], tmp_path / "page.html", settings))
    assert len(data["traces"]) == 10
    assert "first 10 of 40" in data["notes"][0]
    first = data["traces"][0]
    assert "".join(first["tokens"]) == "00\n\\boxed{0}<eos>"
    assert first["student"][2] == 0.004
    assert data["figures"] is None


def test_a_student_scores_them_anew(traces, model, tmp_path):
    settings = PageSettings(student=str(model))
    data = embedded(write_traces_page([traces], tmp_path / "page.html", settings))
    assert data["traces"][0]["student"][2] != 0.004
    assert data["figures"]["by_writer"].keys() == {"teacher", "student"}


def test_the_recipe_beside_the_traces_names_the_tokenizer(traces, model, tmp_path):
    with pytest.raises(ValueError, match="set --model STUDENT"):
        write_traces_page([traces], tmp_path / "page.html", PageSettings())
    (tmp_path / "recipe.yaml").write_text(f"student: {{path: {model}}}\n")
    write_traces_page([traces], tmp_path / "page.html", PageSettings())
    with pytest.raises(ValueError, match="is a folder"):
        write_traces_page([traces], tmp_path, PageSettings())


def test_a_character_of_several_tokens_stands_at_the_last():
    tokenizer = build()
    text = "a\u20acb\U0001f600"
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = token_pieces(ids, tokenizer)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert len(ids) > len(text)
    cut = token_pieces(ids[:-1], tokenizer)
    assert "\ufffd" in cut[-1]


@pytest.mark.browser
def test_the_page_in_a_browser(traces, model, tmp_path, opened):
    settings = PageSettings(tokenizer=str(model))
    page = opened(write_traces_page([traces], tmp_path / "page.html", settings))
    assert page.driver.title == "Traces of traces.jsonl"
    assert len(page.all("article.trace")) == 20
    tokens = page.all("article.trace:first-of-type .token")
    assert [t.get_attribute("class") for t in tokens[:3]] == [
        "token t",
        "token s",
        "token t improbable",
    ]
    depth = [float(t.get_attribute("style").split(":")[1].strip(" ;")) for t in tokens[:4]]
    assert depth[2] > depth[1] > depth[0] > depth[3]
    colours = [t.value_of_css_property("background-color") for t in tokens[:2]]
    assert colours[0] != colours[1]
    page.js("arguments[0].scrollIntoView()", tokens[2])
    page.js("arguments[0].parentElement.focus()", tokens[2])
    from selenium.webdriver import Keys

    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    tip = page.one("#tip").text
    assert "written by the teacher" in tip
    assert "0.004" in tip
    page.choose("Order", "longest")
    assert "p10/0" in page.texts("article.trace header b")
    page.one(".more").click()
    assert len(page.all("article.trace")) == 40
    page.one("input[type=search]").send_keys("p3/")
    assert page.texts("article.trace header b") == ["p3/0"]
    assert NASTY in page.one("article.trace header").text
    assert page.driver.title != "taken"
    page.resize(360, 780)
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
