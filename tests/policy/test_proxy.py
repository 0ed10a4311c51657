"""The proxy distribution and the divergence from it, against plain float64 arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.objective.loss_inputs import LossInputs
from rlvr.objective.policy_losses.ratio import Ratio
from rlvr.objective.proxy import Proxy, ProxyDivergence, ProxyStatistic
from rlvr.objective.regularisers.lp_reg import LpReg
from rlvr.objective.token_statistic import SparseRows
from rlvr.policy.token_stats import token_stats

TOKENS, WIDTH, WORDS = 24, 6, 13


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def head(seed=0, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(WORDS, WIDTH, generator=generator, dtype=torch.float64) * scale
    targets = torch.randint(0, WORDS, (TOKENS,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def log_probabilities(hidden, weight, temperature=1.0):
    return (hidden @ weight.T / temperature).log_softmax(-1)


def proxy_of(logp, proxy):
    """The definition: [N, V] probabilities, exactly 0 on what is dropped."""
    p = logp.exp()
    largest = p.max(-1, keepdim=True).values
    tau = proxy.kappa * (largest if proxy.threshold == "min_p" else torch.ones_like(largest))
    kept = p * (p > tau)
    return kept / kept.sum(-1, keepdim=True)


FILTERS = [Proxy(kappa=0.1), Proxy(kappa=0.05), Proxy(threshold="fixed", kappa=0.03)]


def stats_of(logits, proxy, **options):
    """Statistics of every word of a distribution given by its logits, through an identity head."""
    logits = torch.as_tensor(logits, dtype=torch.float64)
    words = logits.shape[-1]
    return token_stats(
        logits.expand(words, words),
        torch.eye(words, dtype=torch.float64),
        torch.arange(words),
        statistics=[ProxyStatistic(proxy, **options)],
    )


def distribution(logits, proxy):
    """The proxy as the statistics describe it: p / Z where kept, 0 elsewhere."""
    stats = stats_of(logits, proxy)
    return (stats.logprobs_N - stats.columns["log_kept_mass"]).exp() * stats.columns["kept"]


logit_lists = st.lists(st.floats(-4, 4), min_size=2, max_size=9)
some_filter = st.builds(Proxy, kappa=st.floats(0.01, 0.9))


@given(logits=logit_lists, proxy=some_filter)
def test_it_is_a_distribution_that_scales_what_it_keeps_and_zeroes_the_rest(logits, proxy):
    q = distribution(logits, proxy)
    p = torch.tensor(logits, dtype=torch.float64).softmax(-1)
    assert q.sum().item() == pytest.approx(1)
    ratios = (q / p)[q > 0]
    assert torch.allclose(ratios, ratios[:1].expand_as(ratios))
    assert ratios[0] >= 1 - 1e-12
    assert q[p.argmax()] > 0
    assert bool((p[q > 0].min() >= p[q == 0].max()) if bool((q == 0).any()) else True)


@given(logits=logit_lists, proxy=some_filter, shift=st.floats(-9, 9))
def test_it_ignores_a_constant_and_follows_a_permutation_of_the_words(logits, proxy, shift):
    q = distribution(logits, proxy)
    assert torch.allclose(distribution([x + shift for x in logits], proxy), q, atol=1e-9)
    assert torch.allclose(distribution(logits[::-1], proxy), q.flip(0), atol=1e-12)


@given(logits=logit_lists, kappa=st.floats(0.01, 0.5))
def test_filtering_twice_is_filtering_once(logits, kappa):
    proxy = Proxy(kappa=kappa)
    q = distribution(logits, proxy)
    again = distribution(torch.where(q > 0, q.clamp_min(1e-300).log(), -1e4).tolist(), proxy)
    assert torch.allclose(again, q, atol=1e-9)


@given(logits=logit_lists, kappas=st.lists(st.floats(0.001, 0.99), min_size=2, max_size=5))
def test_a_stronger_filter_keeps_fewer_words_and_less_mass(logits, kappas):
    found = [stats_of(logits, Proxy(kappa=kappa)) for kappa in sorted(kappas)]
    counts = [int(stats.columns["kept"].sum()) for stats in found]
    masses = [float(stats.columns["log_kept_mass"][0]) for stats in found]
    assert counts == sorted(counts, reverse=True)
    assert masses == sorted(masses, reverse=True)


def test_the_limits_of_the_filter():
    logits = [2.0, 2.0, 1.0, -1.0]
    gentle, strict = stats_of(logits, Proxy(kappa=1e-9)), stats_of(logits, Proxy(kappa=1 - 1e-9))
    assert float(gentle.columns["log_kept_mass"][0]) == pytest.approx(0, abs=1e-12)
    assert bool(gentle.columns["kept"].all())
    assert strict.columns["kept"].tolist() == [True, True, False, False], (
        "ties with the largest stay"
    )


def test_a_word_exactly_at_the_threshold_is_dropped():
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    stats = stats_of(p.log(), Proxy(threshold="fixed", kappa=0.125))
    assert stats.columns["kept"].tolist() == [True, True, False, False]
    assert float(stats.columns["log_kept_mass"][0].exp()) == pytest.approx(0.75)


def test_a_fixed_threshold_above_everything_keeps_nothing_and_pulls_nowhere():
    hidden, weight, targets = head(scale=0.01)
    statistic = ProxyStatistic(Proxy(threshold="fixed", kappa=0.9), divergence=True)
    stats = token_stats(hidden, weight, targets, statistics=[statistic])
    assert not bool(stats.columns["kept"].any())
    assert stats.columns["proxy_kl"].tolist() == [0.0] * TOKENS
    for gradient in torch.autograd.grad(stats.columns["proxy_kl"].sum(), (hidden, weight)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("proxy", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 5, 24])
def test_the_divergence_has_the_plain_value_and_gradient(proxy, temperature, chunk):
    hidden, weight, targets = head()
    upstream = torch.randn(TOKENS, dtype=torch.float64) * (torch.arange(TOKENS) % 3 == 0)
    also = torch.randn(TOKENS, dtype=torch.float64)
    stats = token_stats(
        hidden,
        weight,
        targets,
        temperature=temperature,
        entropy=True,
        statistics=[ProxyStatistic(proxy, divergence=True)],
        chunk_tokens=chunk,
    )
    logp = log_probabilities(hidden, weight, temperature)
    q = proxy_of(logp.detach(), proxy)
    kl = torch.where(q > 0, q * (q.clamp_min(1e-300).log() - logp), 0.0).sum(-1)
    assert torch.allclose(stats.columns["proxy_kl"], kl, atol=1e-12)
    assert torch.allclose(stats.columns["proxy_kl"], -stats.columns["log_kept_mass"])
    assert bool((kl > 0.01).any())
    taken = logp.gather(-1, targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    plain = (upstream * kl + also * taken + 0.3 * entropy).sum()
    ours = (
        upstream * stats.columns["proxy_kl"] + also * stats.logprobs_N + 0.3 * stats.entropy_N
    ).sum()
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight)),
        torch.autograd.grad(plain, (hidden, weight)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-11)


def test_the_gradient_by_logits_is_the_policy_minus_the_proxy():
    logits = torch.randn(4, 9, dtype=torch.float64).requires_grad_()
    proxy = Proxy(kappa=0.2)
    stats = token_stats(
        logits,
        torch.eye(9, dtype=torch.float64),
        torch.zeros(4).long(),
        statistics=[ProxyStatistic(proxy, divergence=True)],
    )
    (gradient,) = torch.autograd.grad(stats.columns["proxy_kl"].sum(), logits)
    logp = logits.detach().log_softmax(-1)
    assert torch.allclose(gradient, logp.exp() - proxy_of(logp, proxy), atol=1e-12)
    assert torch.allclose(gradient.sum(-1), torch.zeros(4).double(), atol=1e-12)
    dropped = proxy_of(logp, proxy) == 0
    assert bool(dropped.any())
    assert bool((gradient[dropped] > 0).all()), "descent pushes noise down"
    assert bool((gradient[~dropped] <= 0).all()), "and lifts what is kept"


def test_the_proxy_is_a_constant():
    """Anchored to the old policy's proxy, a policy that has moved is pulled back; towards the proxy
    of itself it would not be. And no gradient reaches what describes the proxy."""
    hidden, weight, targets = head()
    kept = token_stats(
        hidden,
        weight,
        targets,
        statistics=[ProxyStatistic(FILTERS[0], keep_at_N=torch.ones(TOKENS, dtype=torch.bool))],
    )
    assert not kept.columns["log_kept_mass"].requires_grad
    assert not kept.sparse["proxy"].value_S.requires_grad
    moved = (hidden.detach() * 0.7).requires_grad_()
    gradients = []
    for statistic in (
        ProxyDivergence(kept.sparse["proxy"]),
        ProxyStatistic(FILTERS[0], divergence=True),
    ):
        stats = token_stats(moved, weight, targets, statistics=[statistic])
        gradients += torch.autograd.grad(stats.columns["proxy_kl"].sum(), moved)
    logp = log_probabilities(moved, weight).detach()
    for gradient, anchor in zip(gradients, (log_probabilities(hidden, weight), logp), strict=True):
        expected = (logp.exp() - proxy_of(anchor.detach(), FILTERS[0])) @ weight.detach()
        assert torch.allclose(gradient, expected, atol=1e-12)
    assert not torch.allclose(*gradients, atol=1e-2)


@pytest.mark.parametrize("chunk", [1, 5, 24])
@pytest.mark.parametrize("proxy", FILTERS, ids=str)
def test_distributions_that_were_kept_anchor_a_policy_that_has_moved(proxy, chunk):
    hidden, weight, targets = head()
    at = torch.arange(TOKENS) % 4 != 1
    old = token_stats(
        hidden,
        weight,
        targets,
        statistics=[ProxyStatistic(proxy, keep_at_N=at)],
        chunk_tokens=chunk,
    ).sparse["proxy"]
    q = proxy_of(log_probabilities(hidden, weight).detach(), proxy) * at[:, None]
    dense = torch.zeros(TOKENS, WORDS).double()
    dense[old.position_S, old.token_S] = old.value_S.exp()
    assert torch.allclose(dense, q, atol=1e-12)
    moved = (hidden.detach() + 0.3 * torch.randn(TOKENS, WIDTH).double()).requires_grad_()
    stats = token_stats(moved, weight, targets, statistics=[ProxyDivergence(old)], chunk_tokens=5)
    logp = log_probabilities(moved, weight)
    kl = torch.where(q > 0, q * (q.clamp_min(1e-300).log() - logp), 0.0).sum(-1)
    assert torch.allclose(stats.columns["proxy_kl"], kl, atol=1e-12)
    upstream = torch.randn(TOKENS, dtype=torch.float64) * (torch.arange(TOKENS) % 3 != 0)
    for a, b in zip(
        torch.autograd.grad((upstream * stats.columns["proxy_kl"]).sum(), (moved, weight)),
        torch.autograd.grad((upstream * kl).sum(), (moved, weight)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-11)


@settings(max_examples=25)
@given(bound=st.floats(-6, 0.1), chunk=st.integers(1, 25))
def test_looking_at_rare_tokens_alone_gives_the_same_there_and_nothing_elsewhere(bound, chunk):
    hidden, weight, targets = head()
    whole = token_stats(
        hidden, weight, targets, statistics=[ProxyStatistic(FILTERS[0], divergence=True)]
    )
    part = token_stats(
        hidden,
        weight,
        targets,
        statistics=[ProxyStatistic(FILTERS[0], below=bound, divergence=True)],
        chunk_tokens=chunk,
    )
    rare = whole.logprobs_N < bound
    assert torch.allclose(part.columns["log_kept_mass"], whole.columns["log_kept_mass"] * rare)
    assert torch.equal(part.columns["kept"], whole.columns["kept"] | ~rare)
    assert torch.allclose(part.columns["proxy_kl"], whole.columns["proxy_kl"] * rare)


def enumerated(kl, moved, proxy):
    """E over o ~ pi of the term's gradient by logits, and of its value, without the gates."""
    logits = torch.tensor([0.4, -0.2, 1.1, -1.5, 0.0], dtype=torch.float64)
    old = logits.log_softmax(-1)
    q = proxy_of(old[None], proxy)[0]
    log_mass = old[q > 0].logsumexp(0)
    logits = (logits + moved).requires_grad_()
    logp = logits.log_softmax(-1)
    shape = (5, 1)
    terms = LossInputs(
        logprobs_BT=logp[:, None],
        old_logprobs_BT=old[:, None],
        advantages_BT=torch.full(shape, -1.0, dtype=torch.float64),
        mask_BT=torch.ones(shape, dtype=torch.float64),
        columns={
            "log_kept_mass": log_mass.expand(shape),
            "proxy_logprobs": old[:, None] - log_mass,
            "kept": torch.ones(shape),  # every gate open: all words but those of q = 0 exist
        },
        prepared={"lp_reg": torch.ones(shape).double()},
    )
    term = LpReg(kl=kl, clamp=None)
    assert bool((q > 0).all()), "the identity needs the proxy's support to be all words"
    weights = logp.detach().exp()
    values = term(terms).loss_BT[:, 0]
    (sampled,) = torch.autograd.grad((weights * values).sum(), logits, retain_graph=True)
    forward = (q * (q.log() - logp)).sum()
    (full,) = torch.autograd.grad(forward, logits, retain_graph=True)
    reverse = (weights * (logp - q.log())).sum()
    found = ((weights * values).sum(), forward, reverse)
    return sampled, full, *(float(value.detach()) for value in found)


