"""Turn prompts into groups of completions; seeds and group ids depend only on position."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from rlvr.data import Prompt
from rlvr.rollout.engine import Engine, Progress, Request, Sample
from rlvr.rollout.episodes import Episode, play
from rlvr.rollout.sampling import Sampling, sample_seed
from rlvr.types import Completion, Group, Limits, Problem


class EpisodeSource(Protocol):
    """An environment as sampling sees it."""

    @property
    def limits(self) -> Limits:
        """What ends an episode that does not end by itself."""
        ...

    def begin(self, problem: Problem, seed: int) -> Episode:
        """An episode of a problem; ``seed`` is the completion's."""
        ...


def sample_groups(
    engine: Engine,
    prompts: Sequence[Prompt],
    samples_per_prompt: int,
    sampling: Sampling,
    *,
    run_seed: int,
    step: int,
    drawn: Counter[str] | None = None,
    progress: Progress | None = None,
    finished: Callable[[int, Group], None] | None = None,
    share: range | None = None,
    first_draw: int | None = None,
    environment: EpisodeSource | None = None,
) -> list[Group]:
    """Sample one group per prompt, in order.

    A problem that occurs several times in a step (one-shot training repeats one to fill a batch)
    gets separate groups with different samples, because its sample indices continue to count.

    Args:
        engine: The engine that generates.
        prompts: One per group.
        samples_per_prompt: Number of completions in a group.
        sampling: How tokens are drawn.
        run_seed: Seed of the run.
        step: The step; with seed, problem and sample index it determines the random numbers.
        drawn: How often earlier calls drew each problem in this step; updated in place.
        progress: Called with the number of finished completions.
        finished: Called with each group's index in ``prompts`` and the group as soon as it is
            complete, while others are still being generated.
        share: Indices of the prompts to sample, with the seeds and labels that they have among
            all prompts; other processes sample the rest.
        first_draw: Number of the first prompt among all that the run drew; None is not to number.
        environment: Answers what the policy writes, and so on; None ends with one turn.

    A completion's ``policy_version`` is the version of the weights at the start; completions that
    were generated again after the engine died may come from newer weights.
    """
    drawn = Counter() if drawn is None else drawn
    position, version = drawn.total(), engine.policy_version
    share = range(len(prompts)) if share is None else share
    requests, firsts = [], []
    for prompt in prompts:
        first = drawn[prompt.problem.id] * samples_per_prompt
        drawn[prompt.problem.id] += 1
        indices = range(first, first + samples_per_prompt)
        seeds = tuple(sample_seed(run_seed, step, prompt.problem.id, index) for index in indices)
        requests.append(Request(tuple(prompt.ids), seeds))
        firsts.append(first)

    done: dict[int, Group] = {}

    def complete(request: int, samples: list[Sample]) -> None:
        index = share[request]
        label = f"{step}/{position + index}"
        draw = -1 if first_draw is None else first_draw + index
        done[index] = _group(prompts[index], samples, label, firsts[index], version, draw)
        if finished is not None:
            finished(index, done[index])

    if not share:
        return []
    own = [requests[index] for index in share]
    if environment is None:
        engine.generate(own, sampling, progress, complete)
        return [done[index] for index in share]

    def begun(request: int, sample: int) -> Episode:
        problem = prompts[share[request]].problem
        return environment.begin(problem, own[request].seeds[sample])

    play(engine, own, begun, sampling, environment.limits, progress, complete)
    return [done[index] for index in share]


def _group(
    prompt: Prompt, samples: Sequence[Sample], label: str, first: int, version: int, draw: int
) -> Group:
    completions = tuple(
        Completion(
            problem_id=prompt.problem.id,
            group_id=label,
            sample_index=first + offset,
            prompt_ids=tuple(prompt.ids),
            token_ids=sample.token_ids,
            logprobs=sample.logprobs,
            finish_reason=sample.finish_reason,
            policy_version=version,
            experts=sample.experts,
            draw=draw,
            turns=sample.turns,
            reward=sample.reward,
        )
        for offset, sample in enumerate(samples)
    )
    return Group(prompt.problem, completions)
