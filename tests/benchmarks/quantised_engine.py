"""How far an engine with quantised weights is from its learner, emulated on a CPU.

    python -m tests.benchmarks.quantised_engine MODEL

An engine whose linear layers hold rounded weights samples from another policy, and the proof of a
sync has to allow for it (``rollout.engine.sync_tolerance``) or to refuse it. Here the weights of
all linear layers but the output head are rounded as such engines round them, to the nearest, and
everything else is float32. Prints the mean and the largest |difference| in nats on the proof's
sequence, and the mean after an update whose arrival the proof should tell: all weights times
1 + 0.01 N(0, 1), of which the engine has taken nothing.
"""

import sys
from collections.abc import Callable

import torch
from torch import nn

from rlvr.policy.loading import load_policy
from rlvr.policy.model import Policy
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.weight_sync import learner_logprobs, measure_difference, proof_sequence

UPDATE = 0.01


def integers(bits: int, group: int | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Symmetric integers, with a scale for each row or for each ``group`` numbers of one."""

    def rounded(weight_MN: torch.Tensor) -> torch.Tensor:
        size = group if group and weight_MN.shape[1] % group == 0 else weight_MN.shape[1]
        parts = weight_MN.reshape(weight_MN.shape[0], -1, size)
        scale = parts.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        return ((parts / scale).round() * scale).view_as(weight_MN)

    return rounded


def float8(weight_MN: torch.Tensor) -> torch.Tensor:
    """E4M3 with one scale for a tensor."""
    scale = weight_MN.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    return (weight_MN / scale).to(torch.float8_e4m3fn).float() * scale


KINDS = {"int8, by row": integers(8), "float8": float8, "int4, groups of 32": integers(4, 32)}


def linear_layers(policy: Policy) -> list[nn.Linear]:
    """Those that engines quantise."""
    head = policy.causal_lm.get_output_embeddings()
    found = policy.causal_lm.modules()
    return [layer for layer in found if isinstance(layer, nn.Linear) and layer is not head]


def main() -> None:
    """See the module."""
    policy = load_policy(ModelSettings(path=sys.argv[1]))
    sequence = proof_sequence(policy.causal_lm.config.vocab_size, policy.context_length)
    exact = learner_logprobs(policy, sequence)
    whole = {name: p.detach().clone() for name, p in policy.causal_lm.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.causal_lm.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + UPDATE * noise)
    moved = learner_logprobs(policy, sequence)
    for name, rounded in KINDS.items():
        with torch.no_grad():
            for key, parameter in policy.causal_lm.named_parameters():
                parameter.copy_(whole[key])
            for layer in linear_layers(policy):
                layer.weight.copy_(rounded(layer.weight))
        found = learner_logprobs(policy, sequence)
        same, stale = measure_difference(found, exact), measure_difference(found, moved)
        print(f"{name}: mean {same.mean:.3g}, largest {same.largest:.3g}, stale {stale.mean:.3g}")


if __name__ == "__main__":
    main()
