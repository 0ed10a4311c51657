"""A run's problems: without those that cannot be graded, encoded, and of a size that fits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from rlvr.data import (
    Prompt,
    Source,
    Template,
    TemplateSettings,
    encode_prompts,
    load_problems,
    load_template,
    overlap,
)
from rlvr.policy import Policy
from rlvr.train.log import say
from rlvr.train.recipe import RLRecipe
from rlvr.train.scoring import Scorer
from rlvr.types import Problem


def check_context(recipe: RLRecipe, policy: Policy, prompts: Sequence[Sequence[Prompt]]) -> None:
    """See that the model knows every prompt's tokens and that each leaves room for a completion.

    Raises:
        ValueError: One does not fit; it is named.
    """
    samplings = [recipe.rollout.sampling, *[recipe.evaluation_sampling] * (len(prompts) - 1)]
    limit = policy.context_length
    words = policy.causal_lm.get_input_embeddings().num_embeddings
    for members, sampling in zip(prompts, samplings, strict=True):
        for prompt in members:
            if max(prompt.ids) >= words:
                raise ValueError(
                    f"problem {prompt.problem.id!r} holds token {max(prompt.ids)}, but the model "
                    f"has {words} embeddings; set model.tokenizer to the model's own tokenizer"
                )
        longest = max(members, key=lambda prompt: len(prompt.ids))
        if limit is not None and len(longest.ids) + sampling.max_tokens > limit:
            raise ValueError(
                f"problem {longest.problem.id!r} has a prompt of {len(longest.ids)} tokens, which "
                f"with max_tokens {sampling.max_tokens} exceeds the model's context of {limit}; "
                "lower max_tokens or data.max_prompt_tokens"
            )


def load_prompts(
    recipe: RLRecipe,
    tokenizer: Any,  # noqa: ANN401
    scorer: Scorer,
    console: Console,
) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
    """Training prompts and evaluation prompts by set, without problems that cannot be graded."""
    template = load_template(recipe.data.template)
    limit = recipe.data.max_prompt_tokens

    def load(name: str, source: Any) -> list[Prompt]:  # noqa: ANN401
        problems = load_problems(source)
        if name == "data":
            problems = relabelled(problems, recipe.data.relabel)
        return usable_prompts(name, problems, template, tokenizer, limit, scorer, console)

    training = load("data", recipe.data.source)
    held_out = {name: load(name, source) for name, source in recipe.evaluation.sets.items()}
    for name, prompts in held_out.items():
        shared = overlap((p.problem for p in training), (p.problem for p in prompts))
        if shared:
            say(
                console,
                f"{name}: {len(shared)} problems are also trained on, the first {shared[0]!r}",
            )
    return training, held_out


def held_out_prompts(
    sets: Mapping[str, Source],
    template: TemplateSettings,
    limit: int,
    tokenizer: Any,  # noqa: ANN401
    scorer: Scorer | None,
    console: Console,
) -> dict[str, list[Prompt]]:
    """Problems to be answered, by the name of their set; none without a scorer.

    Raises:
        ValueError: They cannot be read, or none can be graded.
    """
    if scorer is None:
        return {}
    loaded = load_template(template)
    return {
        name: usable_prompts(name, load_problems(source), loaded, tokenizer, limit, scorer, console)
        for name, source in sets.items()
    }


def usable_prompts(
    name: str,
    problems: Sequence[Problem],
    template: Template,
    tokenizer: Any,  # noqa: ANN401
    limit: int,
    scorer: Scorer,
    console: Console,
) -> list[Prompt]:
    """The encoded prompts of one set, without problems that cannot be graded.

    Raises:
        ValueError: None is left.
    """
    bad = dict(scorer.pool.check_golds([problem.answer for problem in problems]))
    for index, reason in bad.items():
        problem = problems[index]
        say(console, f"{name}: problem {problem.id!r} is left out: {reason}")
    usable = [problem for index, problem in enumerate(problems) if index not in bad]
    if not usable:
        raise ValueError(f"{name}: none of {len(problems)} reference answers can be graded")
    encoded = encode_prompts(usable, template, tokenizer, limit)
    if encoded.notice:
        say(console, f"{name}: {encoded.notice}")
    return list(encoded.prompts)


def relabelled(problems: Sequence[Problem], answers: Mapping[str, str]) -> list[Problem]:
    """The problems with some answers replaced.

    Raises:
        ValueError: An id that no problem has.
    """
    unknown = set(answers) - {problem.id for problem in problems}
    if unknown:
        raise ValueError(f"data.relabel names {min(unknown)!r}, but no problem has that id")
    return [
        replace(problem, answer=answers.get(problem.id, problem.answer)) for problem in problems
    ]
