"""Pathway distance and consistency: a metric, bounded, and blind to the experts' names."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.policy.pathways import (
    consistency,
    levenshtein,
    mean_distance,
    pathway,
    pooled_weights,
)

STRINGS = st.lists(st.integers(0, 4), max_size=12)


def table_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(diagonal + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


@given(STRINGS, STRINGS)
def test_the_distance_is_that_of_the_table(a, b):
    assert levenshtein(a, b) == table_distance(a, b)


def test_so_it_is_of_strings_longer_than_a_machine_word():
    generator = random.Random(0)
    for _ in range(20):
        a, b = ([generator.randrange(6) for _ in range(generator.randrange(60, 200))] for _ in "ab")
        assert levenshtein(a, b) == table_distance(a, b)


@given(STRINGS, STRINGS, STRINGS)
def test_it_is_a_metric(a, b, c):
    assert levenshtein(a, a) == 0
    assert levenshtein(a, b) == levenshtein(b, a)
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)
    assert 0 <= levenshtein(a, b) <= max(len(a), len(b))


def samples(count=9, layers=3, experts=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(7, layers, experts, generator=generator) * 2 for _ in range(count)]


def test_a_pathway_names_layer_and_expert_in_order_of_weight():
    weights = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.5, 0.0]])
    assert pathway(weights, 2) == ((0, 1), (0, 2), (1, 0), (1, 1))
    assert levenshtein(((0, 1), (1, 2)), ((0, 2), (1, 1))) == 2, "layers are no common alphabet"


def test_renaming_the_experts_of_a_layer_leaves_distances_and_consistency():
    permutation = torch.tensor([3, 0, 4, 1, 2])
    embeddings = [torch.randn(5, 8, generator=torch.manual_seed(i)) for i in range(3)]
    renamed = [e[permutation] if layer == 1 else e for layer, e in enumerate(embeddings)]
    plain, moved = [], []
    for logits in samples():
        other = logits.clone()
        other[:, 1] = logits[:, 1][:, permutation]
        plain.append(pooled_weights(logits))
        moved.append(pooled_weights(other))
        assert consistency(plain[-1], embeddings, 2) == pytest.approx(
            consistency(moved[-1], renamed, 2)
        )
    distances = [mean_distance([pathway(w, 2) for w in found], 1000) for found in (plain, moved)]
    assert distances[0] == pytest.approx(distances[1])
    assert 0 < distances[0] <= 1


def test_pooled_weights_are_a_distribution_over_positions_alone():
    weights = pooled_weights(samples(1)[0])
    assert torch.allclose(weights.sum(-1), torch.ones(3).double())
    shuffled = samples(1)[0][torch.randperm(7, generator=torch.manual_seed(0))]
    assert torch.allclose(pooled_weights(shuffled), weights)


def test_pairs_are_drawn_once_and_for_all():
    found = [pathway(pooled_weights(logits), 2) for logits in samples(30)]
    assert mean_distance(found, 50) == mean_distance(found, 50)
    assert mean_distance(found, 50) == pytest.approx(mean_distance(found, 10_000), abs=0.1)
    assert mean_distance(found[:1], 50) == 0
    assert mean_distance([found[0]] * 4, 50) == 0


def test_consistency_is_a_cosine():
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    same = [torch.tensor([[2.0, 0.0], [0.0, 1.0]])] * 2
    assert consistency(one, same, 1) == pytest.approx(1)
    turned = [same[0], torch.tensor([[-3.0, 0.0], [0.0, 1.0]])]
    assert consistency(one, turned, 1) == pytest.approx(-1)
    across = [same[0], torch.tensor([[0.0, 5.0], [0.0, 1.0]])]
    assert consistency(one, across, 1) == pytest.approx(0)
    assert consistency(one[:1], same[:1], 1) == 1
