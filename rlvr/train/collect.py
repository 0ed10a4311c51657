"""One step's rollout: sample, verify, and refill groups that would teach nothing.

Verification overlaps generation: a group goes to the verifier as soon as its last completion is
there, while the engine is still at work on others.

A group whose rewards are all equal has zero advantage everywhere. With dynamic sampling (DAPO, Yu
et al., arXiv:2503.14476, section 3.2) such groups are set aside and as many new problems are drawn
in their place, up to a number of rounds; what is then still missing is filled with groups set aside
first. With no extra rounds (the default) this is a plain rollout.

``keep_accuracy`` sets groups aside by their share of right completions instead, and ``oversample``
draws more problems at once: PRIME's filter (arXiv:2502.01456), which also evens out the labels that
its reward model learns from.

With several processes each samples and scores its share of a round's prompts, with the seeds that
they have in one process, and the groups are put together on all of them.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rlvr.data import Prompt
from rlvr.prm import group_passes
from rlvr.rollout import sample_groups
from rlvr.train.clock import Clock
from rlvr.train.recipe import RolloutSettings
from rlvr.train.run import Run
from rlvr.train.scoring import Scored, scored_from_state, scored_state
from rlvr.train.together import gather_or_stop
from rlvr.types import Group

Show = Callable[[str, int, int | None], None]
"""Told (what is going on, done, out of); what it raises ends the work."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The groups to train on, and all that were sampled, each in the order of sampling."""

    step: int
    groups: list[list[Scored]]
    sampled: list[list[Scored]]
    rounds: int
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Version of the weights that the rollout was begun with."""
        return min(item.completion.policy_version for group in self.sampled for item in group)

    @property
    def metrics(self) -> dict[str, float]:
        """How much was sampled for what is trained on, and how old it is."""
        kept, sampled = len(self.groups), len(self.sampled)
        ages = Counter(self.step - 1 - group[0].completion.policy_version for group in self.groups)
        return {
            "rollout/rounds": float(self.rounds),
            "rollout/discarded_groups": (sampled - kept) / sampled,
            "rollout/staleness_mean": sum(age * count for age, count in ages.items()) / kept,
            "rollout/staleness_max": float(max(ages)),
            **{f"rollout/staleness_{age}": count / kept for age, count in sorted(ages.items())},
        }


def rollout_state(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON values; its times, which a continuation has no use for, are left out."""
    identities = [id(group) for group in rollout.sampled]
    return {
        "step": rollout.step,
        "rounds": rollout.rounds,
        "sampled": [[scored_state(item) for item in group] for group in rollout.sampled],
        "kept": [identities.index(id(group)) for group in rollout.groups],
    }


def rollout_from_state(state: Mapping[str, Any]) -> Rollout:
    """What :func:`rollout_state` described."""
    sampled = [[scored_from_state(item) for item in group] for group in state["sampled"]]
    kept = [sampled[index] for index in state["kept"]]
    return Rollout(state["step"], kept, sampled, state["rounds"])


def is_flat(group: list[Scored]) -> bool:
    """Whether all rewards of a group are equal; by maximum and minimum, which do not round."""
    rewards = [item.reward for item in group]
    return max(rewards) == min(rewards)


def teaches(group: list[Scored], settings: RolloutSettings) -> bool:
    """Whether a group is to be trained on before others."""
    if settings.keep_accuracy is None:
        return not is_flat(group)
    return group_passes([item.grade.correct for item in group], settings.keep_accuracy)


def collect(run: Run, step: int, clock: Clock, show: Show) -> Rollout:
    """Sample and verify the groups of a step.

    Args:
        run: The run; its sampler advances.
        step: Number of the step, for seeds and group ids.
        clock: Times generation, and what verification takes beyond it; rounds add up.
        show: Told how far things are.
    """
    rollout, wanted = run.recipe.rollout, run.recipe.rollout.prompts_per_step
    sampled: list[list[Scored]] = []
    lively: list[list[Scored]] = []
    drawn: Counter[str] = Counter()
    rounds = 0
    while rounds == 0 or (len(lively) < wanted and rounds <= rollout.refill_rounds):
        rounds += 1
        count = math.ceil((wanted - len(lively)) * rollout.oversample)
        scored = _sample_and_score(run, step, count, drawn, clock, show)
        sampled += scored
        lively += [group for group in scored if teaches(group, rollout)]
    if not rollout.refill_rounds and rollout.oversample == 1:
        return Rollout(step, sampled, sampled, rounds, clock.seconds)
    others = [group for group in sampled if not teaches(group, rollout)]
    kept = (lively + others)[:wanted]
    return Rollout(step, kept, sampled, rounds, clock.seconds)


def _sample_and_score(
    run: Run, step: int, count: int, drawn: Counter[str], clock: Clock, show: Show
) -> list[list[Scored]]:
    """One round: ``count`` newly drawn prompts, sampled and scored by all processes."""
    prompts = run.next_prompts(count)

    def own() -> list[list[Scored]]:
        return _own_share(run, step, prompts, drawn, clock, show)

    if run.rollout_ranks.count == 1:
        return own()
    states = gather_or_stop(
        run.rollout_ranks, lambda: [[scored_state(item) for item in group] for group in own()]
    )
    # Shares are contiguous, so by rank is in order.
    return [[scored_from_state(item) for item in group] for share in states for group in share]


def _own_share(
    run: Run, step: int, prompts: list[Prompt], drawn: Counter[str], clock: Clock, show: Show
) -> list[list[Scored]]:
    """This process's groups, each scored while others are generated."""
    rollout, share = run.recipe.rollout, run.share(len(prompts))
    verdicts: dict[int, Future[list[list[Scored]]]] = {}
    with ThreadPoolExecutor(1, "verify") as pool:

        def score(index: int, group: Group) -> None:
            verdicts[index] = pool.submit(run.scorer.score, [group])

        with clock("generate"):
            sample_groups(
                run.engine,
                prompts,
                rollout.samples_per_prompt,
                rollout.sampling,
                run_seed=run.recipe.seed,
                step=step,
                drawn=drawn,
                progress=lambda done, total: show("generating", done, total),
                finished=score,
                share=share,
            )
        with clock("verify"):
            show("verifying", 0, None)
            return [verdicts[index].result()[0] for index in share]
