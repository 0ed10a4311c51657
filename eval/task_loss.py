r"""Bits that the model needs for the reference answer after the prompt: a cheap dense signal.

This is the teacher-forced negative log-likelihood of "\boxed{answer}" given the prompt, in bits per
UTF-8 byte of that text, the only form that is comparable across tokenizers (the task loss of arXiv
2508.18672). It needs one forward pass and no sampling, and it changes while accuracy is still zero.
It does not show that the model would solve the problem, because no reasoning precedes the answer.

Prompt and answer are encoded separately, so that no token spans both.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from eval.evaluation_folder import Row
from eval.plan import EvaluationPlan
from rlvr.policy.batching import padded_inputs, plan_padded
from rlvr.policy.model import Policy


@torch.no_grad()
def answer_bits(
    policy: Policy, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], budget: int
) -> list[float]:
    """Bits of each answer given its prompt.

    Args:
        policy: The model.
        prompts: Token ids.
        answers: Token ids, at least one per answer.
        budget: Maximum tokens in a micro-batch, including padding.
    """
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    found = [0.0] * len(prompts)
    for rows in plan_padded(lengths, budget):
        inputs = padded_inputs(prompts, answers, rows).to(policy.device)
        logprobs_N = policy(inputs).logprobs_N.double()
        sums_B = torch.zeros(len(rows), dtype=torch.float64, device=policy.device)
        sums_B.index_add_(0, inputs.row_N, logprobs_N)
        for slot, row in enumerate(rows):
            found[row] = -float(sums_B[slot]) / math.log(2)
    return found


def task_losses(
    plan: EvaluationPlan,
    policy: Policy,
    tokenizer: Any,  # noqa: ANN401
    budget: int = 4096,
) -> list[Row]:
    """One row per problem: bits, bytes and tokens of the boxed reference answer."""
    rows = []
    for benchmark in plan.benchmarks:
        texts = [f"\\boxed{{{problem.answer}}}" for problem in benchmark.problems]
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        bits = answer_bits(policy, benchmark.prompts, ids, budget)
        rows += [
            {
                "benchmark": benchmark.name,
                "problem": problem.id,
                "bits": round(value, 4),
                "bytes": len(text.encode()),
                "tokens": len(tokens),
            }
            for problem, value, text, tokens in zip(
                benchmark.problems, bits, texts, ids, strict=True
            )
        ]
    return rows
