"""What the learner's tests run in several processes: ``python jobs.py CASE MODEL OUT``.

Each case is a function that every rank runs; the first rank writes what it found to OUT.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from rlvr.learner import Learner, LearnerSettings, join
from rlvr.objective import KL, Clip, Objective, TokenMean
from rlvr.policy import ModelSettings, load_policy
from rlvr.ranks import Ranks
from tests.learner.batches import rollouts

STEPS = 20
SETTINGS = {
    "lr": 1e-3,
    "tokens_per_micro_batch": 40,
    "updates_per_rollout": 2,
    "max_grad_norm": 0.5,
    "weight_decay": 0.1,
    "layout": "padded",
}


class Alone(Ranks):
    """This process as if there were no other."""

    def __init__(self):
        self.rank, self.count, self.local_rank, self._group = 0, 1, 0, None


def build(model, launch, **settings):
    torch.manual_seed(0)
    policy = load_policy(ModelSettings(path=model))
    objective = Objective(Clip(), (KL(coefficient=0.05),), TokenMean())
    reference = load_policy(ModelSettings(path=model)).requires_grad_(False).eval()
    options = LearnerSettings(**{**SETTINGS, **settings})
    return Learner(policy, objective, options, reference=reference, launch=launch)


def weights(learner):
    """All weights, whole, on every rank."""
    found = {}
    for name, parameter in learner.policy.named_parameters():
        with learner.policy.gathered([parameter]):
            found[name] = parameter.detach().cpu().clone()
    return found


def train(model, out, launch):
    """Twenty rollouts of two updates each; losses, norms and final weights."""
    learner = build(model, launch)
    logged = [learner.update(batch) for batch in rollouts(STEPS)]
    names = ("policy/loss", "learner/grad_norm", "policy/entropy", "policy/kl_reference")
    columns = {name: torch.tensor([row[name] for row in logged]) for name in names}
    if launch.ranks.first:
        save_file({**weights(learner), **{f"log:{k}": v for k, v in columns.items()}}, out)
    else:
        weights(learner)


if __name__ == "__main__":
    job = join(timeout_s=60)
    globals()[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), job)
