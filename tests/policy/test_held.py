"""Weights held with fewer bits: the numbers are those of the rounded weights."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rlvr.policy.adapters import check_adapters
from rlvr.policy.batching import padded_inputs
from rlvr.policy.held import HeldEmbedding, HeldLinear, hold_in_float32, is_bfloat16
from rlvr.policy.loading import load_policy
from rlvr.policy.merging import merged_weights, weight_shapes
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.rollout.weight_sync import learner_logprobs, write_model

LORA = LoraSettings(rank=4)
SEQUENCE = [5, 9, 9, 9, 31, 7, 12, 9, 3, 40, 9, 8]


def load(folder, **settings):
    torch.manual_seed(0)
    return load_policy(ModelSettings(path=str(folder), **settings))


def act(policy):
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return policy


def gradients(policy):
    """Of the log-probability of a text, by name."""
    inputs = padded_inputs([SEQUENCE[:3]], [SEQUENCE[3:]], (0,))
    policy.train()(inputs).logprobs_N.sum().backward()
    return {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


def whole(policy):
    """A policy in float32 with the numbers that another one's weights stand for."""
    values = dict(merged_weights(policy, torch.float32))
    for name, weight in policy.causal_lm.named_parameters():
        if ".lora_" not in name:
            plain = name.replace(".base_layer", "")
            weight.data = values[plain].clone()
    for module in policy.modules():
        if isinstance(module, HeldLinear | HeldEmbedding):
            module.__class__ = nn.Linear if isinstance(module, HeldLinear) else nn.Embedding
    return policy


@pytest.fixture(scope="module")
def published(tiny_folder, tmp_path_factory):
    """The tiny model as models are published: with numbers of bfloat16."""
    folder = tmp_path_factory.mktemp("published") / "model"
    policy = load(tiny_folder)
    for weight in policy.parameters():
        weight.data = weight.data.bfloat16().float()
    write_model(policy, folder, torch.float32)
    return folder


def test_null_holds_what_is_bfloat16_in_bfloat16_and_no_bit_changes(published):
    found = {}
    for how in ("float32", None):
        policy = act(load(published, precision="bfloat16", frozen_weights=how, lora=LORA))
        layer = policy.causal_lm.model.layers[0].mlp.up_proj.base_layer
        assert layer.weight.dtype == (torch.float32 if how else torch.bfloat16)
        found[how] = (learner_logprobs(policy, SEQUENCE), gradients(policy))
    assert found[None][0] == found["float32"][0]
    assert set(found[None][1]) == set(found["float32"][1])
    for name, gradient in found["float32"][1].items():
        assert torch.equal(found[None][1][name], gradient), name


def test_null_rounds_nothing(tiny_folder, published):
    rounding = load(tiny_folder, precision="bfloat16", lora=LORA)
    plain = load(published, lora=LORA)
    trained = load(published, precision="bfloat16")
    for policy in (rounding, plain, trained):
        assert {p.dtype for p in policy.parameters()} == {torch.float32}
    weight = torch.tensor([1.0, 1.0078125])
    assert is_bfloat16(weight)
    assert not is_bfloat16(weight + 2**-10)


@pytest.mark.parametrize(
    ("how", "precision"), [("bfloat16", "float32"), ("int8", "bfloat16"), ("nf4", "float32")]
)
def test_a_model_computes_with_the_whole_weights(tiny_folder, how, precision):
    """Its log-probabilities, and its adapters' gradients, are those of a float32 model of them."""
    settings = {"frozen_weights": how, "lora": LORA, "precision": precision}
    held = act(load(tiny_folder, **settings))
    plain = load(tiny_folder, lora=LORA, precision=precision)
    apart = torch.tensor(learner_logprobs(held, SEQUENCE))
    found, before = gradients(held), learner_logprobs(act(plain), SEQUENCE)
    for weight in held.parameters():
        weight.grad = None
    for name, weight in held.named_parameters():
        if "lora_B" in name:
            weight.data.zero_()
    same = whole(held)
    act(same)
    expected = torch.tensor(learner_logprobs(same, SEQUENCE))
    close = 1e-5 if precision == "float32" else 0.02
    assert torch.allclose(apart, expected, rtol=0, atol=close)
    assert not torch.allclose(apart, torch.tensor(before), rtol=0, atol=1e-7), "it rounds"
    for name, gradient in gradients(same).items():
        scale = float(gradient.abs().max())
        assert float((found[name] - gradient).abs().max()) < max(close, 1e-5) * max(scale, 1), name


def test_rounding_stays_within_its_bounds():
    from rlvr.policy.held import _CODECS

    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    codes, scales = _CODECS["int8"][0](weight)
    off = (_CODECS["int8"][1](codes, scales, (48, 128)) - weight).abs()
    assert bool((off <= scales / 2 * 1.001).all())
    codes, scales = _CODECS["nf4"][0](weight)
    assert codes.numel() * 2 == weight.numel()
    off = (_CODECS["nf4"][1](codes, scales, (48, 128)) - weight).abs()
    # The widest gap of NF4 is between -1 and -0.6962 (arXiv:2305.14314, appendix E).
    bound = scales.repeat_interleave(64).view(48, 128) * 0.3038 / 2
    assert bool((off <= bound * 1.001).all())


