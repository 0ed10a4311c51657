"""Prompts with responses: what is learnt, where it ends, and what cannot be right."""

import json
import re
import warnings

import pytest

from rlvr.data import TemplateSettings, load_template
from rlvr.data.demonstrations import load_demonstrations
from rlvr.data.labelled_responses import encode_responses, load_responses
from rlvr.data.preferences import PreferenceFile, encode_preferences, load_preferences
from rlvr.data.responses import ResponseEncoder
from rlvr.policy.tiny import character_tokenizer
from tests.data.byte_tokenizers import build

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['reasoning_content'] is defined %}<think>\n{{ m['reasoning_content'] }}\n</think>\n\n"
    "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening }}{% endif %}"
)
USER = {"role": "user", "content": "2+2?"}
THOUGHT = {"role": "assistant", "content": "4", "reasoning_content": "two twos"}


def template(opening="", **settings):
    variables = {"chat_template_kwargs": {"opening": opening}} if opening else {}
    return load_template(TemplateSettings(mode="chat", **variables, **settings))


@pytest.fixture
def thinking():
    return build(THINKING)


def file_of(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learnt(tokenizer, row, tmp_path, opening="", **settings):
    """Prompt and response of a row of demonstrations, as text."""
    chosen = template(opening, **settings)
    (found,) = load_demonstrations([file_of(tmp_path, row)], chosen, tokenizer)
    return tokenizer.decode(found.prompt_ids), tokenizer.decode(found.token_ids)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, THOUGHT]},
        {"prompt": [USER], "response": [THOUGHT]},
        {"prompt": "2+2?", "completion": [THOUGHT]},
        {"prompt": [USER], "completion": [USER, THOUGHT]},
    ],
)
@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_a_thought_beside_the_content_is_learnt(thinking, tmp_path, row, opening):
    prompt, response = learnt(thinking, row, tmp_path, opening)
    assert prompt == f"<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n{opening}"
    assert opening + response == "<think>\ntwo twos\n</think>\n\n4<|im_end|>"


def test_preferences_and_labelled_responses_have_it_too(thinking, tmp_path):
    other = {**THOUGHT, "reasoning_content": "a guess"}
    row = {"prompt": [USER], "chosen": [THOUGHT], "rejected": [other]}
    path = file_of(tmp_path, row)
    (pair,) = encode_preferences(
        load_preferences(PreferenceFile(path=path), "pairs"),
        template(),
        thinking,
        max_prompt_tokens=99,
        max_completion_tokens=99,
        notify=print,
    )
    texts = [f"<think>\n{t}\n</think>\n\n4<|im_end|>" for t in ("two twos", "a guess")]
    assert [thinking.decode(ids) for ids in pair.completion_ids] == texts
    right, wrong = load_responses([path])
    assert (right.correct, wrong.correct) == (True, False)
    encoded = encode_responses([right, wrong], template(), thinking)
    assert [thinking.decode(ids) for _, ids in encoded] == texts
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "rejected": [THOUGHT]}) + "\n")
    with pytest.raises(ValueError, match="chosen and rejected are equal"):
        load_preferences(PreferenceFile(path=path), "pairs")


def test_what_the_template_does_not_print_is_said(chatml, tmp_path):
    row = {"messages": [USER, THOUGHT]}
    for settings in ({}, {"mode": "text"}):
        chosen = load_template(TemplateSettings(**{"mode": "chat", **settings}))
        with pytest.warns(UserWarning, match=r"1 responses have 'reasoning_content', which .* not"):
            (found,) = load_demonstrations([file_of(tmp_path, row)], chosen, chatml)
    assert chatml.decode(found.token_ids) == "4</s>"
    empty = {**THOUGHT, "reasoning_content": None, "tool_calls": []}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert learnt(chatml, {"messages": [USER, empty]}, tmp_path)[1] == "4<|im_end|>"


def test_a_template_that_shows_the_turn_otherwise_than_the_prompt_is_refused(thinking, tmp_path):
    with pytest.raises(ValueError, match=r"line 1: with reasoning_content .*change"):
        learnt(thinking, {"messages": [USER, THOUGHT]}, tmp_path, "<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("opening", "response", "rest", "notice"),
    [
        ("<think>\n", "<think>\ntwo</think>4", "two</think>4", "1 responses begin with '<think>'"),
        ("<think>\n", "<think>two</think>4", "two</think>4", "it is learnt once"),
        ("<think>", "<think>\ntwo</think>4", "\ntwo</think>4", "it is learnt once"),
        ("<think>\n", "4", "4", "never write '</think>'"),
        ("<think>\n\n</think>\n\n", "<think>a</think>4", "<think>a</think>4", "thought that is cl"),
        ("<think>\n", "two</think>4", "two</think>4", None),
        ("", "<think>\ntwo</think>4", "<think>\ntwo</think>4", None),
    ],
)
def test_no_marker_is_learnt_twice(thinking, tmp_path, opening, response, rest, notice):
    row = {"prompt": "2+2?", "response": response}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert learnt(thinking, row, tmp_path, opening)[1] == rest + "<|im_end|>"
    assert len(told) == (notice is not None)
    assert notice is None or notice in str(told[0].message)


