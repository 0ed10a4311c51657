"""Weights and moments in fewer bits, and AdamW in the backward pass, against float64."""

import pytest
import torch

from rlvr.learner.checkpoint import load_state, save_checkpoint
from rlvr.learner.in_backward import BackwardStore
from rlvr.learner.launch import Launch, build_store
from rlvr.learner.learner import Learner
from rlvr.learner.models import Models
from rlvr.learner.moments import Moments
from rlvr.learner.optimizer import AdamW
from rlvr.learner.parameter_store import LocalStore
from rlvr.learner.rounding import largest_gap
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.policy.loading import load_policy
from rlvr.policy.saving import save_policy
from rlvr.policy.settings import ModelSettings
from rlvr.ranks import Ranks
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import load_settings
from tests.learner.batches import make_batch, rollouts

PLAIN = Objective(Clip(), (), TokenMean())
GROUP = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "model": "policy"}
SETTINGS = {"lr": 1e-3, "weight_decay": 0.1, "layout": "padded", "max_grad_norm": 0.5}
OPTIONS = {
    "weights": ({"weights": "bfloat16"}, {}),
    "bfloat16": ({}, {"optimizer_states": "bfloat16"}),
    "int8": ({}, {"optimizer_states": "int8"}),
    "per_tensor": ({}, {"in_backward": "per_tensor"}),
    "two_passes": ({}, {"in_backward": "two_passes"}),
    "all": ({"weights": "bfloat16"}, {"optimizer_states": "int8", "in_backward": "per_tensor"}),
}


def float64_adamw(weights, gradients, factor):
    """Loshchilov and Hutter's algorithm 2, written out."""
    w, m, v = weights.double(), torch.zeros(()).double(), torch.zeros(()).double()
    first, second = GROUP["betas"]
    for step, gradient in enumerate(gradients, 1):
        g = gradient.double() * factor
        m = first * m + (1 - first) * g
        v = second * v + (1 - second) * g * g
        root = (v / (1 - second**step)).sqrt() + GROUP["eps"]
        w = w * (1 - GROUP["lr"] * GROUP["weight_decay"])
        w = w - GROUP["lr"] * (m / (1 - first**step)) / root
    return w, m, v


