r"""Templates with real tokenizers: what the prompt says; it begins once and does not end."""

import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError

from rlvr.data import (
    Example,
    Template,
    TemplateChoice,
    TemplateSettings,
    load_template,
    template_names,
)
from rlvr.data.templates import begins_texts
from rlvr.settings import Settings, load_settings, to_yaml
from rlvr.types import Message
from tests.data.byte_tokenizers import BEGIN, CHATML, END, WITH_BEGIN, build

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."


def user(text):
    return (Message(role="user", content=text),)


def test_every_template_of_the_package_loads_says_its_purpose_and_shows_the_problem(chatml):
    assert template_names() == [
        "arithmetic_boxed",
        "boxed_suffix",
        "plain",
        "question_text",
        "qwen_math",
        "qwen_math_text",
        "raw",
    ]
    for name in template_names():
        template = load_template(name)
        assert template.name == name
        assert len(template.settings.purpose) > 30
        problem = r"Find \frac{a}{b} of {problem} {0} %s \x."
        assert template.render(user(problem), chatml).count(problem) == 1
        assert template.encode(user(problem), chatml) == list(
            chatml.encode(template.render(user(problem), chatml), add_special_tokens=False)
        )


def test_qwen_math_asks_for_a_box_in_the_system_message(chatml):
    text = load_template("qwen_math").render(user("1+1?"), chatml)
    assert text == (
        f"<|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert load_template("qwen_math_text").render(user("1+1?"), chatml) == text


def test_boxed_suffix_follows_the_problem(chatml):
    text = load_template("boxed_suffix").render(user("1+1?"), chatml)
    asked = r"1+1? Let's think step by step and output the final answer within \boxed{}."
    assert text == f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"


def test_plain_and_raw_show_the_bare_problem(chatml):
    framed = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert load_template("plain").render(user("1+1?"), chatml) == framed
    assert load_template("raw").render(user("1+1?"), chatml) == "1+1?"


def test_question_text_is_plain_text(base):
    text = load_template("question_text").render(user("1+1?"), base)
    assert text == (
        "Question: 1+1?\nReason step by step and put the final answer within \\boxed{}.\nAnswer:"
    )


def test_worked_examples_are_earlier_turns(chatml):
    turns = load_template("arithmetic_boxed").messages(user("Compute 5 + 6."))
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2 + ["user"]
    assert turns[1]["content"] == r"54 + 94 = 148. The answer is \boxed{148}."
    assert turns[-1]["content"] == "Compute 5 + 6."
    text = load_template("arithmetic_boxed").render(user("Compute 5 + 6."), chatml)
    assert text.count("<|im_start|>assistant\n") == 3
    assert text.endswith("<|im_start|>assistant\n")


def test_examples_are_right():
    for example in load_template("arithmetic_boxed").settings.examples:
        a, b = map(int, re.findall(r"\d+", example.problem))
        assert example.response == rf"{a} + {b} = {a + b}. The answer is \boxed{{{a + b}}}."


def test_examples_are_worded_like_the_problem(chatml):
    settings_ = TemplateSettings(
        mode="chat", user="Q: {problem}!", examples=(Example(problem="{x}", response="y"),)
    )
    turns = load_template(settings_).messages(user("z"))
    assert [turn["content"] for turn in turns] == ["Q: {x}!", "y", "Q: z!"]


def test_text_mode_parts_system_and_examples_by_the_separator(base):
    template = load_template(
        {
            "mode": "text",
            "system": "Sums.",
            "user": "{problem}\nA:",
            "examples": [{"problem": "1+1", "response": " 2"}],
            "separator": "\n--\n",
        }
    )
    assert template.render(user("2+2"), base) == "Sums.\n--\n1+1\nA: 2\n--\n2+2\nA:"


# Begin tokens.


def begins(ids):
    return [index for index, token in enumerate(ids) if token == BEGIN]


@pytest.mark.parametrize("name", ["qwen_math", "plain", "arithmetic_boxed", "boxed_suffix"])
def test_a_chat_template_that_writes_the_begin_token_gives_one(name, llama_style):
    ids = load_template(name).encode(user("1+1?"), llama_style)
    assert begins(ids) == [0]
    assert END not in ids


@pytest.mark.parametrize("name", ["raw", "question_text"])
@pytest.mark.parametrize("post", ["<s> $A", "<s> $A </s>"])
def test_text_begins_once_where_the_tokenizer_would_and_never_ends(name, post):
    tokenizer = build(None, post)
    ids = load_template(name).encode(user("1+1?"), tokenizer)
    assert begins(ids) == [0]
    assert END not in ids
    assert load_template(name).encode(user("<s>1+1?"), tokenizer) != ids or name == "raw"


def test_text_that_brings_its_begin_token_along_gets_no_second(base):
    raw = load_template("raw")
    assert raw.encode(user("<s>1+1?"), base) == raw.encode(user("1+1?"), base)


@pytest.mark.parametrize("post", [None, "$A </s>"])
def test_text_gets_no_begin_token_where_the_tokenizer_adds_none(post):
    tokenizer = build(None, post)
    assert not begins_texts(tokenizer)
    assert begins(load_template("raw").encode(user("1+1?"), tokenizer)) == []


def test_a_chat_prompt_gets_no_begin_token_that_its_template_does_not_write():
    # The chat template decides, as it did when the model was trained on it.
    tokenizer = build(CHATML, "<s> $A")
    assert begins(load_template("plain").encode(user("1+1?"), tokenizer)) == []


def test_a_tokenizer_without_a_begin_token_is_no_trouble():
    tokenizer = build(CHATML, None, bos=None)
    assert begins(load_template("raw").encode(user("1+1?"), tokenizer)) == []
    assert load_template("plain").encode(user("1+1?"), tokenizer)


@given(st.text(max_size=40), st.sampled_from(["raw", "plain", "qwen_math", "question_text"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_problem_reads_back_from_its_ids_and_begins_once(llama_style, problem, name):
    template = load_template(name)
    text = template.render(user(problem), llama_style)
    ids = template.encode(user(problem), llama_style)
    assert ids[0] == BEGIN
    assert ids[1:2] != [BEGIN]
    decoded = llama_style.decode(ids, clean_up_tokenization_spaces=False)
    # Byte-level decoding gives back every text that is valid Unicode.
    assert decoded.removeprefix("<s>") == text.removeprefix("<s>")


# Messages that bring more than a problem.


def conversation(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return tuple(Message(role=roles[role], content=content) for role, content in turns)


def contents(template, messages):
    return [(t["role"][0], t["content"]) for t in template.messages(messages)]


def test_a_system_message_of_the_problem_follows_the_templates():
    given_ = conversation(("s", "Be brief."), ("u", "1+1?"))
    assert contents(load_template("qwen_math"), given_) == [
        ("s", f"{BOXED}\n\nBe brief."),
        ("u", "1+1?"),
    ]
    assert contents(load_template("plain"), given_) == [("s", "Be brief."), ("u", "1+1?")]


def test_the_same_system_message_from_both_is_said_once():
    given_ = conversation(("s", BOXED), ("u", "1+1?"))
    assert contents(load_template("qwen_math"), given_) == [("s", BOXED), ("u", "1+1?")]


def test_a_conversation_keeps_its_turns_and_only_the_last_is_worded():
    given_ = conversation(("u", "1+1?"), ("a", "2"), ("u", "2+2?"))
    template = load_template({"mode": "chat", "system": "S", "user": "<{problem}>"})
    assert contents(template, given_) == [("s", "S"), ("u", "1+1?"), ("a", "2"), ("u", "<2+2?>")]
    examples = load_template("arithmetic_boxed")
    assert [role for role, _ in contents(examples, given_)] == list("uauauau")


def test_text_mode_takes_a_system_message_but_no_conversation(base):
    raw = load_template("raw")
    assert raw.render(conversation(("s", "S"), ("u", "p")), base) == "S\n\np"
    with pytest.raises(ValueError, match=r"plain text and cannot show a conversation.*mode: chat"):
        raw.render(conversation(("u", "x"), ("a", "y"), ("u", "z")), base)


@pytest.mark.parametrize("messages", [(), conversation(("u", "x"), ("a", "y"))])
def test_a_prompt_must_end_with_the_user(messages, chatml):
    with pytest.raises(ValueError, match="'plain': a prompt must end with a user message"):
        load_template("plain").encode(messages, chatml)


def test_the_messages_given_are_not_changed(chatml):
    given_ = conversation(("s", "S"), ("u", "p"))
    before = [dict(turn) for turn in given_]
    load_template("qwen_math").encode(given_, chatml)
    assert [dict(turn) for turn in given_] == before


# Chat templates.


def test_a_tokenizer_without_a_chat_template_is_refused_with_the_remedy(base):
    with pytest.raises(ValueError, match=r"has no chat template.*'plain'.*raw.*Jinja file"):
        load_template("plain").encode(user("1+1?"), base)


def test_a_chat_template_file_takes_the_place_of_the_tokenizers(base, chatml, tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(WITH_BEGIN)
    template = load_template({"mode": "chat", "chat_template": str(path)})
    assert (
        template.render(user("p"), base)
        == "<s><|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"
    )
    assert begins(template.encode(user("p"), base)) == [0]
    assert template.render(user("p"), chatml).startswith("<s>")


def test_a_missing_chat_template_file_is_named(base, tmp_path):
    template = load_template({"mode": "chat", "chat_template": str(tmp_path / "no.jinja")})
    with pytest.raises(ValueError, match=r"no\.jinja' is not a file"):
        template.render(user("p"), base)


def test_variables_reach_the_chat_template():
    jinja = CHATML + "{% if not enable_thinking|default(true) %}<think></think>{% endif %}"
    tokenizer = build(jinja)
    template = load_template({"mode": "chat", "chat_template_kwargs": {"enable_thinking": False}})
    assert template.render(user("p"), tokenizer).endswith("<think></think>")
    assert not load_template("plain").render(user("p"), tokenizer).endswith("<think></think>")


def test_a_variable_that_the_chat_template_does_not_know_is_refused(chatml):
    template = load_template({"mode": "chat", "chat_template_kwargs": {"enable_thinking": False}})
    with pytest.raises(ValueError, match="no variable 'enable_thinking'"):
        template.encode(user("p"), chatml)


def test_a_chat_template_that_refuses_a_role_says_so_in_one_line():
    jinja = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    tokenizer = build(jinja)
    with pytest.raises(ValueError, match=r"refuses the turns \(system, user\).*no system"):
        load_template("qwen_math").encode(user("p"), tokenizer)
    assert load_template("plain").render(user("p"), tokenizer) == "x"


# Choosing and checking templates.


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown template 'qwen_mat'; did you mean 'qwen_math'"):
        load_template("qwen_mat")
    with pytest.raises(ValueError, match="unknown template 'zzz'; known: arithmetic_boxed, "):
        load_template("zzz")


def test_a_template_is_loaded_from_a_file_a_mapping_or_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("mode: text\nuser: 'Q {problem}'\n")
    by_path, by_text = load_template(path), load_template(str(path))
    assert by_path == by_text
    assert by_path.name == "mine"
    mapped = load_template({"mode": "text", "user": "Q {problem}"})
    assert mapped.settings == by_path.settings
    assert load_template(by_path.settings) == mapped == Template("inline", by_path.settings)
    with pytest.raises(ValueError, match=r"none\.yaml' does not exist"):
        load_template("none.yaml")
    with pytest.raises(ValueError, match="'a/b' does not exist"):
        load_template("a/b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("mode: chatt", r"mode.*'chat' or 'text'"),
        ("user: '{problem}'", "'mode' is required"),
        ("mode: chat\nusr: x", "unknown setting 'usr'.*'user'"),
        ("mode: chat\nuser: no place", r"must contain \{problem\} exactly once"),
        ("mode: chat\nuser: '{problem}{problem}'", "exactly once"),
        ("mode: text\nchat_template: x.jinja", "belong to mode: chat"),
        ("mode: text\nchat_template_kwargs: {a: 1}", "belong to mode: chat"),
        ("mode: chat\nchat_template_kwargs: {tokenize: true}", "must not set tokenize"),
        ("mode: chat\nexamples: [{problem: x}]", "'examples.0.response' is required"),
        ("- mode", "a recipe is a mapping"),
    ],
)
def test_a_faulty_template_file_is_refused(tmp_path, content, words):
    path = tmp_path / "t.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        load_template(path)
    assert "\n" not in str(caught.value)
    assert "t.yaml" in str(caught.value)


class Recipe(Settings):
    template: TemplateChoice = TemplateSettings(mode="text")
    """Template."""


def test_a_recipe_names_a_template_and_records_it_in_full(tmp_path):
    recipe = load_settings(Recipe, {"template": "arithmetic_boxed"})
    assert recipe.template == load_template("arithmetic_boxed").settings
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    assert "54 + 94 = 148" in path.read_text()
    assert load_settings(Recipe, path) == recipe
    assert load_settings(Recipe, path, ["template=raw"]).template.mode == "text"
    written = load_settings(Recipe, {"template": {"mode": "chat", "examples": []}})
    assert written.template == TemplateSettings(mode="chat")
    framed = load_settings(Recipe, {"template": {"mode": "chat", "chat_template": "x.jinja"}})
    assert framed.template.chat_template == Path("x.jinja")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("qwen_mat", "'template' = 'qwen_mat': unknown template.*did you mean 'qwen_math'"),
        ({"mode": "x"}, "'template.mode' = 'x': input should be 'chat' or 'text'"),
        ({"mode": "chat", "usr": "x"}, "unknown setting 'template.usr'.*did you mean 'user'"),
        ({"mode": 3}, "'template.mode' = 3"),
        (
            {"mode": "chat", "examples": [{"problem": 1, "response": "x"}]},
            "'template.examples.0.problem' = 1: input should be a valid string",
        ),
        (3, "'template' = 3: input should be"),
    ],
)
def test_a_recipe_with_a_faulty_template_is_refused_in_one_line(template, words):
    with pytest.raises(ValueError, match=words) as caught:
        load_settings(Recipe, {"template": template})
    assert "\n" not in str(caught.value)


def test_settings_made_in_code_are_checked_too():
    with pytest.raises(ValidationError, match="exactly once"):
        TemplateSettings(mode="chat", user="x")
