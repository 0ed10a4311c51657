"""The rule's law equals the closed form, and its limits are the models themselves."""

import numpy as np
import pytest
import torch

from rlvr.distill.acceptance_rule import (
    AcceptanceRule,
    PoolSettings,
    choose,
    probabilities,
    propose,
    student_pool,
    teacher_pool,
    uniforms,
)
from rlvr.distill.next_token_scores import LogitScores, TopScores
from tests.distill.closed_form import check_chi_square, kernel, top

ROWS, VOCABULARY = 60_000, 40


def logits(seed, spread=2.5):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)


def numbers(rule, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(ROWS, 1 + rule.draws, generator=generator, dtype=torch.float64)


def frequencies(rule, q, p, seed=0, student_ids=None):
    """Counts of the tokens that one step writes, and the share of fallbacks."""
    teacher = teacher_pool(q.expand(ROWS, -1), rule.teacher, student_ids)
    choice = choose(teacher, student_pool(p.expand(ROWS, -1), rule), numbers(rule, seed), rule)
    counts = torch.bincount(choice.tokens_B, minlength=len(p)).double()
    return counts, float((choice.draws_B == 0).double().mean()), choice


RULES = [
    AcceptanceRule(draws=1),
    AcceptanceRule(draws=5),
    AcceptanceRule(draws=1, threshold=0.1),
    AcceptanceRule(draws=5, threshold=0.1, fallback="truncated"),
    AcceptanceRule(draws=3, threshold=0.03, teacher=PoolSettings(top_k=0, temperature=1.7)),
    AcceptanceRule(
        draws=2,
        threshold=0.05,
        threshold_on="processed",
        student=PoolSettings(temperature=0.7, top_k=8),
    ),
]


@pytest.mark.parametrize("rule", RULES, ids=range(len(RULES)))
@pytest.mark.parametrize("seed", [0, 1])
def test_one_step_has_the_law_of_the_closed_form(rule, seed):
    q, p = logits(seed), logits(seed + 10)
    counts, fallbacks, choice = frequencies(rule, q, p)
    expected, refused = kernel(rule, q, p)
    assert float(expected.sum()) == pytest.approx(1, abs=1e-12)
    check_chi_square(counts, expected)
    assert fallbacks == pytest.approx(refused, abs=5 * (refused / ROWS) ** 0.5 + 1e-9)
    accepted = choice.draws_B > 0
    assert bool((choice.student_probs_B[accepted] >= rule.threshold).all())
    if rule.threshold_on == "raw":
        raw = p.softmax(-1)[choice.tokens_B]
        assert torch.allclose(choice.student_probs_B, raw, atol=1e-12)


def test_the_chi_square_would_notice_another_number_of_draws():
    q, p = logits(0), logits(10)
    counts, _, _ = frequencies(AcceptanceRule(draws=5, threshold=0.1), q, p)
    expected, _ = kernel(AcceptanceRule(draws=1, threshold=0.1), q, p)
    with pytest.raises(AssertionError):
        check_chi_square(counts, expected)


def test_a_teacher_restricted_to_common_tokens_is_renormalised():
    q, p = logits(2), logits(12)
    rule = AcceptanceRule(draws=2, threshold=0.02)
    ids = torch.arange(VOCABULARY)
    ids[::3] = -1
    counts, _, _ = frequencies(rule, q, p, student_ids=ids)
    expected, _ = kernel(rule, q, p, shared=set(ids[ids >= 0].tolist()))
    check_chi_square(counts, expected)


def test_a_teacher_without_a_common_token_leaves_everything_to_the_student():
    q, p = logits(2), logits(12)
    ids = torch.full((VOCABULARY,), -1)
    counts, fallbacks, choice = frequencies(AcceptanceRule(), q, p, student_ids=ids)
    assert fallbacks == 1
    assert not bool((choice.draws_B > 0).any())
    student = torch.zeros(VOCABULARY, dtype=torch.float64)
    for y, mass in top(p.softmax(-1), 20).items():
        student[y] = mass
    check_chi_square(counts, student)


@pytest.mark.parametrize("draws", [1, 5])
def test_the_limits_of_the_threshold_are_the_arms(draws):
    q, p = logits(3), logits(13)
    everything = PoolSettings(top_k=0)
    # Nothing of 40 tokens has a probability below 1e-300: every draw passes.
    low = AcceptanceRule(threshold=1e-300, draws=draws, student=everything)
    high = AcceptanceRule(threshold=1.0, draws=draws, student=everything)
    teacher_alone = low.model_copy(update={"arm": "teacher"})
    student_alone = low.model_copy(update={"arm": "student"})
    _, none, accepted = frequencies(low, q, p)
    _, all_of_them, refused = frequencies(high, q, p)
    assert (none, all_of_them) == (0, 1)
    _, _, teacher = frequencies(teacher_alone, q, p)
    _, _, student = frequencies(student_alone, q, p)
    assert torch.equal(accepted.tokens_B, teacher.tokens_B)
    assert torch.equal(refused.tokens_B, student.tokens_B)
    check_chi_square(torch.bincount(student.tokens_B, minlength=VOCABULARY), p.softmax(-1))


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, 2.0])
def test_a_threshold_outside_its_range_names_the_arms(threshold):
    with pytest.raises(ValueError, match=r"outside \(0, 1\].*acceptance_rule.arm=teacher"):
        AcceptanceRule(threshold=threshold)


