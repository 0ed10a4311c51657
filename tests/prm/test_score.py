"""Scoring many responses: the same numbers however they are batched and chunked."""

import copy

import pytest
import torch

from rlvr.policy import LoraSettings, ModelSettings, load_policy
from rlvr.prm import log_ratios
from tests.learner.batches import make_batch


@pytest.fixture(scope="module")
def moved(exact_policy):
    """A reward model that is not its reference."""
    torch.manual_seed(0)
    policy = copy.deepcopy(exact_policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return policy


def plain(policy, prompt, response):
    """Log-probabilities by transformers' own logits, one sequence."""
    logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return rows[torch.arange(len(response)), list(response)].detach()


def test_log_ratios_are_those_of_the_full_logits_however_they_are_chunked(exact_policy, moved):
    batch = make_batch([1.0] * 6)
    arguments = (moved, exact_policy, batch.prompt_ids, batch.completion_ids)
    whole = log_ratios(*arguments)
    for row, (prompt, response) in enumerate(
        zip(batch.prompt_ids, batch.completion_ids, strict=True)
    ):
        expected = plain(moved, prompt, response) - plain(exact_policy, prompt, response)
        assert torch.allclose(whole[row], expected, atol=1e-10)
        assert len(whole[row]) == len(response)
    small = log_ratios(*arguments, tokens_per_micro_batch=1, chunk_tokens=1)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(whole, small, strict=True))
    assert max(float(values.abs().max()) for values in whole) > 0.01


def test_a_model_against_itself_has_no_reward(exact_policy):
    batch = make_batch([1.0] * 3)
    found = log_ratios(exact_policy, exact_policy, batch.prompt_ids, batch.completion_ids)
    assert not any(values.any() for values in found)


def test_adapters_hold_their_own_reference(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2)))
    base = load_policy(ModelSettings(path=str(tiny_folder)))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    batch, told = make_batch([1.0] * 3), []
    own = log_ratios(
        policy, None, batch.prompt_ids, batch.completion_ids, progress=lambda *at: told.append(at)
    )
    other = log_ratios(policy, base, batch.prompt_ids, batch.completion_ids)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(own, other, strict=True))
    assert own[0].abs().max() > 1e-3
    assert told[-1] == (6, 6)
