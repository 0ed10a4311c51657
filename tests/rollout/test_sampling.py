"""Random numbers by position, and tokens drawn by them as the distribution says."""

import numpy as np
import pytest
import torch

from rlvr.rollout.sampling import Sampling, draw, sample_seed, uniform_stream
from rlvr.settings import load_settings


def test_streams_depend_on_each_part_of_their_position_and_nothing_else():
    base = (1, 2, "p", 3)
    assert sample_seed(*base) == sample_seed(*base)
    others = [(9, 2, "p", 3), (1, 9, "p", 3), (1, 2, "q", 3), (1, 2, "p", 9), (1, 23, "p", 3)]
    assert len({sample_seed(*item) for item in (base, *others)}) == 6
    np.random.seed(0)
    first = uniform_stream(5, 10)
    np.random.seed(1)
    assert (first[:4] == uniform_stream(5, 4)).all(), "a longer stream begins with the shorter"
    assert sample_seed(0, 1, "add-1-2", 0) == 13376059058699518630, "the same on every machine"


def frequencies(logits, sampling, count=200_000):
    uniforms = torch.from_numpy(np.random.default_rng(0).random(count))
    tokens, logprobs = draw(logits.expand(count, -1), uniforms, sampling)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / count, tokens, logprobs


LOGITS = torch.tensor([[2.0, -1.0, 0.5, float("-inf"), 1.0, -30.0]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_follow_the_tempered_distribution(temperature):
    share, tokens, logprobs = frequencies(LOGITS, Sampling(temperature=temperature))
    expected = torch.softmax(LOGITS[0] / temperature, -1)
    assert (share - expected).abs().max() < 0.005
    assert share[3] == 0
    assert torch.allclose(logprobs, expected.log()[tokens])


def test_top_k_and_top_p_cut_the_tail_but_not_the_reported_log_probability():
    full = torch.log_softmax(LOGITS[0], -1)
    share, tokens, logprobs = frequencies(LOGITS, Sampling(top_k=2))
    assert set(tokens.tolist()) == {0, 4}
    assert torch.allclose(logprobs, full[tokens])
    share, tokens, _ = frequencies(LOGITS, Sampling(top_p=0.8))
    assert set(tokens.tolist()) == {0, 4}, "0.58 alone is below 0.8, with 0.21 it is reached"
    assert share[0] == pytest.approx(
        float(full[0].exp() / (full[0].exp() + full[4].exp())), abs=5e-3
    )


def test_temperature_zero_takes_the_likeliest():
    tokens, logprobs = draw(LOGITS, torch.tensor([0.99]), Sampling(temperature=0.0))
    assert tokens.tolist() == [0]
    assert torch.allclose(logprobs, torch.log_softmax(LOGITS[0], -1)[:1])


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_unit_interval_draw_tokens_with_mass(uniform):
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    tokens, _ = draw(logits, torch.tensor([uniform], dtype=torch.float64), Sampling())
    assert tokens.item() in (1, 2)


def test_greedy_sampling_refuses_settings_that_would_do_nothing():
    with pytest.raises(ValueError, match="have no effect at temperature 0"):
        load_settings(Sampling, {"temperature": 0.0, "top_k": 5})
