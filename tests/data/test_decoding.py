"""What text is made of completions: all that was written, without ends and padding."""

import pytest

from rlvr.data.decoding import ResponseDecoder, thought_markers
from rlvr.data.turns import turn_end
from rlvr.policy.tiny import character_tokenizer
from tests.data.byte_tokenizers import CHATML, build


@pytest.fixture
def thinking():
    """Thought markers are special tokens, and the end of a turn is not the end token."""
    tokenizer = build(CHATML, pad_token="<pad>")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<think>", "</think>", "<ponder_think>", "</ponder_think>"]},
        replace_extra_special_tokens=False,
    )
    return tokenizer


def test_markers_stay_and_ends_go(thinking):
    decode = ResponseDecoder(thinking)
    for text in ("<think>two</think>\\boxed{4}", "\\boxed{4}</think>"):
        ids = thinking.encode(text)
        assert decode(ids, finished=False) == decode(ids, finished=True) == text
        for end in ("</s>", "<|im_end|>", "<|im_end|><pad><pad>", "<pad></s><pad>"):
            assert decode([*ids, *thinking.encode(end)], finished=True) == text
    assert decode(thinking.encode("a<|im_start|>b"), finished=True) == "a<|im_start|>b"
    assert decode(thinking.encode("a<|im_start|>"), finished=True) == "a"
    assert decode(thinking.encode("a<|im_start|>"), finished=False) == "a<|im_start|>"


def test_the_tokenizer_names_markers(thinking):
    assert thought_markers(thinking, [("<a>", "<b>")]) == (
        ("<ponder_think>", "</ponder_think>"),
        ("<a>", "<b>"),
    )
    decode = ResponseDecoder(thinking)
    assert decode.opened(thinking.encode("<|im_start|>assistant\n<ponder_think>\n")) == (
        "<ponder_think>"
    )
    assert decode.opened(thinking.encode("<|im_start|>assistant\n")) == ""


def test_without_such_tokens_the_text_is_that_of_the_tokenizer():
    tokenizer = character_tokenizer()
    decode, ids = ResponseDecoder(tokenizer), [1, 5, 0, 6, 3, 7, 2]
    assert decode(ids, finished=True) == tokenizer.decode(ids, skip_special_tokens=True)


def test_the_end_of_a_turn_is_what_the_template_writes(chatml, base):
    assert turn_end(chatml) == chatml.convert_tokens_to_ids("<|im_end|>")
    assert turn_end(character_tokenizer()) == 2
    assert turn_end(base) is None
    assert turn_end(base, "{% for m in messages %}{{ m['content'] }}\n{% endfor %}") is None
    assert turn_end(base, "{{ messages[9]['content'] + 1 }}") is None
    assert turn_end(base, "nothing of the turn<|im_end|>") is None
    assert turn_end(base, "{{ raise_exception('alternate') }}") is None