@pytest.mark.parametrize("states", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_float64_adamw_rounded(states, dtype):
    """The first step's error is that of one rounding; the mean over many copies has none."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, generator=generator).to(dtype)
    gradient = torch.randn(64, generator=generator)
    copies = 4096
    weights = torch.nn.Parameter(values.repeat(copies))
    group = {"params": [weights], "states": states, **GROUP}
    adamw = AdamW([group], torch.float32, names={"w": weights}, seed=3)
    adamw.factors = {"policy": 0.5}
    weights.grad = gradient.repeat(copies).to(dtype)
    adamw.step()
    w, m, v = float64_adamw(values, [gradient.to(dtype)], 0.5)
    found = Moments(adamw.state[weights], 0, weights.numel()).read()
    for moment, due in zip(found, (m, v.sqrt()), strict=True):
        moment = (moment if due is m else moment.sqrt()).double().view(copies, 64)
        relative = {"float32": 1e-6, "bfloat16": 2**-7, "int8": 0.0}[states]
        gap = largest_gap(due is m) if states == "int8" else 0.0
        assert bool(((moment - due).abs() <= relative * due.abs() + gap * due.abs().max()).all())
        off = (moment.mean(0) - due).abs()
        assert float((off / due.abs().max()).max()) < 5 * max(gap, relative, 1e-6) / copies**0.5
    error = (weights.detach().double().view(copies, 64) - w).abs()
    step = w.abs() * 2**-7 if dtype == torch.bfloat16 else w.abs() * 1e-6 + 1e-7
    assert bool((error <= step).all())
    mean = (weights.detach().double().view(copies, 64).mean(0) - w).abs()
    assert bool((mean < 5 * step / copies**0.5 + 1e-7).all())


def test_many_small_steps_move_bfloat16_weights_as_far_as_float64_ones():
    """Each is a fiftieth of what bfloat16 resolves near 1: rounded to the nearest, none would."""
    group = {**GROUP, "lr": 1e-4, "weight_decay": 0.0}
    weights = torch.nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    group["params"] = [weights]
    adamw = AdamW([group], torch.float32, names={"w": weights})
    for _ in range(100):
        weights.grad = torch.ones_like(weights)
        adamw.step()
    moved = 1 - float(weights.detach().double().mean())
    assert moved == pytest.approx(100 * 1e-4, rel=0.02)
    assert 0 < int(adamw.take_changed()["policy"][0]) < 100 * 20_000 * 0.1


def learner_of(folder, name, saved=None, **more):
    model, settings = OPTIONS[name]
    torch.manual_seed(0)
    policy = load_policy(ModelSettings(path=str(folder), **model), saved=saved)
    options = LearnerSettings(**{**SETTINGS, **settings, **more})
    return Learner(policy, PLAIN, options, seed=5)


@pytest.mark.parametrize("name", ["weights", "bfloat16", "all"])
def test_taken_up_from_a_checkpoint_it_goes_on_bit_for_bit(tiny_folder, tmp_path, name):
    whole, first = learner_of(tiny_folder, name), learner_of(tiny_folder, name)
    batches = list(rollouts(5))
    for batch in batches:
        whole.update(batch)
    for batch in batches[:2]:
        first.update(batch)
    path = save_checkpoint(
        tmp_path,
        2,
        write_model=lambda folder: save_policy(first.policy, folder),
        tensors=first.store.state(),
        state={"step": 2},
        keep=1,
    )
    second = learner_of(tiny_folder, name, saved=path)
    second.store.load_state(load_state(path)[1])
    second.updates = first.updates
    for batch in batches[2:]:
        second.update(batch)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name]), name
    for key, value in whole.store.state().items():
        assert torch.equal(value, second.store.state()[key]), key


def test_a_checkpoint_is_taken_up_with_moments_held_otherwise(tiny_folder):
    exact, small = learner_of(tiny_folder, "per_tensor"), learner_of(tiny_folder, "int8")
    exact.update(next(rollouts(1)))
    small.store.load_state(exact.store.state())
    back = learner_of(tiny_folder, "two_passes")
    back.store.load_state(small.store.state())
    for key, value in back.store.state().items():
        due = exact.store.state()[key]
        assert value.dtype == due.dtype
        close = 0.0 if key.startswith("step/") else 0.1 * float(due.abs().max())
        assert float((value - due).abs().max()) <= close, key


def steps_of(store, batch, count=2):
    """Weights and results after a few steps on one micro-batch."""
    from rlvr.policy.batching import padded_inputs

    results = []
    for _ in range(count):
        store.begin(1.0)
        inputs = padded_inputs(batch.prompt_ids, batch.completion_ids, range(len(batch)))
        stats = store.forward(inputs).stats
        store.backward(-stats.logprobs_N.mean(), last=True)
        results.append(store.step(1.0))
    return {name: p.detach().clone() for name, p in store.named.items()}, results


def stores(folder, how, **settings):
    rates = {"policy": LearnerSettings(**{**SETTINGS, **settings})}
    made = []
    for kind in (LocalStore, BackwardStore):
        torch.manual_seed(0)
        models = Models(load_policy(ModelSettings(path=str(folder))))
        made.append(kind(models, rates) if kind is LocalStore else kind(models, rates, how))
    return made


def test_two_passes_take_the_step_of_whole_gradients(tiny_folder):
    batch = make_batch([1.0, 0, 0, 1], dtype=torch.float32)
    (expected, due), (found, results) = (
        steps_of(store, batch) for store in stores(tiny_folder, "two_passes")
    )
    assert float(due[0].grad_norms["policy"]) > 2 * SETTINGS["max_grad_norm"], "it is clipped"
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6), name
    for one, two in zip(due, results, strict=True):
        assert two.grad_norms["policy"] == pytest.approx(one.grad_norms["policy"], rel=1e-5)
        assert two.changed == pytest.approx(one.changed, abs=1e-3)
        assert (one.in_backward, two.in_backward) == (False, True)


def test_per_tensor_clips_each_by_its_own_norm(tiny_folder):
    """Against a step of plain AdamW with every gradient clipped by hand."""
    batch = make_batch([1.0, 0, 0, 1], dtype=torch.float32)
    plain, in_backward = stores(tiny_folder, "per_tensor", max_grad_norm=0.1)
    from rlvr.policy.batching import padded_inputs

    inputs = padded_inputs(batch.prompt_ids, batch.completion_ids, range(len(batch)))
    plain.backward(-plain.forward(inputs).stats.logprobs_N.mean())
    norms = {name: float(p.grad.double().norm()) for name, p in plain.named.items()}
    for name, parameter in plain.named.items():
        parameter.grad *= min(1.0, 0.1 / (norms[name] + 1e-6))
    assert sum(norm > 0.1 for norm in norms.values()) > 3
    for group in plain.optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    plain.optimizer.step()
    found, (result,) = steps_of(in_backward, batch, 1)
    for name, parameter in plain.named.items():
        assert torch.allclose(found[name], parameter, rtol=0, atol=2e-6), name
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    assert result.grad_norms["policy"] == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("how", ["per_tensor", "two_passes"])
def test_gradients_are_never_whole(tiny_folder, how, monkeypatch):
    _, store = stores(tiny_folder, how)
    held = []
    original = BackwardStore._measure

    def counting(self, name, parameter, group):
        held.append(sum(p.grad is not None for p in self.named.values()))
        return original(self, name, parameter, group)

    monkeypatch.setattr(BackwardStore, "_measure", counting)
    steps_of(store, make_batch([1.0, 0, 0, 1], dtype=torch.float32), 1)
    assert len(held) == len(store.named)
    assert max(held) <= 2, "the one that is complete, and perhaps one that was just begun"


def test_several_micro_batches_are_the_same_step(tiny_folder):
    """Added up first: the numbers are those of one micro-batch, and the metric says so."""
    for name in ("per_tensor", "two_passes"):
        one = learner_of(tiny_folder, name)
        many = learner_of(tiny_folder, name, tokens_per_micro_batch=40)
        for batch in list(rollouts(2)):
            found = [learner.update(batch) for learner in (one, many)]
        assert found[0]["learner/in_backward"] == 1.0
        assert found[1]["learner/in_backward"] == float(name == "per_tensor")
        for key, value in one.policy.state_dict().items():
            assert torch.allclose(value, many.policy.state_dict()[key], rtol=0, atol=2e-6), key


@pytest.mark.parametrize("name", ["per_tensor", "two_passes", "weights", "int8"])
def test_a_gradient_that_is_not_finite_is_not_applied(tiny_folder, name):
    learner = learner_of(tiny_folder, name, max_bad_updates=2)
    batch = make_batch([1.0, 0, 0, 1, 0, 1, 1, 0], dtype=torch.float32)
    learner.update(batch)
    before = {key: value.clone() for key, value in learner.policy.state_dict().items()}
    moments = {key: value.clone() for key, value in learner.store.state().items()}
    poisoned = make_batch([1.0, 0, 0, 1, 0, 1, 1, 0], dtype=torch.float32)
    poisoned.advantages_BT[0] *= float("inf")
    assert learner.update(poisoned)["learner/skipped_updates"] == 1
    for key, value in learner.policy.state_dict().items():
        assert torch.equal(value, before[key]), key
    for key, value in learner.store.state().items():
        assert torch.equal(value, moments[key]), key
    assert learner.update(batch)["learner/skipped_updates"] == 1
    assert any(not torch.equal(v, before[k]) for k, v in learner.policy.state_dict().items())


def test_per_tensor_moves_what_is_finite_and_counts_the_step_as_skipped(tiny_folder):
    _, store = stores(tiny_folder, "per_tensor")
    first = next(iter(store.named))
    store.named[first].register_hook(lambda gradient: gradient * float("nan"))
    before = {name: p.detach().clone() for name, p in store.named.items()}
    after, (result,) = steps_of(store, make_batch([1.0, 0, 0, 1], dtype=torch.float32), 1)
    assert (result.skipped, result.bad_gradient) == (True, first)
    assert {name for name in after if torch.equal(after[name], before[name])} == {first}


class TwoOf(Ranks):
    """As if there were two processes."""

    def __init__(self):
        self.rank, self.count, self.local_rank, self._group = 0, 2, 0, None
        self.timeout_s = 60.0


def test_what_several_processes_cannot_do_is_refused(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    models, rates, launch = Models(policy), {"policy": LearnerSettings()}, Launch(TwoOf())
    with pytest.raises(ValueError, match="launch one process without DeepSpeed"):
        build_store(models, rates, launch, in_backward="per_tensor")
    model = {"path": "m", "weights": "bfloat16", "frozen_weights": "int8"}
    data = {"output": "out", "steps": 1, "data": {"source": {"name": "arithmetic"}}}
    with pytest.raises(ValueError, match="no reference is held"):
        load_settings(RLRecipe, {**data, "model": model})
    kl = {"regularisers": [{"name": "kl", "coefficient": 0.1}]}
    learner = {"optimizer_states": "int8", "in_backward": "per_tensor"}
    recipe = load_settings(RLRecipe, {**data, "model": model, "learner": learner, **kl})
    assert recipe.launch_faults(1, 0) == []
    said = " ".join(recipe.launch_faults(1, 2))
    for name in ("model.weights", "learner.optimizer_states", "learner.in_backward"):
        assert name in said
    assert "model.frozen_weights" not in said, "a reference is none of DeepSpeed's"
    adapted = {**model, "weights": "float32", "lora": {"rank": 2}}
    recipe = load_settings(RLRecipe, {**data, "model": adapted})
    assert "model.frozen_weights" in " ".join(recipe.launch_faults(2, 3))
