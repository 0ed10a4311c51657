"""A compiled transformer has the losses and gradients of the plain one, whatever the layout."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from rlvr.policy.batching import packed_inputs, padded_inputs
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model

PROMPTS = [[5, 6, 7, 8], [5, 6, 7, 8], [9, 4]]
COMPLETIONS = [[4, 3, 11, 12, 13], [6, 5], [10, 12, 7]]
LAYOUTS = {"packed": packed_inputs, "padded": padded_inputs}


def losses_and_gradients(policy):
    """Of both layouts, each with other lengths too, as they come in training."""
    found = {}
    for name, lay_out in LAYOUTS.items():
        for rows in ((0, 1, 2), (0, 2)):
            policy.zero_grad()
            stats = policy(lay_out(PROMPTS, COMPLETIONS, rows), entropy=True, temperature=0.8)
            loss = (stats.logprobs_N.sin() - 0.1 * stats.entropy_N).sum()
            loss.backward()
            found[name, rows] = [loss.detach(), *(p.grad.clone() for p in policy.parameters())]
    return found


@pytest.fixture
def folder(tmp_path):
    """A model of one layer, which is traced soonest."""
    shape = TinySettings(hidden_size=32, layers=1, heads=4, key_value_heads=2)
    write_tiny_model(tmp_path / "model", seed=0, settings=shape)
    return str(tmp_path / "model")


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("backend", "recomputed"),
    [
        ("aot_eager", False),
        slow("aot_eager", True),
        slow("inductor", False),
        slow("inductor", True),
    ],
)
def test_a_compiled_model_has_the_losses_and_gradients_of_the_plain_one(
    folder, monkeypatch, backend, recomputed
):
    counter = CompileCounterWithBackend(backend)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    results = []
    for compiled in (False, True):
        settings = ModelSettings(path=folder, compile=compiled, gradient_checkpointing=recomputed)
        results.append(losses_and_gradients(load_policy(settings).train()))
    assert counter.frame_count >= 1
    plain, found = results
    for case, expected in plain.items():
        assert any(float(value.abs().max()) > 0.01 for value in expected[1:])
        for value, due in zip(found[case], expected, strict=True):
            assert torch.allclose(value, due, atol=1e-5, rtol=1e-4), case
