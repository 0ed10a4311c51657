"""One step's rollout: sample, verify, and refill groups without a signal.

Verification overlaps generation: a group goes to the verifier, and to the reward functions that
need no more than a group, as soon as its last completion is there, while the engine is still at
work on others. Functions of a batch get the round's groups of this process, in their order.

A group whose rewards are all equal has zero advantage everywhere. With dynamic sampling (DAPO, Yu
et al., arXiv:2503.14476, section 3.2) such groups are set aside and as many new problems are drawn
in their place, up to a number of rounds; what is then still missing is filled with groups set aside
first. With no extra rounds (the default) this is a plain rollout.

``accuracy_range`` sets groups aside by their share of right completions instead, and ``oversample``
draws more problems at once: PRIME's filter (arXiv:2502.01456), which also evens out the labels that
its reward model learns from. Informative groups that find no room in their step may wait for a
later one (``carry_over_steps``), where they come first and fewer problems are drawn; they are then
older than the rest, as rollouts sampled ahead are.

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
from rlvr.reward_models.prime import group_passes
from rlvr.rl.recipe import RolloutSettings
from rlvr.rl.run import Run
from rlvr.rollout.groups import sample_groups
from rlvr.runs.clock import Clock
from rlvr.runs.collectives import gather_or_stop
from rlvr.runs.scoring import BegunGroups, ScoredCompletion, scored_from_state, scored_state
from rlvr.types import Group

Show = Callable[[str, int, int | None], None]
"""Told (what is going on, done, out of); what it raises ends the work."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The groups to train on, and all that were sampled, each in the order of sampling.

    ``seconds`` are the times of its phases, and what was measured of the weights on their way.
    ``carried`` are those of the groups that an earlier step left over, and ``waiting`` how many
    this one leaves over; None where such groups are not kept. ``held`` are the draws of the groups
    that it leaves over, ``stale`` the groups that had become too old when it began, and
    ``round_sizes`` how many prompts each of its rounds drew.
    """

    step: int
    groups: list[list[ScoredCompletion]]
    sampled: list[list[ScoredCompletion]]
    rounds: int
    seconds: dict[str, float] = field(default_factory=dict)
    carried: list[list[ScoredCompletion]] = field(default_factory=list)
    waiting: int | None = None
    held: tuple[int, ...] = ()
    stale: list[list[ScoredCompletion]] = field(default_factory=list)
    round_sizes: tuple[int, ...] = ()

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
            **self._carry_over,
        }

    @property
    def _carry_over(self) -> dict[str, float]:
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
        "held": list(rollout.held),
        "stale": groups_state(rollout.stale),
        "round_sizes": list(rollout.round_sizes),
        "sampled": groups_state(rollout.sampled),
        "kept": [identities.index(id(group)) for group in rollout.groups],
        "measured": {
            name: value for name, value in rollout.seconds.items() if not name.startswith("time/")
        },
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
        dict(state.get("measured", {})),
        carried=carried,
        waiting=state.get("waiting"),
        held=tuple(state.get("held", ())),
        stale=groups_from_state(state.get("stale", [])),
        round_sizes=tuple(state.get("round_sizes", ())),
    )


def groups_state(groups: Sequence[Sequence[ScoredCompletion]]) -> list[list[dict[str, Any]]]:
    """Groups as JSON values."""
    return [[scored_state(item) for item in group] for group in groups]


def groups_from_state(state: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[ScoredCompletion]]:
    """What :func:`groups_state` described."""
    return [[scored_from_state(item) for item in group] for group in state]


def is_flat(group: list[ScoredCompletion]) -> bool:
    """Whether all rewards of a group are equal; by maximum and minimum, which do not round."""
    rewards = [item.reward for item in group]
    return max(rewards) == min(rewards)


def has_signal(group: list[ScoredCompletion], settings: RolloutSettings) -> bool:
    """Whether a group is informative: to be trained on before others."""
    if settings.accuracy_range is None:
        return not is_flat(group)
    return group_passes([bool(item.correct) for item in group], settings.accuracy_range)


def collect(run: Run, step: int, clock: Clock, show: Show) -> Rollout:
    """Sample and verify the groups of a step.

    Args:
        run: The run; its sampler advances, and the groups that it carries over change.
        step: Number of the step, for seeds and group ids.
        clock: Times generation, and what verification takes beyond it; rounds add up.
        show: Told how far things are.
    """
    rollout, wanted = run.recipe.rollout, run.recipe.rollout.prompts_per_step
    sampled: list[list[ScoredCompletion]] = []
    carried, stale = _by_age(run.carry_over, rollout, step)
    informative = list(carried)
    drawn: Counter[str] = Counter()
    sizes: list[int] = []
    rounds = 0
    while rounds == 0 or (len(informative) < wanted and rounds <= rollout.dynamic_sampling_rounds):
        rounds += 1
        count = math.ceil((wanted - len(informative)) * rollout.oversample)
        scored = _sample_and_score(run, step, count, drawn, clock, show)
        sampled += scored
        sizes.append(len(scored))
        informative += [group for group in scored if has_signal(group, rollout)]
    if not rollout.dynamic_sampling_rounds and rollout.oversample == 1:
        return Rollout(step, sampled, sampled, rounds, clock.seconds, round_sizes=tuple(sizes))
    others = [group for group in sampled if not has_signal(group, rollout)]
    kept = (informative + others)[:wanted]
    waiting = None
    if rollout.carry_over_steps:
        # One fewer than a step needs, so that every step samples with the newest weights.
        run.carry_over = informative[wanted : 2 * wanted - 1]
        waiting = len(run.carry_over)
    return Rollout(
        step,
        kept,
        sampled,
        rounds,
        clock.seconds,
        carried,
        waiting,
        held=tuple(group[0].completion.draw for group in run.carry_over),
        stale=stale,
        round_sizes=tuple(sizes),
    )


def _by_age(
    groups: list[list[ScoredCompletion]], rollout: RolloutSettings, step: int
) -> tuple[list[list[ScoredCompletion]], list[list[ScoredCompletion]]]:
    """Groups of earlier steps that are not too old yet, and those that are."""
    oldest = step - 1 - rollout.max_staleness - rollout.carry_over_steps
    fresh = [group for group in groups if group[0].completion.policy_version >= oldest]
    return fresh, [group for group in groups if group[0].completion.policy_version < oldest]


def _sample_and_score(
    run: Run, step: int, count: int, drawn: Counter[str], clock: Clock, show: Show
) -> list[list[ScoredCompletion]]:
    """One round: ``count`` newly drawn prompts, sampled and scored by all processes."""
    first_draw = run.sampler.drawn
    prompts = run.next_prompts(count)

    def own() -> list[list[ScoredCompletion]]:
        return _own_share(run, step, prompts, first_draw, drawn, clock, show)

    if run.rollout_ranks.count == 1:
        return own()
    states = gather_or_stop(run.rollout_ranks, lambda: groups_state(own()))
    # Shares are contiguous, so by rank is in order.
    return [group for share in states for group in groups_from_state(share)]


def _own_share(
    run: Run,
    step: int,
    prompts: list[Prompt],
    first_draw: int,
    drawn: Counter[str],
    clock: Clock,
    show: Show,
) -> list[list[ScoredCompletion]]:
    """This process's groups, each graded while others are generated."""
    rollout, share = run.recipe.rollout, run.share(len(prompts))
    begun: dict[int, Future[BegunGroups]] = {}
    with ThreadPoolExecutor(1, "verify") as pool:

        def score(index: int, group: Group) -> None:
            begun[index] = pool.submit(
                run.scorer.begin, [group], step=step, finished=step - 1, check=True
            )

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
                first_draw=first_draw,
                environment=run.environments,
            )
        with clock("verify"):
            show("verifying", 0, None)
            return run.scorer.finish(
                [begun[index].result() for index in share],
                finished=step - 1,
                tick=lambda: show("verifying", 0, None),
            )
