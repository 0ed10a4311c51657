"""The training and evaluation problems of a recipe as prompts, checked against the model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from rlvr.data import Prompt, RowsWanted, load_problems, load_template, overlap
from rlvr.environments.episode import Environments, opened_all
from rlvr.policy.model import Policy
from rlvr.policy.vocabulary import check_token_ids
from rlvr.rl.recipe import RLRecipe
from rlvr.runs.log import notify
from rlvr.runs.prompts import check_sandbox, usable_prompts
from rlvr.runs.reward_functions import RewardFunctions
from rlvr.runs.scoring import Scorer
from rlvr.runs.second_judge import check_problems
from rlvr.types import Problem


def check_context(recipe: RLRecipe, policy: Policy, prompts: Sequence[Sequence[Prompt]]) -> None:
    """See that the model knows every prompt's tokens and that each leaves room for a completion.

    Raises:
        ValueError: One does not fit; it is named.
    """
    samplings = [recipe.rollout.sampling, *[recipe.evaluation_sampling] * (len(prompts) - 1)]
    limit = policy.context_length
    episode = None if recipe.environment is None else recipe.environment.max_tokens
    for members, sampling in zip(prompts, samplings, strict=True):
        check_token_ids(policy, ((f"problem {p.problem.id!r}", p.ids) for p in members))
        longest = max(members, key=lambda prompt: len(prompt.ids))
        behind = episode or sampling.max_tokens
        if limit is not None and len(longest.ids) + behind > limit:
            raise ValueError(
                f"problem {longest.problem.id!r} has a prompt of {len(longest.ids)} tokens, which "
                f"with {'environment.' if episode else ''}max_tokens {behind} exceeds the model's "
                f"context of {limit}; lower max_tokens or data.max_prompt_tokens"
            )


def load_prompts(
    recipe: RLRecipe,
    tokenizer: Any,  # noqa: ANN401
    scorer: Scorer,
    console: Console,
    refused: Counter[str] | None = None,
    environments: Environments | None = None,
) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
    """Training prompts and evaluation prompts by set, without problems that cannot be graded.

    ``refused`` is told how many problems of the training data were left out, by why.
    """
    template = load_template(recipe.data.template)
    if environments is not None:  # it may show tools
        template = environments.template
    limit = recipe.data.max_prompt_tokens

    def usable(
        name: str, problems: list[Problem], refused: Counter[str] | None = None
    ) -> list[Prompt]:
        begun = opened_all(problems, environments)
        return usable_prompts(name, begun, template, tokenizer, limit, scorer, console, refused)

    problems, sets = load_data(recipe, scorer.functions)
    for line in check_problems(recipe.reward.check, problems):
        notify(console, line)
    training = usable("data", problems, refused)
    held_out = {name: usable(name, problems) for name, problems in sets.items()}
    for name, prompts in held_out.items():
        shared = overlap((p.problem for p in training), (p.problem for p in prompts))
        # Of an environment's own tasks the prompt does not show what is to be found.
        if shared and recipe.evaluation.sets[name].name != "episodes":
            notify(
                console,
                f"{name}: {len(shared)} problems are also trained on, the first {shared[0]!r}",
            )
    return training, held_out


def load_data(
    recipe: RLRecipe, functions: RewardFunctions
) -> tuple[list[Problem], dict[str, list[Problem]]]:
    """The problems of training, and those of evaluation by set.

    Raises:
        ValueError: They cannot be read, lack what a reward function must be given, or are
            programs that no sandbox can run.
    """
    wanted = RowsWanted(functions.needs_answer or needs_verdicts(recipe), functions.reads_columns)
    training = relabelled(load_problems(recipe.data.source, wanted), recipe.data.relabel)
    sets = {name: load_problems(one, wanted) for name, one in recipe.evaluation.sets.items()}
    for where, problems in (
        ("the data", training),
        *((f"evaluation set {name!r}", problems) for name, problems in sets.items()),
    ):
        functions.check_columns({c for problem in problems for c in problem.columns}, where)
        check_sandbox(recipe.reward, problems)
    return training, sets


def needs_verdicts(recipe: RLRecipe) -> bool:
    """Whether something besides reward functions reads the verifier's verdicts, or the answers."""
    return (
        recipe.prime is not None
        or recipe.rollout.accuracy_range is not None
        or recipe.evaluation.pathways is not None
    )


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
