"""Tokens of two vocabularies are matched by what they are, and nothing is lost on the way."""

import pytest
import torch

from rlvr.distill.acceptance_rule import AcceptanceRule
from rlvr.distill.token_bytes import Speller, token_bytes
from rlvr.distill.trace_request import TraceRequest
from rlvr.distill.vocabulary_match import VocabularySettings, match_vocabularies
from tests.distill.conftest import exact_model
from tests.distill.test_lockstep import generate, rescored
from tests.distill.vocabularies import TEXT, byte_level, letters

TEXTS = [*TEXT, "🙂", "é", "  \n\tx", "</think> 数"]


def match(teacher, student, settings=None, sizes=None):
    return match_vocabularies(
        teacher,
        student,
        settings or VocabularySettings(),
        (student.eos_token_id,),
        sizes or (len(teacher), len(student)),
    )


@pytest.fixture(scope="module")
def plain():
    return byte_level(320)


@pytest.fixture(scope="module")
def thinking():
    """The same ordinary tokens, with special ones that the other does not have."""
    return byte_level(320, ("<eos>", "<think>", "</think>"))


@pytest.fixture(scope="module")
def answering():
    return byte_level(320, ("<eos>", "<answer>"))


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_are_the_text(plain, text):
    bytes_of, ids = token_bytes(plain), plain.encode(text)
    assert b"".join(bytes_of[index] for index in ids).decode() == text
    speller = Speller(byte_level(270))
    spelled = speller.spell(text.encode())
    assert speller.joined(spelled) == text.encode()
    assert speller.tokenizer.decode(list(spelled)) == text


def test_halves_of_characters_are_spelled_byte_by_byte(plain):
    speller, half = Speller(plain), "🙂".encode()[:2]
    assert speller.joined(speller.spell(half)) == half


def test_sentencepiece_and_plain_tokens_are_read(tokenizer):
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"<eos>": 0, "▁the": 1, "<0xE2>": 2, "a": 3}, []))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(parts)
    gemma = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    assert token_bytes(gemma) == [None, b" the", b"\xe2", b"a"]
    assert token_bytes(tokenizer)[4] == b"\\boxed{"
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match=r"WordPiece.*not supported"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))


def test_one_vocabulary_is_the_identity(plain):
    found = match(plain, byte_level(320))
    assert (found.matching, found.student_ids, found.spelled(7)) == ("same", None, (7,))


def test_special_tokens_of_one_side_are_neither_proposed_nor_lost(answering, thinking):
    found = match(answering, thinking, sizes=(330, 340))
    assert found.matching == "shared"
    own = thinking.get_vocab()
    assert found.student_ids[answering.get_vocab()["<answer>"]] == -1, "same id, another token"
    assert found.teacher_ids[own["<eos>"]] == answering.eos_token_id
    spelled = found.spelled(own["</think>"])
    assert answering.decode(list(spelled)) == "</think>"
    assert len(spelled) > 1
    assert found.spelled(339) == (), "a row that pads the output head reads as nothing"


@pytest.mark.parametrize(("block", "rows"), [(1, 24), (4, 5)])
def test_a_teacher_reads_special_tokens_of_the_student_as_text(answering, thinking, block, rows):
    """Its probabilities are those of a plain pass over the spelled-out context."""
    vocabulary = match(answering, thinking, sizes=(330, 340))
    teacher, student = exact_model(3, 330), exact_model(4, 340, hidden_size=24)
    close = thinking.get_vocab()["</think>"]
    with torch.no_grad():  # so that it comes up: the student likes to end its thinking
        student.get_input_embeddings().weight[close] *= 2.5
    prompt = tuple(thinking.encode("the sum<think>"))
    spelled = vocabulary.spelled_all(prompt)
    assert len(spelled) > len(prompt)
    requests = [TraceRequest(f"p{index}", 0, prompt, spelled) for index in range(24)]
    rule = AcceptanceRule(threshold=0.02, draws=2)
    found, _ = generate(
        teacher, student, requests, rule, vocabulary=vocabulary, block=block, rows=rows
    )
    if block > 1:
        plain, _ = generate(teacher, student, requests, rule, vocabulary=vocabulary)
        assert all(found[key].token_ids == item.token_ids for key, item in plain.items())
    closed = 0
    for item in found.values():
        assert rescored(student, item, prompt).tolist() == pytest.approx(
            item.student_prob, rel=1e-6
        )
        context = list(spelled)
        for token, draw, prob in zip(item.token_ids, item.draws, item.teacher_prob, strict=True):
            theirs = vocabulary.spelled(token)
            if vocabulary.teacher_ids[token] < 0:
                closed += token == close
                assert (draw, prob) == (0, 0.0), "only the student can write it"
            else:
                with torch.no_grad():
                    logits = teacher(input_ids=torch.tensor([context])).logits[0, -1]
                assert prob == pytest.approx(float(logits.softmax(-1)[theirs[0]]), abs=1e-9)
            context += theirs
        assert max(item.token_ids) < len(thinking), "padding of the output head is never written"
    assert closed > 5


def test_common_tokens_are_matched_whatever_their_ids():
    teacher, student = byte_level(300), byte_level(320, corpus=TEXT[::-1])
    with pytest.raises(ValueError, match=r"differ in .* ordinary tokens.*matching=common"):
        match(teacher, student)
    found = match(teacher, student, VocabularySettings(matching="common"))
    own, theirs = student.get_vocab(), teacher.get_vocab()
    for token, index in own.items():
        if token in theirs:
            assert found.spelled(index) == (theirs[token],)
        else:
            data = token_bytes(student)[index]
            assert Speller(teacher).joined(found.spelled(index)) == data


def test_vocabularies_with_nothing_in_common_are_refused():
    teacher, student = letters(["a", "b"]), letters(["c", "d"])
    for matching in ("auto", "common"):
        with pytest.raises(ValueError, match=r"nothing in common.*matching=text"):
            match(teacher, student, VocabularySettings(matching=matching))
    assert match(teacher, student, VocabularySettings(matching="text")).matching == "text"


def test_an_end_token_that_the_teacher_cannot_produce_is_refused(plain):
    student = byte_level(320, ("<|im_end|>",))
    with pytest.raises(ValueError, match=r"ends with '<|im_end|>'.*cannot produce.*vocabulary.map"):
        match(plain, student)
    mapped = VocabularySettings(map={"<|im_end|>": "<eos>"})
    found = match(plain, student, mapped)
    assert found.spelled(student.eos_token_id) == (plain.eos_token_id,)
    with pytest.raises(ValueError, match="'<nope>', which is not a token of the teacher"):
        match(plain, student, VocabularySettings(map={"<|im_end|>": "<nope>"}))
