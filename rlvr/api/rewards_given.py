"""Reward functions as Python objects, put into the settings of a run."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rlvr.runs.rewards import RewardSettings, RewardTerm


def with_rewards(recipe: Any, rewards: Any) -> Any:  # noqa: ANN401
    """A recipe whose reward is the sum of these functions.

    Args:
        recipe: Of reinforcement learning.
        rewards: One or several: functions, names, or mappings of a term's settings.

    Raises:
        ValueError: The task has no rewards, or one is no function.
    """
    if not hasattr(recipe, "reward"):
        raise ValueError(
            f"rewards are given, but task {recipe.task!r} learns from its data alone; leave them "
            "out, or use task rl"
        )
    several = rewards if isinstance(rewards, list | tuple) else [rewards]
    try:
        terms = tuple(_term(reward) for reward in several)
        reward = RewardSettings(**{**dict(recipe.reward), "functions": terms})
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"rewards = {rewards!r:.80}: {said}") from None
    return recipe.model_copy(update={"reward": reward})


def _term(reward: Any) -> RewardTerm:  # noqa: ANN401
    if isinstance(reward, RewardTerm):
        return reward
    if isinstance(reward, Mapping):
        return RewardTerm(**reward)
    return RewardTerm(function=reward)