def test_without_gates_the_sampled_form_has_the_full_ones_expected_gradient():
    """And the value of the opposite direction, KL(pi || proxy)."""
    moved = torch.tensor([0.3, 0.1, -0.4, 0.2, 0.0], dtype=torch.float64)
    sampled, full, value, forward, reverse = enumerated("sampled", moved, Proxy(kappa=1e-6))
    assert torch.allclose(sampled, full, atol=1e-12)
    assert value == pytest.approx(reverse)
    assert value != pytest.approx(forward, rel=1e-3)


def pull_a_rare_token(kl, old_probability=0.02, advantage=-1.0, steps=60_000, rate=0.02):
    """pi(o)/pi_old(o) where repeated updates of a single bad token come to rest, by descent."""
    start = torch.tensor([math.log(old_probability), math.log(1 - old_probability)]).double()
    stats = token_stats(
        start[None],
        torch.eye(2).double(),
        torch.tensor([0]),
        statistics=[ProxyStatistic(Proxy(kappa=0.01), keep_at_N=torch.tensor([True]))],
    )
    logits = start.clone()
    for _ in range(steps):
        logits = logits.requires_grad_()
        now = token_stats(
            logits[None],
            torch.eye(2).double(),
            torch.tensor([0]),
            statistics=[ProxyDivergence(stats.sparse["proxy"])],
        )
        terms = LossInputs(
            now.logprobs_N[None],
            stats.logprobs_N.detach()[None],
            torch.full((1, 1), advantage).double(),
            torch.ones(1, 1).double(),
            columns={
                "log_kept_mass": stats.columns["log_kept_mass"][None],
                "proxy_logprobs": stats.columns["proxy_logprobs"][None],
                "kept": stats.columns["kept"][None].double(),
                "proxy_kl": now.columns["proxy_kl"][None],
            },
            prepared={"lp_reg": torch.zeros(1, 1).double()},
        )
        loss = Ratio(cap=10.0)(terms).loss_BT.sum() + LpReg(kl=kl)(terms).loss_BT.sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        if float(gradient.abs().max()) < 1e-9:
            break
        logits = (logits - rate * gradient).detach()
    return float(logits.log_softmax(-1)[0].exp() / old_probability)