def test_a_prefill_is_part_of_the_prompt_alone(chatml, tmp_path):
    row = {"prompt": "2+2?", "response": "Answer: 4"}
    with pytest.warns(UserWarning, match="begin with 'Answer:'"):
        prompt, response = learnt(chatml, row, tmp_path, prefill="Answer:")
    assert (prompt[-7:], response) == ("Answer:", " 4<|im_end|>")


def test_the_token_that_closes_the_turn_ends_a_response(chatml, base, tmp_path):
    """Its end token is another, as of base models with a template for chats."""
    assert chatml.eos_token == "</s>"
    raw = load_template("raw")
    rendered = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    rows = [{"prompt": text, "response": "4"} for text in (rendered, "2+2=")]
    found = load_demonstrations([file_of(tmp_path, *rows)], raw, chatml)
    assert [chatml.decode(item.token_ids) for item in found] == ["4<|im_end|>", "4</s>"]
    trace = {"prompt": rendered, "text": "4", "prompt_ids": [1], "token_ids": [2]}
    (again,) = load_demonstrations([file_of(tmp_path, trace)], raw, chatml, reencode=True)
    assert chatml.decode(again.token_ids) == "4<|im_end|>"
    assert {raw.ending(base)(ids) for ids in ([5], [6])} == {base.eos_token_id}
    cut = {**rows[0], "finish_reason": "length"}
    (found,) = load_demonstrations([file_of(tmp_path, cut)], raw, chatml)
    assert chatml.decode(found.token_ids) == "4"


def test_plain_responses_are_the_tokens_that_they_were():
    tokenizer = character_tokenizer()
    encode = ResponseEncoder(load_template("plain"), tokenizer)
    prompt, response = encode([USER], "so \\boxed{4}")
    assert prompt == (1, *tokenizer.encode("2+2?", add_special_tokens=False))
    assert response == (*tokenizer.encode("so \\boxed{4}", add_special_tokens=False), 2)


@pytest.mark.parametrize("kind", ["sft", "pairs", "responses"])
def test_blocks_of_text_are_read_as_text(chatml, tmp_path, kind):
    def blocks(*texts, **more):
        return [{"type": "text", "text": text, **more} for text in texts]

    user = {"role": "user", "content": blocks("2+", "2?", image=None)}
    said = {"role": "assistant", "content": blocks("4")}
    row = {
        "sft": {"messages": [user, said]},
        "pairs": {"chosen": [user, said], "rejected": [user, {**said, "content": "5"}]},
        "responses": {"prompt": [user], "response": [said], "correct": 1},
    }[kind]
    path = file_of(tmp_path, row)
    if kind == "sft":
        assert learnt(chatml, row, tmp_path) == (
            "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
            "4<|im_end|>",
        )
    elif kind == "pairs":
        (pair,) = load_preferences(PreferenceFile(path=path), "pairs")
        assert (pair.messages, pair.completions) == ((USER,), ("4", "5"))
    else:
        (response,) = load_responses([path])
        assert (response.messages, response.text) == ((USER,), "4")
    picture = json.loads(json.dumps(row).replace('"type": "text"', '"type": "image"'))
    read = {
        "sft": lambda file: load_demonstrations([file], template(), chatml),
        "pairs": lambda file: load_preferences(PreferenceFile(path=file), "pairs"),
        "responses": lambda file: load_responses([file]),
    }[kind]
    path = file_of(tmp_path, picture)
    with pytest.raises(ValueError, match=re.escape("blocks of text, and image is none")):
        read(path)


def test_a_message_is_learnt_as_the_template_shows_it(tmp_path):
    """As Qwen3's writes an empty thought, and harmony's a channel; a text stays what it is."""
    framed = THINKING.replace(
        "{{ m['content'] }}",
        "{% if m['role'] == 'assistant' %}<f>{% endif %}{{ m['content'] | trim }}",
    )
    tokenizer = build(framed)
    said = {"role": "assistant", "content": " 4\n"}
    assert learnt(tokenizer, {"messages": [USER, said]}, tmp_path)[1] == "<f>4<|im_end|>"
    for row in (
        {"prompt": "2+2?", "response": " 4\n"},
        {"prompt": "2+2?", "response": [said], "finish_reason": "length"},
    ):
        assert learnt(tokenizer, row, tmp_path)[1].startswith(" 4\n")
    assert learnt(build(THINKING), {"messages": [USER, said]}, tmp_path)[1] == " 4\n<|im_end|>"
    forgetful = build(THINKING.replace("m['content'] }}", "m['content'].split('</think>')[-1] }}"))
    thought = {"role": "assistant", "content": "<think>two</think>4"}
    assert learnt(forgetful, {"messages": [USER, thought]}, tmp_path)[1] == (
        "<think>two</think>4<|im_end|>"
    )
