r"""Bits that the model needs for the reference answer behind the prompt: a cheap dense signal.

Teacher-forced negative log-likelihood of "\boxed{answer}" given the prompt, in bits, per UTF-8 byte
of that text: the only form that compares across tokenizers (the task loss of arXiv 2508.18672). One
forward pass and no sampling, and it moves where accuracy is still flat at zero. It does not say
that the model would solve the problem: no reasoning comes before the answer.

Prompt and answer are tokenized apart, so that no token straddles the seam.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from eval.files import Row
from eval.plan import Plan
from rlvr.policy import Policy, padded_inputs, plan_padded


@torch.no_grad()
def answer_bits(
    policy: Policy, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], budget: int
) -> list[float]:
    """Bits of each answer given its prompt.

    Args:
        policy: The model.
        prompts: Token ids.
        answers: Token ids, at least one each.
        budget: Tokens of a micro-batch, padding included.
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


def task_losses(plan: Plan, policy: Policy, tokenizer: Any, budget: int = 4096) -> list[Row]:  # noqa: ANN401
    """One row per problem: bits, bytes and tokens of the boxed reference answer."""
    rows = []
    for task in plan.tasks:
        texts = [f"\\boxed{{{problem.answer}}}" for problem in task.problems]
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        bits = answer_bits(policy, task.prompts, ids, budget)
        rows += [
            {
                "benchmark": task.name,
                "problem": problem.id,
                "bits": round(value, 4),
                "bytes": len(text.encode()),
                "tokens": len(tokens),
            }
            for problem, value, text, tokens in zip(task.problems, bits, texts, ids, strict=True)
        ]
    return rows
