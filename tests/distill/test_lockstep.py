"""A trace is the same whatever goes on beside it, and what its record says is true."""

import random

import pytest
import torch

from rlvr.distill.acceptance_rule import AcceptanceRule
from rlvr.distill.decode_batch import TransformersDecodeModel
from rlvr.distill.lockstep import LockstepEngine
from rlvr.distill.settings import TransformersTraceSettings
from rlvr.distill.trace_request import TraceRequest
from rlvr.distill.vocabulary_match import Vocabulary
from tests.distill.closed_form import check_chi_square, kernel
from tests.distill.conftest import exact_model

SAME = Vocabulary("same", None, None, {})
RULE = AcceptanceRule(threshold=0.02, draws=2)
STOP = (2, 9, 14, 20)


def generate(
    teacher, student, requests, rule=RULE, max_tokens=30, seed=5, vocabulary=SAME, stop=STOP, **how
):
    engine = LockstepEngine(
        TransformersDecodeModel(teacher) if rule.uses_teacher else None,
        TransformersDecodeModel(student) if rule.uses_student else None,
        vocabulary,
        rule,
        stop,
        max_tokens,
        seed,
        TransformersTraceSettings(**how),
    )
    found = {
        (item.request.problem_id, item.request.sample): item for item in engine.generate(requests)
    }
    engine.close()
    assert set(found) == {(request.problem_id, request.sample) for request in requests}
    return found, engine


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for key, left in one.items():
        right = two[key]
        assert left.token_ids == right.token_ids, key
        assert (left.draws, left.finish_reason) == (right.draws, right.finish_reason)
        assert left.student_prob == pytest.approx(right.student_prob, abs=1e-10)
        assert left.teacher_prob == pytest.approx(right.teacher_prob, abs=1e-10)


@pytest.fixture(scope="module")
def plain(teacher, student, requests):
    """Everything at once, token by token."""
    return generate(teacher, student, requests, rows=len(requests))[0]


def test_the_traces_are_worth_comparing(plain):
    lengths = {len(item.token_ids) for item in plain.values()}
    draws = {draw for item in plain.values() for draw in item.draws}
    assert len(lengths) > 5, "rows must finish at different times"
    assert draws == {0, 1, 2}, "there must be accepted, redrawn and refused tokens"
    assert {item.finish_reason for item in plain.values()} == {"stop", "length"}
    assert len({item.token_ids for item in plain.values()}) == len(plain)


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_trace_is_the_same_in_any_batch(teacher, student, requests, plain, rows):
    shuffled = list(requests)
    random.Random(rows).shuffle(shuffled)
    assert_equal(plain, generate(teacher, student, shuffled, rows=rows)[0])


@pytest.mark.parametrize(("block", "rows"), [(2, 24), (4, 7), (8, 5), (4, 64)])
def test_a_trace_is_the_same_for_every_block(teacher, student, requests, plain, block, rows):
    assert_equal(plain, generate(teacher, student, requests, block=block, rows=rows)[0])


def test_overlapped_forward_passes_change_nothing(teacher, student, requests, plain):
    assert_equal(plain, generate(teacher, student, requests, rows=6, overlap=True)[0])


def rescored(model, item, prompt):
    """The model's probabilities of a trace, in one plain forward pass without a cache."""
    ids = torch.tensor([[*prompt, *item.token_ids]])
    with torch.no_grad():
        probs = model(input_ids=ids).logits.softmax(-1)[0, len(prompt) - 1 : -1]
    return probs.gather(-1, torch.tensor(item.token_ids)[:, None])[:, 0]


def test_accepted_tokens_rescored_have_no_mass_below_the_threshold(teacher, student, plain):
    fallbacks = []
    for item in plain.values():
        student_probs = rescored(student, item, item.request.student_prompt)
        assert student_probs.tolist() == pytest.approx(item.student_prob, abs=1e-10)
        teacher_probs = rescored(teacher, item, item.request.teacher_prompt)
        assert teacher_probs.tolist() == pytest.approx(item.teacher_prob, abs=1e-10)
        accepted = torch.tensor(item.draws) > 0
        assert bool((student_probs[accepted] >= RULE.threshold).all())
        fallbacks += student_probs[~accepted].tolist()
    assert min(fallbacks) < RULE.threshold, "the student's own tokens are not bounded"