def test_temperature_zero_is_the_likeliest_token():
    q, p = logits(4), logits(14)
    greedy = PoolSettings(temperature=0, top_k=5)
    rule = AcceptanceRule(teacher=greedy, student=greedy, threshold=0.9)
    counts, _, _ = frequencies(rule, q, p)
    best = int(q.argmax()) if float(p.softmax(-1)[q.argmax()]) >= 0.9 else int(p.argmax())
    assert int(counts[best]) == ROWS


def test_top_p_cuts_the_whole_vocabulary_before_the_pool():
    q = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()[None]
    pool = teacher_pool(q, PoolSettings(top_p=0.7, top_k=3))
    assert pool.weights_BK[0].tolist() == pytest.approx([0.625, 0.375, 0])
    assert pool.probs_BK[0].tolist() == pytest.approx([0.5, 0.3, 0.15])


def test_the_last_number_below_one_still_finds_a_token_with_weight():
    pool = teacher_pool(torch.tensor([[1.0, 2.0, -torch.inf]]), PoolSettings(top_k=0))
    assert propose(pool, torch.tensor([[np.nextafter(1.0, 0.0)]])).tolist() == [[1]]


def test_numbers_of_a_position_depend_on_nothing_else():
    long, short = uniforms(7, "p", 3, 50, 5), uniforms(7, "p", 3, 20, 2)
    assert np.array_equal(long[:20, :3], short)
    others = [uniforms(7, "p", 4, 20, 2), uniforms(8, "p", 3, 20, 2), uniforms(7, "q", 3, 20, 2)]
    assert all(not np.array_equal(short, other) for other in others)
    assert len(np.unique(long)) == long.size


def test_what_is_never_drawn_leaves_a_reported_pool_before_it_is_cut():
    """As it does where all logits are known."""
    logits_BV = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    banned, settings = torch.tensor([0, 2]), PoolSettings(top_k=2)
    whole = LogitScores(logits_BV, banned).teacher_pool(settings, None)
    ids_BK = torch.tensor([[0, 1, 2, 3]])  # two more than the pool keeps
    logprobs_BK = logits_BV.log_softmax(-1).gather(-1, ids_BK)
    reported = TopScores(ids_BK, logprobs_BK, banned).teacher_pool(settings, None)
    assert reported.ids_BK.tolist() == [[1, 3]]
    for pool in (whole, reported):
        assert probabilities(pool, torch.tensor([[1, 3, 0]]))[0, 2] == 0
    assert torch.allclose(reported.weights_BK, whole.weights_BK)
