"""``--dry-run``: the resolved recipe and the numbers that follow from it, without loading weights.

Memory is that of :mod:`rlvr.memory`, for the processes that the launcher starts.
"""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

from rlvr.data import encode_prompts, load_template
from rlvr.data.decoding import ResponseDecoder
from rlvr.environments.episode import Environments, opened_all
from rlvr.memory import ENGINE, Estimate, ModelShape, estimate, memory_lines
from rlvr.policy.loading import model_notes
from rlvr.policy.shape import read_shape
from rlvr.rl.memory import rl_work
from rlvr.rl.prompts import load_data
from rlvr.rl.recipe import RLRecipe, stale_warnings
from rlvr.rollout.memory_share import planned_line
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.runs.memory import machine_here, processes_here
from rlvr.runs.notices import notices
from rlvr.runs.reward_functions import RewardFunctions
from rlvr.runs.scoring import try_functions
from rlvr.runs.second_judge import check_problems
from rlvr.runs.shown import out_of_reach, prompts_shown, with_tokenizer
from rlvr.settings import to_yaml
from rlvr.types import Problem


def render_plan(recipe: RLRecipe) -> str:
    """The resolved recipe as YAML, then the derived numbers as comment lines.

    Raises:
        ValueError: The problems or the model's configuration cannot be read, no prompt is short
            enough, or a reward function does not exist, or fails on made-up completions.
    """
    with closing(RewardFunctions(recipe.reward.functions, recipe.steps)) as functions:
        problems, _ = load_data(recipe, functions)
        checked = check_problems(recipe.reward.check, problems)
        episodes, limit = recipe.environment is not None, recipe.rollout.sampling.max_tokens
        try_functions(functions, problems[0], limit, episodes=episodes)
    updates = recipe.steps * recipe.learner.updates_per_rollout
    advice = [*checked, *_advice(recipe), *notices(recipe, 0, updates)]
    lines = [*_work(recipe, len(problems)), *advice, *_model(recipe, problems)]
    return to_yaml(recipe) + "\n" + "\n".join(f"# {line}" for line in lines)


def _model(recipe: RLRecipe, problems: Sequence[Problem]) -> list[str]:
    """What its configuration and its tokenizer tell; a line, where the Hub is out of reach."""
    try:
        notes, shape = model_notes(recipe.model), read_shape(recipe.model)
    except ValueError as error:
        if not out_of_reach(error):
            raise
        return [f"the model's size, memory and prompts are not shown: {error}"]
    show = partial(_prompts, recipe, problems)
    return [*notes, *_memory(recipe, shape), *with_tokenizer(recipe.model, show)]


def _prompts(recipe: RLRecipe, problems: Sequence[Problem], tokenizer: Any) -> list[str]:  # noqa: ANN401
    template, limit = load_template(recipe.data.template), recipe.data.max_prompt_tokens
    if recipe.environment is not None:
        decode = ResponseDecoder(tokenizer, recipe.reward.thoughts)
        # No episode goes beyond its first prompt here, so that there is nothing to judge.
        environments = Environments(
            recipe.environment, template, tokenizer, decode, lambda *_: False
        )
        problems, template = opened_all(problems, environments), environments.template
    return prompts_shown(encode_prompts(problems, template, tokenizer, limit), tokenizer)


def _work(recipe: RLRecipe, problems: int) -> list[str]:
    rollout = recipe.rollout
    completions = recipe.completions_per_step
    tokens = completions * recipe.longest_completion
    epochs = recipe.steps * rollout.prompts_per_step / problems
    updates = recipe.steps * recipe.learner.updates_per_rollout
    return [
        f"problems: {problems}",
        f"a step: {rollout.prompts_per_step} prompts x {rollout.samples_per_prompt} samples = "
        f"{completions} completions, at most {tokens:,} tokens",
        f"the run: {recipe.steps} steps, {updates} updates, {completions * recipe.steps:,} "
        f"completions, at most {tokens * recipe.steps:,} tokens, {epochs:.2f} epochs",
    ]


def _advice(recipe: RLRecipe) -> list[str]:
    """Where a part of the objective is not used as its paper does."""
    loss, reducer = recipe.policy_loss, recipe.reducer.name
    if loss.reducer_of_paper in (None, reducer):
        return stale_warnings(recipe)
    return [
        *stale_warnings(recipe),
        f"policy_loss {loss.name}: its paper takes reducer {loss.reducer_of_paper}, this recipe "
        f"{reducer}",
    ]


def _tokens(recipe: RLRecipe) -> int:
    """Most tokens that the run samples."""
    return recipe.steps * recipe.completions_per_step * recipe.longest_completion


def _memory(recipe: RLRecipe, shape: ModelShape) -> list[str]:
    machine = machine_here()
    found = estimate(rl_work(recipe, shape, machine.device), processes_here(), machine)
    return [
        f"model: {shape.text}, {shape.trained:,} trained",
        f"a token forward: about {2 * shape.active:,} FLOPs; the run: at most "
        f"{_tokens(recipe) / shape.parameters:.3g} tokens a parameter",
        *memory_lines(found),
        *_engine_share(recipe, found),
    ]


def _engine_share(recipe: RLRecipe, found: Estimate) -> list[str]:
    """A line about a vLLM process that shares this machine's GPU with one learner."""
    engine = recipe.rollout.engine
    gpu = found.machine.memory if found.machine.device == "cuda" else None
    if not isinstance(engine, VllmEngineSettings) or gpu is None:
        return []
    parts = [c for c in found.components if not c.host and "rollout" in c.when]
    resident = sum(c.size for c in parts if c.name != ENGINE)
    return [planned_line(engine, not recipe.rollout.max_staleness, int(gpu), int(resident))]