@pytest.mark.parametrize("how", ["bfloat16", "int8", "nf4"])
def test_the_merged_model_is_the_adapted_one(tiny_folder, tmp_path, how):
    policy = act(load(tiny_folder, frozen_weights=how, lora=LORA))
    shapes = {name: shape for name, _, shape in weight_shapes(policy, torch.float32)}
    tensors = dict(merged_weights(policy, torch.float32))
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_model(policy, tmp_path / "merged", torch.float32)
    merged = learner_logprobs(load(tmp_path / "merged"), SEQUENCE)
    adapted = learner_logprobs(policy, SEQUENCE)
    assert merged == pytest.approx(adapted, abs=1e-3)
    base = learner_logprobs(load(tiny_folder, frozen_weights=how, lora=LORA), SEQUENCE)
    assert merged != pytest.approx(base, abs=1e-2)


@pytest.mark.parametrize("how", ["bfloat16", "nf4"])
def test_the_trial_finds_what_merging_would_lose(tiny_folder, how, monkeypatch):
    policy = act(load(tiny_folder, frozen_weights=how, lora=LORA))
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    check_adapters(policy)
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())
    monkeypatch.setattr("rlvr.policy.adapters.added", lambda adapter: 0.0)
    with pytest.raises(ValueError, match="cannot be merged"):
        check_adapters(policy)


def test_a_tied_target_is_found_in_bfloat16_too(tiny_folder):
    targets = LoraSettings(rank=4, target_modules=("embed_tokens", "q_proj"))
    with pytest.raises(ValueError, match="leave out embed_tokens"):
        load(tiny_folder, frozen_weights="bfloat16", lora=targets)


def test_trained_weights_are_bfloat16_and_norms_are_not(tiny_folder):
    policy = load(tiny_folder, weights="bfloat16")
    lm = policy.causal_lm
    assert lm.lm_head.weight is lm.model.embed_tokens.weight is policy.head.weight
    assert lm.lm_head.weight.dtype == torch.bfloat16
    assert lm.model.norm.weight.dtype == torch.float32
    assert policy.compute_dtype == torch.float32
    expected = learner_logprobs(whole(load(tiny_folder, weights="bfloat16")), SEQUENCE)
    assert learner_logprobs(policy, SEQUENCE) == pytest.approx(expected, abs=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("settings", [{"weights": "bfloat16"}, {"frozen_weights": "int8"}])
def test_the_file_that_was_rounded_is_let_go(tiny_folder, tmp_path, settings):
    lora = {"lora": LORA} if "frozen_weights" in settings else {}
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))

    def is_mapped():
        return str(folder / "model.safetensors") in Path("/proc/self/maps").read_text()

    policy = load(folder, **settings, **lora)
    assert not is_mapped()
    assert torch.isfinite(torch.tensor(learner_logprobs(policy, SEQUENCE))).all()
    exact = load(folder, **lora)
    assert is_mapped(), "the map tells nothing"
    del exact


def test_gradients_of_bfloat16_weights_are_rounded_once(tiny_folder):
    found = gradients(load(tiny_folder, weights="bfloat16"))
    for name, gradient in gradients(whole(load(tiny_folder, weights="bfloat16"))).items():
        largest = float(gradient.abs().max())
        # A tied matrix adds two gradients, each of which was rounded.
        share = 2**-7 if "embed_tokens" in name else 2**-8
        size = largest if "embed_tokens" in name else gradient.abs()
        assert bool(((found[name].float() - gradient).abs() <= share * size + 1e-5 * largest).all())


def test_the_gradient_of_a_token_that_occurs_often_is_added_up_in_float32():
    embedding = nn.Embedding(3, 4)
    embedding.__class__ = HeldEmbedding
    embedding.weight.data = embedding.weight.data.bfloat16()
    ids = torch.tensor([1] * 2000 + [2])
    weights = torch.rand(2001, 4, generator=torch.Generator().manual_seed(0))
    (embedding(ids) * weights).sum().backward()
    due = weights[:2000].double().sum(0)
    assert embedding.weight.grad[0].abs().max() == 0
    assert bool(((embedding.weight.grad[1].double() - due).abs() <= due * 2**-8).all())


def test_copies_that_are_not_kept_change_no_bit(published):
    """As under ZeRO 3, where the copies of all weights would be whole on every GPU."""
    found = []
    for keeps in (True, False):
        policy = load(published, precision="bfloat16", gradient_checkpointing=True)
        policy.keeps_copies = keeps
        seen = []
        policy.causal_lm.model.norm.register_forward_hook(
            lambda *_, seen=seen: seen.append(torch.is_autocast_cache_enabled())
        )
        found.append(gradients(policy))
        assert seen[0] is keeps
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_deepspeed_gets_float32_back_where_nothing_was_rounded(published):
    policy = load(published, precision="bfloat16", lora=LORA)
    before = learner_logprobs(policy, SEQUENCE)
    hold_in_float32(policy)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert not any(isinstance(m, HeldLinear | HeldEmbedding) for m in policy.modules())
    assert learner_logprobs(policy, SEQUENCE) == before
    with pytest.raises(ValueError, match="launch without DeepSpeed"):
        hold_in_float32(load(published, frozen_weights="int8", lora=LORA))


def test_a_missing_package_is_said_in_one_line(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.functional", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'rlvr\[quantized\]'"):
        load(tiny_folder, frozen_weights="nf4", lora=LORA)


def test_what_cannot_be_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="set frozen_weights for the base"):
        ModelSettings(path="x", weights="bfloat16", lora=LORA)
    model = load(tiny_folder).causal_lm
    settings = ModelSettings(path=str(tiny_folder), weights="bfloat16")
    with pytest.raises(ValueError, match="model in memory; give the path"):
        load_policy(settings, model=model)
