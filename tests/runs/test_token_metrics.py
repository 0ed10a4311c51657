"""Counts and histograms of watched tokens, shares of watched words."""

from types import SimpleNamespace

import pytest

from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.runs.token_metrics import token_ids, watched_tokens, watched_words


def scored(response, tokens, logprobs):
    completion = SimpleNamespace(token_ids=tokens, logprobs=logprobs)
    return SimpleNamespace(response=response, completion=completion)


GROUPS = [
    [scored("We RECHECKED it", (5, 7, 5), (-0.1, -3.0, 0.0))],
    [scored("Let me rethink, rethink", (7, 9), (-0.01, -9.0)), scored("no", (5,), (-2.5,))],
]


def test_tokens_are_counted_by_set_and_spread_over_tenths():
    metrics = watched_tokens(
        GROUPS, {"a": frozenset({5}), "b": frozenset({7, 9}), "c": frozenset()}
    )
    assert metrics["watch/a/count"] == 3
    assert metrics["watch/a/probability"] == pytest.approx((0.904837 + 1 + 0.082085) / 3, rel=1e-4)
    assert metrics["watch/a/probability_std"] == pytest.approx(0.41188, rel=1e-3)
    assert [metrics[f"watch/a/tenth_{k}"] for k in (0, 5, 9)] == pytest.approx([1 / 3, 0, 2 / 3])
    assert sum(metrics[f"watch/b/tenth_{k}"] for k in range(10)) == pytest.approx(1)
    assert metrics["watch/c/count"] == 0
    assert "watch/c/probability" not in metrics


def test_words_count_once_a_response_whatever_their_case_or_ending():
    shares = watched_words(GROUPS, ("recheck", "rethink", "recalculate"))
    assert shares["words/recheck"] == shares["words/rethink"] == pytest.approx(1 / 3)
    assert shares["words/recalculate"] == 0
    assert shares["words/any"] == pytest.approx(2 / 3)
    assert watched_words(GROUPS, ("no",), "words_") == {"words_no": 1 / 3, "words_any": 1 / 3}
    assert watched_words(GROUPS, ()) == {}


def test_a_word_is_the_tokens_that_are_it_by_themselves(tiny_folder):
    tokenizer = load_tokenizer(ModelSettings(path=str(tiny_folder)))
    ids = token_ids(["1", "23"], tokenizer)
    assert tokenizer.decode(list(ids)).strip() == "1", "two characters are two tokens here"
