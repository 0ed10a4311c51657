"""Cases of jobs.py in exact mode: ``python exact_jobs.py CASES MODEL FOLDER LAYOUT TOKENS``.

What they find is to be the same bits for every layout, budget and launch. ``mixture``, ``halfway``
and ``onwards`` are cases of their own here; the checkpoint of ``halfway`` is for another launch to
go on from.
"""

import faulthandler
import os
import sys
from pathlib import Path

import torch

from rlvr.learner.checkpoint import checkpoint_path
from rlvr.learner.launch import Launch, join
from rlvr.learner.learner import Learner
from rlvr.learner.methods.router import RouterHook, RouterSettings
from rlvr.learner.settings import LearnerSettings
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from tests.learner import jobs
from tests.learner.batches import rollouts

CASES = ("train", "poisoned", "ppo", "lp_reg_full", "prime", "outcome", "adapters")


def halfway(model, folder, launch):
    """Three rollouts, and a checkpoint."""
    learner = jobs.build(model, launch)
    for batch in list(rollouts(6))[:3]:
        learner.update(batch)
    jobs.save(learner, folder, launch, 3)


def onwards(model, folder, launch):
    """Three more rollouts from the checkpoint, which another launch may have written."""
    learner = jobs.continued(model, checkpoint_path(folder / "checkpoints", 3), launch)
    for batch in list(rollouts(6))[3:]:
        learner.update(batch)
    jobs.keep(launch, folder / "onwards.safetensors", jobs.weights(learner))


def mixture(model, folder, launch):
    """A mixture of experts whose routers are balanced over the whole step."""
    policy = load_policy(ModelSettings(path=model))
    hook = RouterHook(policy, RouterSettings(balance=0.05, z=0.01))
    learner = Learner(
        policy, jobs.PLAIN, LearnerSettings(**jobs.SETTINGS), launch=launch, hooks=[hook]
    )
    names = ("router/balance", "router/entropy", "router/load_max", "policy/loss")
    jobs.keep_run(learner, launch, folder / "mixture.safetensors", names)


def run_cases(cases, model, folder, launch, **settings):
    """Run cases with these settings of the learner beside ``exact``."""
    own = {**jobs.SETTINGS, "exact": True, **settings}
    before = jobs.SETTINGS, jobs.STEPS
    jobs.SETTINGS, jobs.STEPS = own, 5
    try:
        for case in cases:
            found = globals().get(case) or getattr(jobs, case)
            found(str(model), Path(folder), launch)
    finally:
        jobs.SETTINGS, jobs.STEPS = before


def alone():
    """The launch of one process."""
    return Launch(jobs.Alone())


if __name__ == "__main__":
    faulthandler.dump_traceback_later(float(os.environ.get("JOB_TIMEOUT_S", 400)), exit=True)
    torch.set_num_threads(1)
    _, names, model, folder, layout, tokens = sys.argv
    settings = {"layout": layout, "tokens_per_micro_batch": int(tokens)}
    run_cases(names.split(","), model, folder, join(timeout_s=60), **settings)
