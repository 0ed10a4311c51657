"""From prompts to groups: seeds and group ids by position, an engine, completions out."""

from collections import Counter
from collections.abc import Sequence

from rlvr.data import Prompt
from rlvr.rollout.engine import Engine, Progress, Request
from rlvr.rollout.sampling import Sampling, sample_seed
from rlvr.types import Completion, Group


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
) -> list[Group]:
    """Sample one group per prompt, in order.

    A problem that stands several times in a step (one-shot training repeats one to fill a batch)
    gets separate groups with different samples: its sample indices run on.

    Args:
        engine: What generates.
        prompts: One for each group.
        samples_per_prompt: Completions in a group.
        sampling: How tokens are drawn.
        run_seed: Seed of the run.
        step: The step; with the seed, problem and sample index it fixes the random numbers.
        drawn: How often each problem was drawn in this step already, by earlier calls; updated.
        progress: Told about finished completions.
    """
    drawn = Counter() if drawn is None else drawn
    position = drawn.total()
    requests, firsts = [], []
    for prompt in prompts:
        first = drawn[prompt.problem.id] * samples_per_prompt
        drawn[prompt.problem.id] += 1
        indices = range(first, first + samples_per_prompt)
        seeds = tuple(sample_seed(run_seed, step, prompt.problem.id, index) for index in indices)
        requests.append(Request(tuple(prompt.ids), seeds))
        firsts.append(first)
    outputs = engine.generate(requests, sampling, progress)
    groups = []
    for prompt, first, samples in zip(prompts, firsts, outputs, strict=True):
        completions = tuple(
            Completion(
                problem_id=prompt.problem.id,
                group_id=f"{step}/{position}",
                sample_index=first + offset,
                prompt_ids=tuple(prompt.ids),
                token_ids=sample.token_ids,
                logprobs=sample.logprobs,
                finish_reason=sample.finish_reason,
                policy_version=engine.policy_version,
            )
            for offset, sample in enumerate(samples)
        )
        groups.append(Group(prompt.problem, completions))
        position += 1
    return groups
