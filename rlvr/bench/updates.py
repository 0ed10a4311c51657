"""Seconds and memory of the learner's update on batches with fixed lengths."""

import statistics

import psutil

from rlvr.bench.ceilings import Ceilings
from rlvr.bench.size import Size
from rlvr.bench.workloads import completion_lengths, made_up_batch
from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.policy.model import Policy
from rlvr.policy.vocabulary import vocab_size


def time_updates(
    policy: Policy, workloads: list[str], size: Size, repeats: int, ceilings: Ceilings
) -> list[dict[str, float | str]]:
    """The median update of each workload, one row each.

    ``share_of_matmul`` is 6 x parameters x real tokens (prompts counted once per completion)
    divided by the rate of matrix products. It can exceed 1, because a prompt is run once per group.
    """
    learner = Learner(policy, Objective(Clip(), (), TokenMean()), LearnerSettings(lr=1e-9))
    parameters = sum(weight.numel() for weight in policy.model.parameters())
    vocabulary = vocab_size(policy)
    rows: list[dict[str, float | str]] = []
    for workload in workloads:
        lengths = completion_lengths(workload, size.completions, size.tokens)
        batch = made_up_batch(
            lengths,
            prompt_tokens=size.prompt_tokens,
            group_size=size.samples,
            vocab_size=vocabulary,
        )
        found = [learner.update(batch) for _ in range(repeats + 1)][1:]
        seconds = [metrics["time/update"] for metrics in found]
        middle = statistics.median(seconds)
        tokens = sum(lengths) + size.prompt_tokens * size.completions
        needed = 6 * parameters * tokens / ceilings.matmul_flops
        rows.append(
            {
                "workload": workload,
                "completion_tokens": float(sum(lengths)),
                "padding_of_a_padded_batch": 1 - sum(lengths) / (max(lengths) * len(lengths)),
                "pad_fraction": found[-1]["learner/pad_fraction"],
                "seconds": middle,
                "seconds_least": min(seconds),
                "seconds_most": max(seconds),
                "completion_tokens_per_second": sum(lengths) / middle,
                "share_of_matmul": needed / middle,
                "rss_gib": psutil.Process().memory_info().rss / 2**30,
            }
        )
    return rows
