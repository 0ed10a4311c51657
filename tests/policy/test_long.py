"""Long sequences in chunks, and values, for models that are not attention over keys alone."""

import pytest
import torch

from rlvr.policy.batching import padded_inputs
from rlvr.policy.loading import load_policy
from rlvr.policy.long import chunked_logprobs
from rlvr.policy.settings import ModelSettings
from rlvr.policy.value_head import load_critic
from tests.families import write_family


@pytest.mark.parametrize("family", ["llama", "mamba2", "rwkv", "qwen3_5", "bloom"])
def test_chunks_have_the_log_probabilities_of_one_pass(family, tmp_path):
    write_family(family, tmp_path)
    policy = load_policy(ModelSettings(path=str(tmp_path), attention="eager")).eval()
    prompt, completion = tuple(range(3, 9)), tuple(range(9, 60))
    inputs = padded_inputs([prompt], [completion], (0,))
    with torch.no_grad():
        whole = policy(inputs).logprobs_N
    assert torch.allclose(chunked_logprobs(policy, prompt, completion, 10), whole, atol=1e-4)
    values = load_critic(ModelSettings(path=str(tmp_path), attention="eager"))(inputs)
    assert values.shape == whole.shape