def test_a_truncated_fallback_bounds_every_token(teacher, student, requests):
    rule = RULE.model_copy(update={"fallback": "truncated"})
    for item in generate(teacher, student, requests, rule)[0].values():
        assert min(item.student_prob) >= rule.threshold


def test_arms_are_the_limits_of_the_threshold(teacher, student, requests):
    whole = RULE.model_copy(update={"student": RULE.student.model_copy(update={"top_k": 0})})
    low = whole.model_copy(update={"threshold": 1e-300})
    high = whole.model_copy(update={"threshold": 1.0})
    for limit, arm in ((low, "teacher"), (high, "student")):
        alone = limit.model_copy(update={"arm": arm})
        one, _ = generate(teacher, student, requests, limit)
        two, _ = generate(teacher, student, requests, alone)
        for key in one:
            assert one[key].token_ids == two[key].token_ids
        for item in two.values():
            lacking = item.student_prob if arm == "teacher" else item.teacher_prob
            assert lacking == (None,) * len(item.token_ids)


def test_traces_end_at_the_first_end_token_or_the_limit(plain):
    for item in plain.values():
        ends = [token in STOP for token in item.token_ids]
        assert not any(ends[:-1])
        assert ends[-1] == (item.finish_reason == "stop")
        assert ends[-1] or len(item.token_ids) == 30


def test_a_shared_prompt_is_run_once(teacher, student, requests):
    same = [request for request in requests if request.problem_id == "p1"]
    _, engine = generate(teacher, student, same, rows=2, max_tokens=4)
    prefix = len(same[0].student_prompt) - 1
    assert prefix > 1
    fed = engine.student.positions_fed
    tokens = engine.metrics()["distill/tokens"]
    assert fed == prefix + tokens, "the prefix once, then every token but the last of each"


def test_the_first_token_has_the_law_of_the_kernel(teacher, student, requests):
    """Through both models, caches and queue: many samples of one prompt."""
    prompt, count = requests[4].student_prompt, 4000
    many = [TraceRequest("many", sample, prompt, prompt) for sample in range(count)]
    found, _ = generate(teacher, student, many, max_tokens=1, rows=512)
    with torch.no_grad():
        q, p = (m(input_ids=torch.tensor([prompt])).logits[0, -1] for m in (teacher, student))
    firsts = torch.tensor([item.token_ids[0] for item in found.values()])
    counts = torch.bincount(firsts, minlength=len(p)).double()
    check_chi_square(counts, kernel(RULE, q, p)[0])


def test_a_full_context_ends_a_trace_at_the_same_token_for_every_block(
    tokenizer, student, requests
):
    """A teacher whose context holds 20 tokens of prompt and trace."""
    short = exact_model(1, len(tokenizer), context=20)
    one, _ = generate(short, student, requests)
    four, _ = generate(short, student, requests, block=4, rows=5)
    assert_equal(one, four)
    cut = [item for item in one.values() if item.finish_reason == "length"]
    assert cut
    for item in cut:
        assert len(item.request.teacher_prompt) + len(item.token_ids) == 21


def test_a_teacher_alone_writes_what_the_student_has(teacher, student, requests):
    """Whatever its pool would have held: the rest leaves it before it is cut."""
    ids = torch.full((len(teacher.get_input_embeddings().weight),), -1)
    shared = torch.tensor([*STOP, 40, 41, 42])
    ids[shared] = shared
    vocabulary = Vocabulary("shared", ids, ids.clone(), {0: (1,)})
    rule = RULE.model_copy(update={"arm": "teacher"})
    found, _ = generate(teacher, student, requests, rule, vocabulary=vocabulary)
    written = {token for item in found.values() for token in item.token_ids}
    assert written <= set(shared.tolist())
    assert len(written) > 3
