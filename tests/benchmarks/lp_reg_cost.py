"""What Lp-Reg costs over GRPO: seconds of an update on the same batch, arms interleaved.

    python -m tests.benchmarks.lp_reg_cost MODEL

MODEL is a folder of SmolLM2-135M-Instruct. Completions are random tokens with the model's own
log-probabilities; one thread. Processor time is what is compared: it does not see other processes.
"""

import argparse
import json
import random
import statistics
import time
from dataclasses import replace

import torch

from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.ratio import Ratio
from rlvr.objective.reducers import TokenMean
from rlvr.objective.regularisers.lp_reg import LpReg
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.types import Batch


def batch_of(groups: int, samples: int, tokens: int) -> Batch:
    """Groups of completions of random tokens, a third of them right."""
    generator = random.Random(0)
    count = groups * samples

    def words(length: int) -> tuple[int, ...]:
        return tuple(generator.randrange(100, 40_000) for _ in range(length))

    prompts = [words(32) for _ in range(groups)]
    index = torch.arange(count) // samples
    rewards = torch.tensor([float(row % 3 == 0) for row in range(count)])
    mask = torch.ones(count, tokens)
    return Batch(
        prompt_ids=tuple(prompts[row // samples] for row in range(count)),
        completion_ids=tuple(words(tokens) for _ in range(count)),
        group_index_B=index,
        rewards_B=rewards,
        advantages_BT=GroupAdvantage()(rewards, index)[:, None] * mask,
        mask_BT=mask,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    surrogate = Ratio(cap=10.0)
    arms = {
        "grpo": Objective(Clip(), (), TokenMean()),
        "lp_reg full": Objective(surrogate, (LpReg(kl="full"),), TokenMean()),
        "lp_reg sampled": Objective(surrogate, (LpReg(kl="sampled"),), TokenMean()),
    }
    settings = LearnerSettings(lr=1e-9, tokens_per_micro_batch=1024)
    learner = Learner(load_policy(ModelSettings(path=options.model)), arms["grpo"], settings)
    batch = batch_of(1, options.samples, options.tokens)
    batch = replace(batch, rollout_logprobs_BT=learner.logprobs(batch))
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(options.rounds + 1):
        for name, objective in arms.items():
            learner.objective = objective
            started = time.process_time()
            learner.update(batch)
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    base = statistics.median(seconds["grpo"])
    for name, found in seconds.items():
        ratios = [a / b for a, b in zip(found, seconds["grpo"], strict=True)]
        print(
            json.dumps(
                {
                    "arm": name,
                    "median_s": round(statistics.median(found), 3),
                    "median_over_grpo": round(statistics.median(found) / base, 4),
                    "median_of_ratios": round(statistics.median(ratios), 4),
                    "range_s": [round(min(found), 3), round(max(found), 3)],
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
