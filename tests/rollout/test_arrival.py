"""What is noted of tensors on both sides of a sync, and what is said where the two differ."""

import pytest
import torch
from torch import nn

from rlvr.rollout.arrival import Arrivals, arrival_fault, noted
from rlvr.rollout.vllm_worker import WeightRepair

Q, K, V = (f"layers.0.{name}_proj.weight" for name in "qkv")


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 4, generator=generator) for name in (Q, K, V, "norm.weight")}


def fault(change, before=None):
    sent = tensors()
    arrived = {name: tensor.clone() for name, tensor in sent.items()}
    change(arrived)
    texts = [{name: noted(t) for name, t in found.items()} for found in (sent, arrived)]
    return arrival_fault(*texts, before and {name: noted(t) for name, t in before.items()})


def test_nothing_is_said_of_what_arrived_in_any_order():
    assert fault(lambda arrived: arrived.update({Q: arrived.pop(Q)})) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: a.pop(V), f"{V} did not arrive"),
        (lambda a: a.clear(), f"{Q}, {K}, {V} and 1 more did not arrive"),
        (lambda a: a.update({K: a[Q]}), f"{K} holds the values of {Q}"),
        (lambda a: a.update({K: a[K].bfloat16()}), f"{K} arrived with dtype bfloat16"),
        (lambda a: a.update({K: a[K].view(2, 8)}), f"{K} arrived with shape 2x8"),
        (lambda a: a.update({K: a[K].T}), f"{K} arrived with other values"),
        (lambda a: a[K][3, 1:2].add_(1e-7), f"{K} arrived with other values"),
        (lambda a: a.update(tensors(5)), "and 1 more arrived as in the version before"),
        (lambda a: a.update(more=a[Q]), "more arrived, which nobody sent"),
    ],
)
def test_what_did_not_arrive_is_named(change, expected):
    assert fault(change, before=tensors(5)).endswith(expected)


class FusedModel(nn.Module):
    """Holds three matrices as one, as vLLM does, and can be told to overlook a name."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(12, 4))
        self.norm = nn.Parameter(torch.zeros(4, 4))
        self.overlooks = ()

    def load_weights(self, weights):
        filled = set()
        for name, tensor in weights:
            if name in self.overlooks:
                continue
            place = (Q, K, V).index(name) if name != "norm.weight" else None
            rows = self.norm if place is None else self.qkv[4 * place : 4 * place + 4]
            rows.data.copy_(tensor)
            filled.add("norm" if place is None else "qkv")
        return filled


@pytest.fixture
def worker():
    worker = WeightRepair()
    model = FusedModel()
    worker.model_runner = type("Runner", (), {"get_model": lambda self: model})()
    return worker


def test_a_worker_notes_what_its_model_loads_in_parts(worker):
    model, sent = worker.model_runner.get_model(), tensors()
    assert worker.noted_weights() == {"tensors": {}, "missed": []}
    for _ in range(2):  # every sync begins anew, and watches once
        worker.note_weights()
        model.load_weights((name, sent[name]) for name in (Q, K))
        model.load_weights([(V, sent[V]), ("norm.weight", sent["norm.weight"])])
        whole = {name: noted(tensor) for name, tensor in sent.items()}
        assert worker.noted_weights() == {"tensors": whole, "missed": []}
    assert torch.equal(model.qkv[4:8], sent[K])


def test_a_parameter_that_the_model_did_not_fill_is_told(worker):
    model = worker.model_runner.get_model()
    model.overlooks = ("norm.weight",)
    worker.note_weights()
    model.load_weights(tensors().items())
    assert worker.noted_weights()["missed"] == ["norm"]
    assert set(worker.noted_weights()["tensors"]) == set(tensors())


def test_a_model_that_does_not_tell_what_it_filled_is_asked_nothing():
    arrivals = Arrivals(lambda: {"a"})
    arrivals.watch(lambda weights: [*weights] and None)([(Q, torch.ones(2))])
    assert arrivals.missed({"a"}) == []
    assert set(arrivals.tensors) == {Q}
