"""Pairs drawn by loss: limits, frequencies of prompts, determinism, and less noise."""

import math
import random
from collections import Counter

import pytest

from rlvr.preference.resample import Resampler, Resampling, probabilities

PROMPTS = [f"p{item // 4}" for item in range(40)]


def pick(losses, items=range(40), step=0, seed=0, **settings):
    resampler = Resampler(Resampling(**settings), PROMPTS, seed)
    return resampler.pick(step, list(items), lambda asked: [losses[i] for i in asked])


def test_probabilities_are_a_softmax_that_does_not_overflow():
    found = probabilities([1.0, 2.0, 4.0], 0.5)
    raw = [math.exp(-2 * loss) for loss in (1.0, 2.0, 4.0)]
    assert found == pytest.approx([value / sum(raw) for value in raw])
    assert probabilities([1e6, 1e6 + 1], 1e-3)[0] == pytest.approx(1)
    assert probabilities([-1e6], 0.1) == [1]


def test_every_prompt_is_trained_on_as_often_as_before():
    losses = [random.Random(0).random() for _ in PROMPTS]
    items = [0, 1, 1, 5, 17, 39, 39]
    found = pick(losses, items, candidates=3)
    assert [PROMPTS[i] for i in found.items] == [PROMPTS[i] for i in items]


def test_cold_takes_the_smallest_loss_and_hot_draws_evenly():
    losses = [(item * 7) % 4 + item / 100 for item in range(40)]
    cold = pick(losses, candidates=4, temperature=1e-6)
    best = {p: min(range(40), key=lambda i: (PROMPTS[i] != p, losses[i])) for p in set(PROMPTS)}
    assert cold.items == [best[PROMPTS[item]] for item in range(40)]
    for settings in ({"candidates": 4, "temperature": 1e9}, {"candidates": 1}):
        counts = Counter(
            item for step in range(400) for item in pick(losses, step=step, **settings).items
        )
        expected = 400 * 40 / 40
        assert max(abs(counts[i] - expected) for i in range(40)) < 6 * math.sqrt(expected)


def test_the_share_of_a_pair_is_its_probability():
    losses = [0.1, 0.2, 0.3, 0.4] * 10
    counts = Counter()
    for step in range(500):
        counts.update(item % 4 for item in pick(losses, step=step, temperature=0.1).items)
    total = sum(counts.values())
    for place, p in enumerate(probabilities(losses[:4], 0.1)):
        assert counts[place] / total == pytest.approx(p, abs=0.02)


def test_draws_are_those_of_seed_and_step():
    losses = [random.Random(1).random() for _ in PROMPTS]
    assert pick(losses, step=3) == pick(losses, step=3)
    assert pick(losses, step=3).items != pick(losses, step=4).items
    assert pick(losses, step=3).items != pick(losses, step=3, seed=1).items


def test_with_flipped_labels_what_is_picked_is_cleaner_than_the_pool():
    generator = random.Random(2)
    flipped = [generator.random() < 0.3 for _ in PROMPTS]
    hard = {p: generator.random() for p in set(PROMPTS)}  # differs more between prompts than labels
    losses = [
        2 * hard[p] + 0.4 * f + 0.1 * generator.random()
        for p, f in zip(PROMPTS, flipped, strict=True)
    ]
    noise = [
        sum(flipped[i] for i in pick(losses, step=step, candidates=4).items) / 40
        for step in range(30)
    ]
    assert sum(noise) / 30 < 0.5 * sum(flipped) / 40


def test_losses_are_asked_for_once_and_figures_are_means():
    calls = []
    resampler = Resampler(Resampling(candidates=2), PROMPTS, 0)
    found = resampler.pick(0, [0, 0, 8], lambda asked: calls.append(asked) or [1.0] * len(asked))
    assert len(calls) == 1
    assert calls[0] == sorted(set(calls[0]))
    assert found.loss == found.candidate_loss == 1
    assert found.changed == sum(a != b for a, b in zip([0, 0, 8], found.items, strict=True))
