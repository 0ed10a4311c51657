"""How far attention in TF32 moves log-probabilities, emulated on a CPU.

    python -m tests.benchmarks.tf32_attention MODEL

On a GPU vLLM's kernels for float32 attention multiply in TF32: factors are rounded to 10 bits of a
fraction, sums are float32. The proof of a sync has to allow for it (docs/rollout.md). Here the
factors of both products of the attention are rounded in this way, or to bfloat16's 7 bits, and
everything else is float32. Prints the mean and the largest |difference| in nats on the proof's
sequence.
"""

import sys

import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.weight_sync import learner_logprobs, measure_difference, proof_sequence

NAME = "coarse"


def rounded(values: torch.Tensor, bits: int) -> torch.Tensor:
    """float32 rounded to ``bits`` bits of a fraction, to the nearest."""
    dropped = 23 - bits
    whole = values.contiguous().view(torch.int32) + (1 << (dropped - 1))
    return (whole >> dropped << dropped).view(torch.float32)


def register(bits: int) -> str:
    """Have transformers know an attention with rounded factors; its name."""

    def attention(module, query, key, value, mask, scaling=None, **_):  # type: ignore[no-untyped-def]
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores = rounded(query, bits) @ rounded(key, bits).transpose(2, 3) * scaling
        weights = (scores + mask[..., : key.shape[2]]).softmax(-1)
        found = rounded(weights, bits) @ rounded(value, bits)
        return found.transpose(1, 2).contiguous(), weights

    name = f"{NAME}_{bits}"
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    return name


def difference(path: str, bits: int) -> tuple[float, float]:
    """Mean and largest |difference| in nats between rounded and float32 attention."""
    policy = load_policy(ModelSettings(path=path))
    sequence = proof_sequence(policy.causal_lm.config.vocab_size, policy.context_length)
    exact = learner_logprobs(policy, sequence)
    policy.causal_lm.set_attn_implementation(register(bits))
    found = measure_difference(learner_logprobs(policy, sequence), exact)
    return found.mean, found.largest


if __name__ == "__main__":
    for name, bits in {"float32": 23 - 1, "TF32": 10, "bfloat16": 7}.items():
        mean, largest = difference(sys.argv[1], bits)
        print(f"{name} ({bits} bits): mean {mean:.2g}, largest {largest:.2g}")
