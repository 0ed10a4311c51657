"""Scoring many responses: the same numbers however they are batched and chunked."""

import copy

import pytest
import torch

from rlvr.policy.loading import load_policy
from rlvr.policy.responses import response_logprobs
from rlvr.policy.settings import ModelSettings
from rlvr.reward_models.engine_scores import ratios
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


def log_ratios(policy, reference, *ids, **options):
    return ratios(*(response_logprobs(model, *ids, **options) for model in (policy, reference)))


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


LONG = [([5, 6, 7], list(range(8, 60))), ([5] * 9, [7, 8, 9]), ([4], [6]), ([9, 8], [7] * 21)]


@pytest.mark.parametrize("positions", [1, 2, 7, 20, 54])
def test_a_long_response_scored_in_chunks_is_scored_as_a_whole(tiny_folder, positions):
    """In float32, the precision in which chunks are used; no pass is longer than a chunk."""
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    prompts, responses = zip(*LONG, strict=True)
    whole = response_logprobs(policy, prompts, responses)
    response_logprobs(policy, prompts, responses, tokens_per_micro_batch=positions)  # with a trial
    run, seen = policy.backbone, []

    def watched(**inputs):
        seen.append(inputs["input_ids"].numel())
        return run(**inputs)

    policy.backbone = watched
    chunked = response_logprobs(policy, prompts, responses, tokens_per_micro_batch=positions)
    assert max(seen) <= positions
    assert len(seen) > 53 // positions
    for ours, expected in zip(chunked, whole, strict=True):
        assert ours.shape == expected.shape
        assert torch.allclose(ours, expected, atol=1e-5)


def test_progress_counts_responses_to_the_end(exact_policy):
    batch, told = make_batch([1.0] * 3), []
    response_logprobs(
        exact_policy, batch.prompt_ids, batch.completion_ids, progress=lambda *at: told.append(at)
    )
    assert told[-1] == (3, 3)
