"""A lookup that adds its gradient in place: the same sum, whichever way it is had."""

import copy

import pytest
import torch
from torch import nn

from rlvr.policy.embedding import add_rows_in_place


def gradient(in_place: bool, *, head: bool, padding: int | None = None, passes: int = 1):
    torch.manual_seed(0)
    embedding = nn.Embedding(11, 4, padding_idx=padding, dtype=torch.float64)
    if in_place:
        add_rows_in_place(embedding)
    for number in range(passes):
        ids_BT = torch.tensor([[1, 2, 2, 0], [10, 1, 3 + number, 0]])
        hidden_BTD = torch.tanh(embedding(ids_BT) * 3)
        loss = hidden_BTD.square().sum()
        if head:
            loss = loss + (hidden_BTD @ embedding.weight.T).log_softmax(-1)[..., 5].sum()
        loss.backward()
    return embedding.weight.grad


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("passes", [1, 3])
def test_the_gradient_is_the_usual_one(head, padding, passes):
    usual = gradient(False, head=head, padding=padding, passes=passes)
    assert usual.abs().sum() > 1
    torch.testing.assert_close(
        gradient(True, head=head, padding=padding, passes=passes), usual, rtol=0, atol=1e-13
    )


def test_what_is_not_a_plain_trained_embedding_is_left_alone():
    frozen = nn.Embedding(3, 2)
    frozen.weight.requires_grad_(False)
    rare = nn.Embedding(3, 2, scale_grad_by_freq=True)
    for embedding in (frozen, rare, nn.Linear(3, 2)):
        before = embedding.forward
        add_rows_in_place(embedding)
        assert embedding.forward == before


def test_without_gradients_it_is_the_usual_lookup():
    embedding = nn.Embedding(3, 2)
    add_rows_in_place(embedding)
    with torch.no_grad():
        assert not embedding(torch.tensor([1])).requires_grad
    assert embedding.weight.grad is None


def test_a_copy_looks_up_its_own_weight():
    embedding = nn.Embedding(3, 2)
    add_rows_in_place(embedding)
    other = copy.deepcopy(embedding)
    with torch.no_grad():
        embedding.weight.zero_()
    assert other(torch.tensor([1])).abs().sum() > 0
    other(torch.tensor([1])).sum().backward()
    assert embedding.weight.grad is None
    assert other.weight.grad.tolist() == [[0, 0], [1, 1], [0, 0]]
