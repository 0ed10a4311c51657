"""Seconds and memory of the learner's update on batches of forced lengths."""

import statistics
from dataclasses import dataclass

import psutil

from rlvr.bench.ceilings import Ceilings
from rlvr.bench.workloads import completion_lengths, made_up_batch
from rlvr.learner import Learner, LearnerSettings
from rlvr.objective import Clip, Objective, TokenMean
from rlvr.policy import Policy


@dataclass(frozen=True)
class Size:
    """How much is generated and trained on in a step."""

    prompts: int = 2
    samples: int = 8
    prompt_tokens: int = 32
    tokens: int = 64

    @property
    def completions(self) -> int:
        """Completions of a step."""
        return self.prompts * self.samples


def time_updates(
    policy: Policy, workloads: list[str], size: Size, repeats: int, ceilings: Ceilings
) -> list[dict[str, float | str]]:
    """Median update of each workload; a row each.

    ``share_of_matmul`` is 6 x parameters x real tokens (prompts counted once a completion) over
    what matrix products reach: above 1 is possible, since a prompt is run once for its group.
    """
    learner = Learner(policy, Objective(Clip(), (), TokenMean()), LearnerSettings(lr=1e-9))
    parameters = sum(weight.numel() for weight in policy.model.parameters())
    vocabulary = policy.causal_lm.get_input_embeddings().num_embeddings
    rows: list[dict[str, float | str]] = []
    for workload in workloads:
        lengths = completion_lengths(workload, size.completions, size.tokens)
        batch = made_up_batch(
            lengths,
            prompt_tokens=size.prompt_tokens,
            group_size=size.samples,
            vocabulary=vocabulary,
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