def test_the_printed_equation_protects_a_rare_token_far_less_than_the_released_code():
    """A token of probability 0.02 and advantage -1: 0.02 of it is left, against 0.618."""
    sampled = pull_a_rare_token("sampled", steps=3000)
    full = pull_a_rare_token("full", steps=3000, rate=0.5)
    assert sampled == pytest.approx(0.618, abs=2e-3)
    x, A, old = full, 1.0, 0.02
    assert A * x * (1 - x * old) + x * old == pytest.approx(old, rel=1e-2)
    assert full == pytest.approx(0.02, abs=3e-3)


def test_alone_the_divergence_leads_to_the_proxy_and_an_entropy_bonus_away_from_it():
    start = torch.tensor([[1.0, 0.5, -0.5, -4.0, -5.0]], dtype=torch.float64)
    proxy, eye = Proxy(kappa=0.05), torch.eye(5).double()
    old = token_stats(
        start,
        eye,
        torch.tensor([0]),
        statistics=[ProxyStatistic(proxy, keep_at_N=torch.tensor([True]))],
    ).sparse["proxy"]
    noise = start.softmax(-1)[0, 3:].sum()
    logits = start.clone()
    for _ in range(1000):
        logits = logits.requires_grad_()
        stats = token_stats(logits, eye, torch.tensor([0]), statistics=[ProxyDivergence(old)])
        logits = (
            logits - 2.0 * torch.autograd.grad(stats.columns["proxy_kl"].sum(), logits)[0]
        ).detach()
    target = proxy_of(start.log_softmax(-1), proxy)
    assert torch.allclose(logits.softmax(-1), target, atol=2e-3)
    logits = start.clone().requires_grad_()
    stats = token_stats(logits, eye, torch.tensor([0]), entropy=True)
    stepped = logits + 0.5 * torch.autograd.grad(stats.entropy_N.sum(), logits)[0]
    assert stepped.softmax(-1)[0, 3:].sum() > noise, "the bonus lifts noise"


def test_rows_are_cut_by_position():
    rows = SparseRows(
        torch.tensor([0, 0, 3, 5, 5]), torch.arange(5), torch.zeros(5, dtype=torch.float64)
    )
    cut = rows.within(3, 5)
    assert (cut.position_S.tolist(), cut.token_S.tolist()) == ([0], [2])
    assert rows.within(1, 3).token_S.tolist() == []
