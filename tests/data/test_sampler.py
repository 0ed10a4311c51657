"""The sampler: every epoch everything once, no batch with a repeat, and a state that continues."""

import json
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rlvr.data import ProblemSampler

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**64 - 1)
counts = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@given(sizes, seeds, st.booleans(), counts, counts)
def test_saved_anywhere_it_continues_identically(size, seed, shuffle, before, after):
    sampler = ProblemSampler(size, seed, shuffle)
    for count in before:
        sampler.next(count)
    state = json.loads(json.dumps(sampler.state_dict()))
    again = ProblemSampler(size, seed, shuffle)
    again.next(7)
    again.load_state_dict(state)
    assert again.state_dict() == sampler.state_dict()
    assert [again.next(count) for count in after] == [sampler.next(count) for count in after]
    assert again.epoch == sampler.epoch


@given(sizes, seeds, st.booleans(), st.data())
def test_a_state_is_a_snapshot(size, seed, shuffle, data):
    sampler = ProblemSampler(size, seed, shuffle)
    for count in data.draw(counts):
        sampler.next(count)
    state = sampler.state_dict()
    copy = json.dumps(state)
    sampler.next(data.draw(st.integers(1, 60)))
    assert json.dumps(state) == copy


@given(sizes, seeds, st.booleans(), counts)
def test_every_problem_is_visited_equally_often(size, seed, shuffle, batches):
    sampler = ProblemSampler(size, seed, shuffle)
    visits = Counter(index for count in batches for index in sampler.next(count))
    # Put off at most once each, so nobody runs ahead or lags by more than one around a border.
    assert set(visits) <= set(range(size))
    total = sum(visits.values())
    assert all(total // size - 1 <= visits[index] <= total // size + 2 for index in range(size))


@given(sizes, seeds, st.integers(1, 5))
def test_epochs_that_end_with_a_batch_are_permutations(size, seed, epochs):
    sampler = ProblemSampler(size, seed)
    for epoch in range(epochs):
        assert sorted(sampler.next(size)) == list(range(size))
        assert sampler.epoch == epoch


@given(sizes, seeds, st.booleans(), st.data())
def test_each_epoch_visits_all_once_whatever_the_batches(size, seed, shuffle, data):
    # Visits of an epoch: those taken while it runs, and those of it that were put off.
    sampler = ProblemSampler(size, seed, shuffle)
    visits: Counter = Counter()
    for count in data.draw(st.lists(st.integers(1, size), min_size=1, max_size=60)):
        visits.update(sampler.next(count))
        state = sampler.state_dict()
        order = sampler._order_of(state["epoch"])
        begun = set(order[: state["cursor"]]) - set(state["put_off"])
        assert visits == Counter(
            {i: state["epoch"] + (i in begun) for i in range(size) if state["epoch"] + (i in begun)}
        )


@given(st.integers(2, 40), seeds, st.booleans(), st.data())
def test_no_batch_up_to_the_size_holds_a_problem_twice(size, seed, shuffle, data):
    sampler = ProblemSampler(size, seed, shuffle)
    for count in data.draw(st.lists(st.integers(1, size), min_size=1, max_size=60)):
        batch = sampler.next(count)
        assert len(batch) == count == len(set(batch))


@given(sizes, seeds, st.integers(1, 200))
def test_a_batch_larger_than_the_size_repeats_evenly(size, seed, count):
    sampler = ProblemSampler(size, seed)
    batch = sampler.next(count)
    for start in range(0, count, size):
        part = batch[start : start + size]
        assert len(part) == len(set(part))
    assert len(batch) == count


def test_the_order_depends_on_seed_and_epoch_alone():
    one, same, other = ProblemSampler(50, 1), ProblemSampler(50, 1), ProblemSampler(50, 2)
    first = one.next(50)
    assert first == same.next(50)
    assert first != other.next(50)
    assert first != one.next(50)
    assert first != list(range(50))


def test_the_order_of_a_seed_never_changes():
    # A change here would make old checkpoints continue with other problems.
    assert ProblemSampler(10, 0).next(10) == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    sampler = ProblemSampler(10, 2**64 - 1)
    sampler.next(10)
    assert sampler.next(10) == [3, 8, 7, 2, 5, 4, 9, 0, 6, 1]


def test_orders_are_spread_evenly():
    firsts = Counter(ProblemSampler(5, seed).next(1)[0] for seed in range(2000))
    # 400 expected each; the deviation of a fair draw is about 18.
    assert all(320 < firsts[index] < 480 for index in range(5))


def test_without_shuffling_the_order_is_the_given_one():
    sampler = ProblemSampler(3, 0, shuffle=False)
    assert sampler.next(2) == [0, 1]
    assert sampler.next(2) == [2, 0]
    assert sampler.next(3) == [1, 2, 0]


def test_no_global_generator_is_used():
    import random

    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    ProblemSampler(20, 3).next(50)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("size", "seed", "word"),
    [(0, 0, "size=0"), (-1, 0, "size=-1"), (3, -1, "seed=-1"), (3, 2**64, "out of range")],
)
def test_impossible_samplers_are_refused(size, seed, word):
    with pytest.raises(ValueError, match=word):
        ProblemSampler(size, seed)


@pytest.mark.parametrize("count", [0, -3])
def test_an_empty_batch_is_refused(count):
    with pytest.raises(ValueError, match=f"count={count}"):
        ProblemSampler(3, 0).next(count)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (ProblemSampler(9, 5), "size=9, but this one has size=10.*same data and seed"),
        (ProblemSampler(10, 6), "seed=6, but this one has seed=5"),
        (ProblemSampler(10, 5, shuffle=False), "shuffle=False, but this one has shuffle=True"),
    ],
)
def test_a_state_of_another_run_is_refused(other, words):
    with pytest.raises(ValueError, match=words):
        ProblemSampler(10, 5).load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": "2"},
        {"epoch": None},
        {"cursor": 11},
        {"cursor": 1.5},
        {"cursor": True},
        {"put_off": None},
        {"put_off": [99]},
        {"put_off": [0]},
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(change):
    sampler = ProblemSampler(10, 5, shuffle=False)
    sampler.next(13)
    state = {**ProblemSampler(10, 5, shuffle=False).state_dict(), **change}
    before = sampler.state_dict()
    with pytest.raises(ValueError, match="damaged"):
        sampler.load_state_dict(state)
    assert sampler.state_dict() == before
