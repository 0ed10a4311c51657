"""AdamW in slices against torch's own, and its count of the weights that moved."""

import pytest
import torch

from rlvr.learner import optimizer
from rlvr.learner.optimizer import AdamW

GROUP = {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}


@pytest.mark.parametrize("size", [7, 64, 10_000])
def test_slices_move_weights_as_torch_does(monkeypatch, size):
    """Slices that do not divide a parameter, that fit some, that hold all."""
    monkeypatch.setattr(optimizer, "_SLICE", size)
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator) for shape in ((33, 5), (64,), ())]
    theirs = [torch.nn.Parameter(weights.clone()) for weights in ours]
    ours = [torch.nn.Parameter(weights) for weights in ours]
    adamw = AdamW([{"params": ours, "model": "policy", **GROUP}], torch.float32)
    adamw.factors = {"policy": 0.5}
    oracle = torch.optim.AdamW(theirs, fused=True, **GROUP)
    for _ in range(4):
        for mine, its in zip(ours, theirs, strict=True):
            its.grad = torch.randn(its.shape, generator=generator)
            mine.grad = 2 * its.grad
        adamw.step()
        oracle.step()
        assert adamw.take_changed()["policy"].tolist() == [230, 230, 0]
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, its, rtol=0, atol=1e-6)


def test_weights_count_as_changed_where_the_compute_dtype_shows_it():
    """A step of 1e-4 moves float32 weights of 1; bfloat16 near 1 is 2^-8 apart."""
    weights = torch.nn.Parameter(torch.tensor([1.0, 1.0, 0.01]))
    group = {"params": [weights], "model": "policy", "lr": 1e-4, "betas": (0.9, 0.99)}
    adamw = AdamW([{**group, "eps": 1e-8, "weight_decay": 0.0}], torch.bfloat16)
    weights.grad = torch.tensor([1.0, 0.0, 1.0])
    adamw.step()
    assert adamw.take_changed()["policy"].tolist() == [2, 1, 0]
    assert adamw.take_changed()["policy"].tolist() == [0, 0, 0], "counted once"
