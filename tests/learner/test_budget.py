"""A step that ran out of memory is begun again with half the budget and none of what it held."""

import weakref
from types import SimpleNamespace

import pytest
import torch

from rlvr.learner.budget import Budget
from rlvr.ranks import Ranks


def budget_of(tokens, retries=True):
    engine = SimpleNamespace(retries=retries, clear=lambda: None)
    return Budget(tokens, engine, Ranks())


def test_the_failed_attempt_holds_nothing_when_the_next_begins():
    held, alive = [], []

    def work():
        alive.append([activations() is not None for activations in held])
        values = torch.zeros(8)
        held.append(weakref.ref(values))
        if len(held) == 1:
            raise torch.OutOfMemoryError
        return float(values.sum())

    budget = budget_of(64)
    assert budget.retry_on_oom(work) == 0
    assert alive == [[], [False]]
    assert (budget.tokens, budget.retries) == (32, 1)


def test_an_engine_that_cannot_begin_again_hands_the_error_on():
    def work():
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        budget_of(64, retries=False).retry_on_oom(work)


def test_a_budget_of_one_token_is_not_halved():
    def work():
        raise torch.OutOfMemoryError

    with pytest.raises(ValueError, match="micro-batches of 1 tokens"):
        budget_of(1).retry_on_oom(work)
