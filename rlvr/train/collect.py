"""One step's rollout: sample, verify, and refill groups that would teach nothing.

Verification overlaps generation: a group goes to the verifier as soon as its last completion is
there, while the engine is still at work on others.

A group whose rewards are all equal has zero advantage everywhere. With dynamic sampling (DAPO, Yu
et al., arXiv:2503.14476, section 3.2) such groups are set aside and as many new problems are drawn
in their place, up to a number of rounds; what is then still missing is filled with groups set aside
first. With no extra rounds (the default) this is a plain rollout.

``keep_accuracy`` sets groups aside by their share of right completions instead, and ``oversample``
draws more problems at once: PRIME's filter (arXiv:2502.01456), which also evens out the labels that
its reward model learns from. Groups that teach and find no room in their step may wait for a later
one (``reuse_surplus``), where they come first and fewer problems are drawn; they are then older
than the rest, as rollouts sampled ahead are.

With several processes each samples and scores its share of a round's prompts, with the seeds that
they have in one process, and the groups are put together on all of them.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    """The groups to train on, and all that were sampled, each in the order of sampling.

    ``carried`` are those of the groups that an earlier step left over, and ``waiting`` how many
    this one leaves over; None where such groups are not kept.
    """

    step: int
    groups: list[list[Scored]]
    sampled: list[list[Scored]]
    rounds: int
    seconds: dict[str, float] = field(default_factory=dict)
    carried: list[list[Scored]] = field(default_factory=list)
    waiting: int | None = None

    @property
    def version(self) -> int:
        """Version of the weights that the rollout was begun with."""
        return min(item.completion.policy_version for group in self.sampled for item in group)

    @property
    def metrics(self) -> dict[str, float]:
        """How much was sampled for what is trained on, and how old it is."""
        kept, sampled = len(self.groups), len(self.sampled)
        used = kept - len(self.carried) + (self.waiting or 0)
        ages = Counter(self.step - 1 - group[0].completion.policy_version for group in self.groups)
        return {
            "rollout/rounds": float(self.rounds),
            "rollout/discarded_groups": (sampled - used) / sampled,
            "rollout/staleness_mean": sum(age * count for age, count in ages.items()) / kept,
            "rollout/staleness_max": float(max(ages)),
            **{f"rollout/staleness_{age}": count / kept for age, count in sorted(ages.items())},
            **self._surplus,
        }

    @property
    def _surplus(self) -> dict[str, float]:
        if self.waiting is None:
            return {}
        return {
            "rollout/carried_groups": len(self.carried) / len(self.groups),
            "rollout/waiting_groups": float(self.waiting),
        }


def rollout_state(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON values; its times, which a continuation has no use for, are left out."""
    identities = [id(group) for group in (*rollout.carried, *rollout.sampled)]
    return {
        "step": rollout.step,
        "rounds": rollout.rounds,
        "carried": groups_state(rollout.carried),
        "waiting": rollout.waiting,
        "sampled": groups_state(rollout.sampled),
        "kept": [identities.index(id(group)) for group in rollout.groups],
    }


def rollout_from_state(state: Mapping[str, Any]) -> Rollout:
    """What :func:`rollout_state` described."""
    sampled = groups_from_state(state["sampled"])
    carried = groups_from_state(state.get("carried", []))
    kept = [[*carried, *sampled][index] for index in state["kept"]]
    return Rollout(
        state["step"],
        kept,
        sampled,
        state["rounds"],
        carried=carried,
        waiting=state.get("waiting"),
    )


def groups_state(groups: Sequence[Sequence[Scored]]) -> list[list[dict[str, Any]]]:
    """Groups as JSON values."""
    return [[scored_state(item) for item in group] for group in groups]


def groups_from_state(state: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Scored]]:
    """What :func:`groups_state` described."""
    return [[scored_from_state(item) for item in group] for group in state]


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
        run: The run; its sampler advances, and its surplus changes.
        step: Number of the step, for seeds and group ids.
        clock: Times generation, and what verification takes beyond it; rounds add up.
        show: Told how far things are.
    """
    rollout, wanted = run.recipe.rollout, run.recipe.rollout.prompts_per_step
    sampled: list[list[Scored]] = []
    carried = _young(run.surplus, rollout, step)
    lively = list(carried)
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
    waiting = None
    if rollout.reuse_surplus:
        # One fewer than a step needs, so that every step samples with the newest weights.
        run.surplus = lively[wanted : 2 * wanted - 1]
        waiting = len(run.surplus)
    return Rollout(step, kept, sampled, rounds, clock.seconds, carried, waiting)


def _young(surplus: list[list[Scored]], rollout: RolloutSettings, step: int) -> list[list[Scored]]:
    """Groups of earlier steps that are not too old yet."""
    oldest = step - 1 - rollout.max_staleness - rollout.reuse_surplus
    return [group for group in surplus if group[0].completion.policy_version >= oldest]


def _sample_and_score(
    run: Run, step: int, count: int, drawn: Counter[str], clock: Clock, show: Show
) -> list[list[Scored]]:
    """One round: ``count`` newly drawn prompts, sampled and scored by all processes."""
    prompts = run.next_prompts(count)

    def own() -> list[list[Scored]]:
        return _own_share(run, step, prompts, drawn, clock, show)

    if run.rollout_ranks.count == 1:
        return own()
    states = gather_or_stop(run.rollout_ranks, lambda: groups_state(own()))
    # Shares are contiguous, so by rank is in order.
    return [group for share in states for group in groups_from_state(share)]


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
