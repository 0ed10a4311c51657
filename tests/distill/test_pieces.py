"""Pieces of text between vocabularies: the law of one piece, and traces that are well formed."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from rlvr.distill.acceptance_rule import AcceptanceRule, PoolSettings
from rlvr.distill.piece_writer import PieceWriter, Query
from rlvr.distill.pieces import PieceEngine
from rlvr.distill.settings import TransformersTraceSettings
from rlvr.distill.tokenizer_view import make_tokenizer_view
from rlvr.distill.trace_model import LoadedModel
from rlvr.distill.trace_request import TraceRequest
from rlvr.distill.vocabulary_match import VocabularySettings
from tests.distill.closed_form import check_chi_square
from tests.distill.conftest import exact_model
from tests.distill.test_lockstep import rescored
from tests.distill.vocabularies import byte_level, letters

EVERYTHING = PoolSettings(top_k=0)


def loaded(tokenizer, seed, size=None, **shape):
    size = size or len(tokenizer)
    model = exact_model(seed, size, **shape)
    return LoadedModel(tokenizer, model, (tokenizer.eos_token_id,), 256, size)


def engine(teacher, student, rule, max_tokens=24, rows=16, **vocabulary):
    settings = VocabularySettings(matching="text", **vocabulary)
    return PieceEngine(
        teacher,
        student,
        settings,
        rule,
        student.stop_ids,
        max_tokens,
        3,
        TransformersTraceSettings(rows=rows),
    )


@pytest.fixture(scope="module")
def small():
    """Four letters for the teacher; the student has longer tokens of the same letters."""
    teacher = letters(["a", "b", " "])
    student = letters(["a", "b", " ", "ab", " a"], [("a", "b"), (" ", "a")])
    return loaded(teacher, 1, sharpness=4), loaded(student, 2, sharpness=4, hidden_size=24)


def next_probs(view, ids):
    with torch.no_grad():
        return view.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1).tolist()


def law_of_a_piece(view, prompt):
    """Probability of each piece of at most two tokens, by enumeration; the end token is ()."""
    text = [view.tokenizer.convert_ids_to_tokens(i) for i in range(len(view.tokenizer))]
    law: dict[str | None, float] = {None: 0.0}
    first = next_probs(view, prompt)
    law[None] += first[0]
    for one in range(1, len(text)):
        second = next_probs(view, [*prompt, one])
        for two in range(len(text)):
            ends_before = two == 0 or text[two].startswith(" ")
            piece = text[one] if ends_before else text[one] + text[two]
            law[piece] = law.get(piece, 0) + first[one] * second[two]
    return law


@pytest.mark.parametrize(("draws", "threshold"), [(1, 0.1), (3, 0.1), (2, 0.126)])
def test_the_first_piece_has_the_law_of_the_closed_form(small, monkeypatch, draws, threshold):
    teacher, student = small
    rule = AcceptanceRule(draws=draws, threshold=threshold, teacher=EVERYTHING, student=EVERYTHING)
    prompts = tuple(student.tokenizer.encode("ab a")), tuple(teacher.tokenizer.encode("ab a"))
    q, f = law_of_a_piece(teacher, prompts[1]), law_of_a_piece(student, prompts[0])
    assert sum(q.values()) == pytest.approx(1)
    assert sum(f.values()) == pytest.approx(1)

    def judged(piece):
        ids = [0] if piece is None else student.tokenizer.encode(piece)
        context, product = list(prompts[0]), 1.0
        for token in ids:
            product *= next_probs(student, context)[token]
            context.append(token)
        return product

    allowed = {piece for piece in q if judged(piece) >= threshold}
    mass = sum(q[piece] for piece in allowed)
    assert 0.05 < mass < 0.95, "some pieces are refused and some are not"
    refused = (1 - mass) ** draws
    names = sorted({*q, *f}, key=str)
    expected = [
        (1 - refused) * q.get(name, 0) / mass * (name in allowed) + refused * f.get(name, 0)
        for name in names
    ]
    seen = []
    keep = PieceWriter._record

    def record(self, tokens, probs, draw, teacher_prob):
        if not self.tokens:
            seen.append(None if tokens == (0,) else student.tokenizer.decode(list(tokens)))
        return keep(self, tokens, probs, draw, teacher_prob)

    monkeypatch.setattr(PieceWriter, "_record", record)
    requests = [TraceRequest("many", sample, *prompts) for sample in range(2000)]
    made = engine(teacher, student, rule, max_tokens=1, rows=200, piece_tokens=2)
    assert sum(1 for _ in made.generate(requests)) == 2000
    counts = torch.tensor([seen.count(name) for name in names], dtype=torch.float64)
    check_chi_square(counts, torch.tensor(expected, dtype=torch.float64))


def test_with_every_piece_accepted_the_text_has_the_teachers_law(small):
    """Looking ahead and drawing again among beginnings changes nothing: the first four letters."""
    teacher, student = small
    rule = AcceptanceRule(draws=1, threshold=1e-300, teacher=EVERYTHING, student=EVERYTHING)
    prompts = tuple(student.tokenizer.encode("b")), tuple(teacher.tokenizer.encode("b"))
    law: dict[str, float] = {}
    for letters_ in itertools.product(range(4), repeat=3):
        context, product, text = list(prompts[1]), 1.0, ""
        for token in letters_:
            if text.endswith("$"):
                product *= token == 0  # behind the end token nothing comes: counted once
                continue
            product *= next_probs(teacher, context)[token]
            text += "$" if token == 0 else " ab"[{3: 0, 1: 1, 2: 2}[token]]
            context.append(token)
        if product:
            law[text] = law.get(text, 0) + product
    assert sum(law.values()) == pytest.approx(1)
    requests = [TraceRequest("many", sample, *prompts) for sample in range(2000)]
    made = engine(teacher, student, rule, max_tokens=8, rows=300, piece_tokens=3)
    names, texts = sorted(law), []
    for item in made.generate(requests):
        assert 0 not in item.draws
        ends = item.finish_reason == "stop"
        text = student.tokenizer.decode(list(item.token_ids), skip_special_tokens=True)
        texts.append((text + "$" * ends)[:3])
    counts = torch.tensor([texts.count(name) for name in names], dtype=torch.float64)
    assert counts.sum() == 2000
    check_chi_square(counts, torch.tensor([law[name] for name in names], dtype=torch.float64))


@pytest.fixture(scope="module")
def worlds():
    """Byte-level vocabularies of different sizes, in which characters are split."""
    teacher = byte_level(300)
    student = byte_level(330, ("<eos>", "</think>"), corpus=["数える the sum, naïve 🙂 the number"])
    return loaded(teacher, 5), loaded(student, 6, size=340, hidden_size=24)


def requests_of(teacher, student, count):
    text = "the sum 数 is"
    prompts = tuple(student.tokenizer.encode(text)), tuple(teacher.tokenizer.encode(text))
    return [TraceRequest(f"p{index // 3}", index % 3, *prompts) for index in range(count)]


@pytest.mark.parametrize("piece", ["word", "character"])
def test_traces_are_the_same_in_any_batch_and_their_records_are_true(worlds, piece):
    teacher, student = worlds
    rule = AcceptanceRule(threshold=1e-4, draws=2)
    requests = requests_of(teacher, student, 9)
    runs = [
        {
            (item.request.problem_id, item.request.sample): item
            for item in engine(teacher, student, rule, rows=rows, piece=piece).generate(requests)
        }
        for rows in (9, 1, 4)
    ]
    for key, item in runs[0].items():
        assert all(run[key].token_ids == item.token_ids for run in runs)
        assert all(run[key].draws == item.draws for run in runs)
        probs = rescored(student.model, item, item.request.student_prompt).tolist()
        assert probs == pytest.approx(item.student_prob, rel=1e-6)
        assert max(item.token_ids) < len(student.tokenizer)
        assert len(item.token_ids) <= 24
    draws = {draw for item in runs[0].values() for draw in item.draws}
    assert draws == {0, 1, 2}, draws


def test_an_accepted_piece_is_as_likely_as_the_threshold_asks(worlds):
    teacher, student = worlds
    rule = AcceptanceRule(threshold=1e-4, draws=3)
    accepted = 0
    for item in engine(teacher, student, rule).generate(requests_of(teacher, student, 15)):
        # A piece begins where the teacher's probability is given.
        starts = [i for i, p in enumerate(item.teacher_prob) if p is not None]
        starts += [len(item.token_ids)]
        for start, stop in itertools.pairwise(starts):
            stop = next((i for i in range(start, stop) if item.draws[i] == 0), stop)
            if stop < len(item.token_ids):  # the last may have been cut at the limit
                accepted += 1
                assert math.prod(item.student_prob[start:stop]) >= rule.threshold * (1 - 1e-9)
    assert accepted > 20


def test_a_teacher_that_writes_characters_in_bytes_damages_none(worlds):
    """Its pieces arrive whole: what the teacher wrote holds no half of a character."""
    teacher, student = worlds
    rule = AcceptanceRule(threshold=1e-30, draws=5, teacher=EVERYTHING, student=EVERYTHING)
    many_bytes = 0
    for item in engine(teacher, student, rule, piece="character").generate(
        requests_of(teacher, student, 30)
    ):
        if 0 in item.draws or item.finish_reason == "length":
            continue
        text = student.tokenizer.decode(list(item.token_ids), skip_special_tokens=True)
        assert "\ufffd" not in text
        many_bytes += any(ord(letter) > 127 for letter in text)
    assert many_bytes > 0


def test_an_end_token_that_is_text_to_the_tokenizer_may_begin_a_piece(small):
    """As an end of turn that the tokenizer does not list among its special tokens."""
    teacher = small[0]
    a, b = teacher.tokenizer.convert_tokens_to_ids(["a", "b"])
    settings = VocabularySettings(matching="text")
    view = make_tokenizer_view(replace(teacher, stop_ids=(0, b)), settings, specials=False)
    assert view.begins(b)
    assert not view.begins(a)


def test_the_teachers_end_is_the_students_of_that_name(small):
    teacher, student = small
    a = student.tokenizer.convert_tokens_to_ids("a")
    theirs = teacher.tokenizer.convert_tokens_to_ids("a")
    both = replace(teacher, stop_ids=(0, theirs)), replace(student, stop_ids=(0, a))
    assert engine(*both, AcceptanceRule()).end_of == {0: 0, theirs: a}
    assert engine(both[0], student, AcceptanceRule()).end_of == {0: 0, theirs: 0}


def test_a_truncated_fallback_is_all_of_what_may_be_written_where_none_of_it_passes(small):
    teacher, student = small
    rule = AcceptanceRule(threshold=0.01, fallback="truncated", student=EVERYTHING)
    made = engine(teacher, student, rule)
    a, blank, word = student.tokenizer.convert_tokens_to_ids(["a", " ", " a"])
    probs_V = torch.full((len(student.tokenizer),), 1e-9, dtype=torch.float64)
    probs_V[a], probs_V[blank], probs_V[word] = 0.986, 0.008, 0.006
    logits_bV = probs_V.log()[None]
    drawn = {
        made._drawn(False, logits_bV, [0], {0: Query(False, (a,), True, number)})[0].token
        for number in (0.2, 0.5, 0.6, 0.9)
    }
    assert drawn == {blank, word}
