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
    progress: Progress | None = None,
) -> list[Group]:
    """Sample one group per prompt, in order.

    A problem that stands several times in ``prompts`` (one-shot training repeats one to fill a
    batch) gets separate groups with different samples: its sample indices run on.
    """
    seen: Counter[str] = Counter()
    requests, firsts = [], []
    for prompt in prompts:
        first = seen[prompt.problem.id] * samples_per_prompt
        seen[prompt.problem.id] += 1
        indices = range(first, first + samples_per_prompt)
        seeds = tuple(sample_seed(run_seed, step, prompt.problem.id, index) for index in indices)
        requests.append(Request(tuple(prompt.ids), seeds))
        firsts.append(first)
    outputs = engine.generate(requests, sampling, progress)
    groups = []
    for position, (prompt, samples) in enumerate(zip(prompts, outputs, strict=True)):
        completions = tuple(
            Completion(
                problem_id=prompt.problem.id,
                group_id=f"{step}/{position}",
                sample_index=firsts[position] + offset,
                prompt_ids=tuple(prompt.ids),
                token_ids=sample.token_ids,
                logprobs=sample.logprobs,
                finish_reason=sample.finish_reason,
                policy_version=engine.policy_version,
            )
            for offset, sample in enumerate(samples)
        )
        groups.append(Group(prompt.problem, completions))
    return groups
