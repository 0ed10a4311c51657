"""Chunked statistics against the plain float64 computation, values and gradients."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.objective.proxy import Proxy, ProxyStatistic
from rlvr.objective.token_statistic import TokenStatistic
from rlvr.policy.token_stats import token_stats


def plain(hidden, weight, bias, targets, temperature):
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    logp = torch.log_softmax(logits, -1)
    return logp, logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    tokens=st.integers(1, 40),
    vocabulary=st.integers(2, 50),
    chunk=st.integers(1, 41),
    temperature=st.floats(0.2, 3.0),
    with_bias=st.booleans(),
    with_entropy=st.booleans(),
)
def test_chunked_equals_plain(
    seed, tokens, vocabulary, chunk, temperature, with_bias, with_entropy
):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    hidden, weight = random(tokens, 7), random(vocabulary, 7)
    bias = random(vocabulary) if with_bias else None
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    upstream_l = random(tokens).detach()
    upstream_h = random(tokens).detach()
    stats = token_stats(
        hidden,
        weight,
        targets,
        temperature=temperature,
        bias_V=bias,
        entropy=with_entropy,
        chunk_tokens=chunk,
    )
    _, logprobs, entropy = plain(hidden, weight, bias, targets, temperature)
    assert torch.allclose(stats.logprobs_N, logprobs, atol=1e-12)
    loss, expected = (upstream_l * stats.logprobs_N).sum(), (upstream_l * logprobs).sum()
    if with_entropy:
        assert torch.allclose(stats.entropy_N, entropy, atol=1e-12)
        loss = loss + (upstream_h * stats.entropy_N).sum()
        expected = expected + (upstream_h * entropy).sum()
    else:
        assert stats.entropy_N is None
    inputs = [hidden, weight] + ([bias] if with_bias else [])
    for ours, oracle in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        assert torch.allclose(ours, oracle, atol=1e-10)


@pytest.mark.parametrize("kept", [0, 50, 10_000])
def test_chunks_kept_for_the_backward_pass_change_nothing(monkeypatch, kept):
    """None, the first five of eight, all of them; in a second backward pass, too."""
    monkeypatch.setattr(sys.modules["rlvr.policy.token_stats"], "KEPT_LOGITS", kept)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 7, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(9, 7, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 9, (8,), generator=generator)
    stats = token_stats(hidden, weight, targets, entropy=True, chunk_tokens=1)
    _, logprobs, entropy = plain(hidden, weight, None, targets, 1.0)
    loss, expected = (stats.logprobs_N + stats.entropy_N).sum(), (logprobs + entropy).sum()
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for _ in range(2):
        found = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
        for ours, oracle in zip(found, wanted, strict=True):
            assert torch.allclose(ours, oracle, atol=1e-12)


@pytest.mark.parametrize("threshold", ["min_p", "fixed"])
def test_proxy_mass_is_that_of_the_kept_tokens(threshold):
    torch.manual_seed(0)
    hidden, weight = torch.randn(30, 5, dtype=torch.float64), torch.randn(11, 5).double()
    targets = torch.randint(0, 11, (30,))
    proxy = Proxy(threshold=threshold, kappa=0.05)
    stats = token_stats(hidden, weight, targets, statistics=[ProxyStatistic(proxy)], chunk_tokens=4)
    logp, _, _ = plain(hidden, weight, None, targets, 1.0)
    p = logp.exp()
    tau = 0.05 * p.max(-1, keepdim=True).values if threshold == "min_p" else 0.05
    kept = p > tau
    assert torch.allclose(stats.columns["log_kept_mass"], (p * kept).sum(-1).log(), atol=1e-12)
    kept_N = stats.columns["kept"]
    assert torch.equal(kept_N, kept.gather(-1, targets[:, None])[:, 0])
    assert 0 < int(kept_N.sum()) < 30, "the case must have both kinds"


def test_gradient_of_the_entropy_alone():
    torch.manual_seed(1)
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, dtype=torch.float64)
    targets = torch.zeros(9, dtype=torch.long)
    stats = token_stats(hidden, weight, targets, entropy=True, chunk_tokens=2)
    (ours,) = torch.autograd.grad(stats.entropy_N.sum(), hidden)
    _, _, entropy = plain(hidden, weight, None, targets, 1.0)
    (oracle,) = torch.autograd.grad(entropy.sum(), hidden)
    assert torch.allclose(ours, oracle, atol=1e-12)


def test_bfloat16_autocast_multiplies_in_bfloat16_and_adds_up_in_float32():
    torch.manual_seed(2)
    hidden = torch.randn(64, 32, requires_grad=True)
    weight = torch.randn(100, 32, requires_grad=True)
    targets = torch.randint(0, 100, (64,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stats = token_stats(hidden, weight, targets, chunk_tokens=16)
        logits = torch.nn.functional.linear(hidden, weight)
    assert stats.logprobs_N.dtype == torch.float32
    oracle = torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]
    assert torch.allclose(stats.logprobs_N, oracle, atol=1e-5)
    stats.logprobs_N.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature 0"):
        token_stats(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1).long(), temperature=0)


class Collision(TokenStatistic):
    """The probability that two draws agree, sum_v p_v^2, and the largest log-probability."""

    differentiable = ("collision",)

    def read(self, logp_CV, logprobs_C, start):
        collision_C = (2 * logp_CV).exp().sum(-1)
        return {"collision": collision_C, "largest": logp_CV.max(-1).values}

    def gradient(self, name, upstream_C, logp_CV, start):
        p_CV = logp_CV.exp()
        gradient_CV = 2 * p_CV * (p_CV - p_CV.square().sum(-1, keepdim=True))
        index_R = torch.arange(len(upstream_C))
        return index_R, upstream_C[:, None] * gradient_CV


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_statistic_of_ones_own_rides_along_with_its_gradient(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    targets, upstream = torch.randint(0, 6, (9,)), torch.randn(2, 9, dtype=torch.float64)
    others = [Collision(), ProxyStatistic(Proxy(kappa=0.3))]
    stats = token_stats(
        hidden, weight, targets, temperature=0.7, statistics=others, chunk_tokens=chunk
    )
    logp = (hidden @ weight.T / 0.7).log_softmax(-1)
    collision = logp.exp().square().sum(-1)
    assert torch.allclose(stats.columns["collision"], collision)
    assert torch.allclose(stats.columns["largest"], logp.max(-1).values)
    assert not stats.columns["largest"].requires_grad
    assert set(stats.columns) == {
        "collision", "largest", "log_kept_mass", "kept", "proxy_logprobs"
    }  # fmt: skip
    taken = logp.gather(-1, targets[:, None])[:, 0]
    ours = (upstream[0] * stats.columns["collision"] + upstream[1] * stats.logprobs_N).sum()
    plain = (upstream[0] * collision + upstream[1] * taken).sum()
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight)),
        torch.autograd.grad(plain, (hidden, weight)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_no_tokens_have_no_statistics_but_their_columns():
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(6, 4)
    stats = token_stats(
        hidden, weight, torch.zeros(0).long(), entropy=True, statistics=[Collision()]
    )
    assert stats.columns["collision"].shape == (0,)
    (stats.logprobs_N.sum() + stats.columns["collision"].sum()).backward()
    assert hidden.grad.shape == (0, 4)
