"""The filter drops by the first fault, in order, and keeps the shortest that is right."""

from unittest import mock

import pytest

from reward import VerifierPool
from rlvr.distill.filter import Sieve, filter_summary, gathered, sift
from rlvr.distill.generate import PARTS, generate
from rlvr.distill.recipe import FilterSettings
from rlvr.distill.trace import read_traces, write_traces
from rlvr.policy.tiny import character_tokenizer
from tests.distill.test_trace import trace

TOKENIZER = character_tokenizer()
CLOSE = TOKENIZER.convert_tokens_to_ids("/")
END = TOKENIZER.eos_token_id


def written(text, sample=0, fallbacks=0, problem="p", answer="2", stop=True):
    ids = (*TOKENIZER.encode(text, add_special_tokens=False), *([END] if stop else []))
    return trace(
        id=f"{problem}/{sample}",
        problem_id=problem,
        sample=sample,
        token_ids=ids,
        text=text,
        answer=answer,
        reward=None,
        finish_reason="stop" if stop else "length",
        writer="s" * fallbacks + "t" * (len(ids) - fallbacks),
        teacher_prob=(0.5,) * len(ids),
        student_prob=(0.5,) * len(ids),
    )


def sieve(arm_is_student=False, close=CLOSE, **settings):
    return Sieve(FilterSettings(**settings), close, not arm_is_student, 0, TOKENIZER)


@pytest.fixture(scope="module", autouse=True)
def one_pool():
    """Workers take longer to start than to grade; all tests of this file share two."""
    with VerifierPool(2) as pool, mock.patch("rlvr.distill.filter.VerifierPool") as made:
        made.return_value.__enter__.return_value = pool
        yield


def test_the_first_fault_counts():
    right = "1+1/\\boxed{2}"
    cases = [
        (written(right, 0), None),
        (written(right, 1, stop=False), "format"),
        (written("1+1\\boxed{2}", 2), "format"),
        (written("1/1/\\boxed{2}", 3), "format"),
        (written("1/1/\\boxed{2}", 4, fallbacks=8), "format"),
        (written("12/\\boxed{2}", 5, fallbacks=5), "fallback"),
        (written("12/\\boxed{2}", 6, fallbacks=3), None),
        (written("\\boxed{2}1+1/2", 7), "no_answer"),
        (written("1+1/\\boxed{2", 8), "no_answer"),
        (written("1+1/\\boxed{3}", 9), "wrong"),
        (written("1+1/\\boxed{3}\\boxed{2}", 10), None),
        (written("1+1/\\boxed{3}", 11, fallbacks=8), "fallback"),
    ]
    traces = [item for item, _ in cases]
    graded, kept, reasons = sift(traces, sieve())
    assert reasons == [reason for _, reason in cases]
    assert [item.sample for item in kept] == [6], "the shortest that survives"
    assert [item.reward for item in graded][:3] == [1.0, 1.0, 1.0]
    assert graded[9].reward == 0.0
    summary = filter_summary(graded, kept, reasons)
    assert summary["dropped"] == {"format": 4, "fallback": 2, "no_answer": 2, "wrong": 1}
    assert (summary["survivors"], summary["kept"], summary["problems_with_trace"]) == (3, 1, 1)


def test_the_students_own_arm_is_not_dropped_for_its_fallbacks():
    own = written("1+1/\\boxed{2}", fallbacks=7)
    assert sift([own], sieve())[2] == ["fallback"]
    assert sift([own], sieve(arm_is_student=True))[2] == [None]


def test_what_is_kept_of_several_survivors():
    traces = [
        written("1" * (6 - sample) + "/\\boxed{2}", sample, problem=problem)
        for problem in ("p", "q")
        for sample in range(4)
    ]
    _, shortest, _ = sift(traces, sieve())
    assert [item.id for item in shortest] == ["p/3", "q/3"]
    _, everything, _ = sift(traces, sieve(keep="all"))
    assert len(everything) == 8
    picks: dict[int, set] = {}
    for seed in (0, 0, 1, 2, 3):
        random = Sieve(FilterSettings(keep="random"), CLOSE, True, seed, TOKENIZER)
        kept = sift(traces, random)[1]
        assert [item.problem_id for item in kept] == ["p", "q"]
        picks.setdefault(seed, set()).add(tuple(item.sample for item in kept))
    assert all(len(found) == 1 for found in picks.values()), "a function of the seed"
    assert len(set.union(*picks.values())) > 1


def test_a_problem_without_survivors_is_left_without_a_trace():
    traces = [written("1/\\boxed{7}", problem="p"), written("1/\\boxed{2}", problem="q")]
    _, kept, _ = sift(traces, sieve())
    assert [item.problem_id for item in kept] == ["q"]


@pytest.mark.parametrize("answer", [None, "  "])
def test_a_problem_without_reference_is_refused_where_correctness_is_asked(answer):
    traces = [written("1/\\boxed{2}", answer=answer)]
    with pytest.raises(ValueError, match=r"'p/0' has no reference answer.*correctness=none"):
        sift(traces, sieve())
    _, kept, _ = sift(traces, sieve(correctness="none"))
    assert [item.reward for item in kept] == [None]


def test_all_traces_must_be_there_unless_it_is_said_otherwise(recipe):
    settings = recipe()
    generate(settings)
    (part,) = (settings.output / PARTS).glob("*.jsonl")
    whole = gathered(settings)
    order = [
        f"{problem}/{sample}"
        for problem in dict.fromkeys(t.problem_id for t in whole)
        for sample in range(4)
    ]
    assert [item.id for item in whole] == order
    write_traces(part, read_traces(part)[:-3])
    with pytest.raises(ValueError, match=r"3 of 20 traces are missing.*--partial"):
        gathered(settings)
    assert len(gathered(settings, partial=True)) == 17


def test_settings_that_the_traces_were_not_made_with_are_refused(recipe):
    generate(recipe())
    with pytest.raises(ValueError, match=r"made with other settings: .*rule\.arm"):
        gathered(recipe(acceptance_rule={"arm": "student"}))
    with pytest.raises(ValueError, match=r"holds 4 traces of a problem.*filter with samples=4"):
        gathered(recipe(samples=2))
