r"""Seconds of an update with attention piece by piece, against the whole row behind its mask.

    OMP_NUM_THREADS=2 THP_MEM_ALLOC_ENABLE=1 python -m tests.benchmarks.attention SMOLLM2

One learner, random batches of forced lengths, the two ways in turns; medians after a first update
that is not counted.
"""

import argparse
import statistics

import rlvr.policy.tree_attention as tree_attention
from rlvr.bench.workloads import completion_lengths, made_up_batch
from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings

# Prompts, samples, prompt tokens, completion tokens, tokens of a micro-batch.
WORK = (
    (1, 8, 16, 48, 4096),
    (4, 8, 100, 24, 1024),
    (2, 8, 16, 96, 4096),
    (1, 8, 16, 128, 4096),
    (8, 8, 100, 24, 4096),
)


def main() -> None:
    """Measure and print a line for each amount of work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    policy = load_policy(ModelSettings(path=options.model))
    vocabulary = policy.causal_lm.get_input_embeddings().num_embeddings
    # A single piece is the row behind its mask.
    ways = {"mask": lambda blocks, mask_LL: [None], "pieces": tree_attention.pieces_of}
    print("prompts x samples, tokens   micro-batch    mask  pieces  ratio")
    for prompts, samples, prompt, tokens, budget in WORK:
        settings = LearnerSettings(lr=1e-9, tokens_per_micro_batch=budget)
        learner = Learner(policy, Objective(Clip(), (), TokenMean()), settings)
        batch = made_up_batch(
            completion_lengths("uniform", prompts * samples, tokens),
            prompt_tokens=prompt,
            group_size=samples,
            vocab_size=vocabulary,
        )
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds + 1):
            for way, found in seconds.items():
                tree_attention.pieces_of = ways[way]
                found.append(learner.update(batch)["time/update"])
        mask, pieces = (statistics.median(found[1:]) for found in seconds.values())
        print(
            f"{prompts} x {samples}, {prompt:3d} + {tokens:3d}            {budget:6d}  "
            f"{mask:6.2f}  {pieces:6.2f}  {mask / pieces:5.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
