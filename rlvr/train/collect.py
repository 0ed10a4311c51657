"""One step's rollout: sample, verify, and refill groups that would teach nothing.

A group whose rewards are all equal has zero advantage everywhere. With dynamic sampling (DAPO, Yu
et al., arXiv:2503.14476, section 3.2) such groups are set aside and as many new problems are drawn
in their place, up to a number of rounds; what is then still missing is filled with groups set aside
first. With no extra rounds (the default) this is a plain rollout.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from rlvr.rollout import sample_groups
from rlvr.train.run import Run
from rlvr.train.scoring import Scored


@dataclass(frozen=True, slots=True)
class Rollout:
    """The groups to train on, and all that were sampled, each in the order of sampling."""

    groups: list[list[Scored]]
    sampled: list[list[Scored]]
    rounds: int

    @property
    def metrics(self) -> dict[str, float]:
        """How much was sampled for what is trained on."""
        kept, sampled = len(self.groups), len(self.sampled)
        return {
            "rollout/rounds": float(self.rounds),
            "rollout/discarded_groups": (sampled - kept) / sampled,
        }


def is_flat(group: list[Scored]) -> bool:
    """Whether all rewards of a group are equal; by maximum and minimum, which do not round."""
    rewards = [item.reward for item in group]
    return max(rewards) == min(rewards)


def collect(run: Run, step: int, timed: Callable[[str], AbstractContextManager[None]]) -> Rollout:
    """Sample and verify the groups of a step.

    Args:
        run: The run; its sampler advances.
        step: Number of the step, for seeds and group ids.
        timed: Gives a context manager for a phase's name; phases of all rounds add up.
    """
    rollout, wanted = run.recipe.rollout, run.recipe.rollout.prompts_per_step
    sampled: list[list[Scored]] = []
    lively: list[list[Scored]] = []
    drawn: Counter[str] = Counter()
    rounds = 0
    while rounds == 0 or (len(lively) < wanted and rounds <= rollout.refill_rounds):
        rounds += 1
        with timed("generate"):
            groups = sample_groups(
                run.engine,
                run.next_prompts(wanted - len(lively)),
                rollout.samples_per_prompt,
                rollout.sampling,
                run_seed=run.recipe.seed,
                step=step,
                drawn=drawn,
                progress=lambda done, total: run.log.phase("generating", done, total),
            )
        with timed("verify"):
            run.log.phase("verifying")
            scored = run.scorer.score(groups)
        sampled += scored
        lively += [group for group in scored if not is_flat(group)]
    if not rollout.refill_rounds:
        return Rollout(sampled, sampled, rounds)
    flat = [group for group in sampled if is_flat(group)]
    return Rollout(lively + flat[: wanted - len(lively)], sampled, rounds)
