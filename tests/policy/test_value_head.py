"""The critic: values at the right positions, alone or packed, zero at the start."""

import copy

import pytest
import torch

from rlvr.policy.batching import packed_inputs, padded_inputs
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.value_head import Critic, critic_writer, load_critic

PROMPTS = [[5, 6, 7], [5, 6, 7], [9, 8]]
COMPLETIONS = [[10, 11], [12], [13, 14, 15, 16]]


@pytest.fixture
def critic(exact_policy):
    critic = Critic(copy.deepcopy(exact_policy))
    torch.manual_seed(0)
    torch.nn.init.normal_(critic.head.weight)
    return critic


def test_a_value_is_that_of_the_state_before_the_token(critic):
    inputs = padded_inputs(PROMPTS, COMPLETIONS, (0, 1, 2))
    values = inputs.scatter(critic(inputs), 4)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        for t in range(len(completion)):
            state = torch.tensor([[*prompt, *completion[:t]]])
            hidden = critic.backbone(input_ids=state).last_hidden_state[0, -1]
            assert torch.allclose(values[row, t], critic.head(hidden)[0], atol=1e-12)
        assert bool((values[row, len(completion) :] == 0).all())


def test_packed_rows_have_the_same_values_and_gradients(critic):
    results = []
    for inputs in (
        padded_inputs(PROMPTS, COMPLETIONS, (0, 1, 2)),
        packed_inputs(PROMPTS, COMPLETIONS, (0, 1, 2)),
    ):
        values = inputs.scatter(critic(inputs), 4)
        loss = (values - 1).square().sum()
        results.append((values, *torch.autograd.grad(loss, list(critic.parameters()))))
    for padded, packed in zip(*results, strict=True):
        assert torch.allclose(padded, packed, atol=1e-10)


def test_it_starts_at_zero_and_is_saved_whole(tiny_folder, tmp_path):
    settings = ModelSettings(path=str(tiny_folder))
    critic = load_critic(settings)
    inputs = padded_inputs(PROMPTS, COMPLETIONS, (0, 1, 2))
    assert critic(inputs).tolist() == [0.0] * 7
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.1)
    critic_writer(critic, load_policy(settings))(tmp_path)
    again = load_critic(settings, saved=tmp_path)
    assert torch.equal(again(inputs), critic(inputs))
    assert critic(inputs).abs().max() > 0
