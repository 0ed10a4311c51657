"""The methods that a recipe names, as hooks of the learner."""

from pathlib import Path

import torch

from rlvr.learner.methods.critic import CriticHook
from rlvr.learner.methods.hook import Hook
from rlvr.learner.methods.prime import build_prime
from rlvr.learner.methods.router import RouterHook
from rlvr.objective.parts import CriticAdvantage
from rlvr.policy.model import Policy
from rlvr.policy.value_head import CRITIC, load_critic
from rlvr.rl.recipe import RLRecipe


def build_hooks(
    recipe: RLRecipe,
    policy: Policy,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
) -> list[Hook]:
    """What rides along with the policy, in the order in which losses are added.

    Args:
        recipe: Names the methods.
        policy: The model to train, not yet taken by a parameter store.
        checkpoint: Where their models are read from; None starts them afresh.
        device: Where weights are loaded.

    Raises:
        ValueError: A model that a method needs is missing or unusable.
    """
    hooks: list[Hook] = []
    if recipe.router is not None:
        hooks.append(RouterHook(policy, recipe.router))
    if isinstance(recipe.advantage, CriticAdvantage):
        # A branch may add what its parent had not.
        saved = checkpoint if checkpoint and (checkpoint / CRITIC).is_file() else None
        critic = load_critic(recipe.model, saved=saved, device=device)
        hooks.append(CriticHook(critic, recipe.critic, recipe.advantage))
    if recipe.prime is not None:
        settings, advantage = recipe.prime, recipe.advantage
        hooks.append(build_prime(settings, advantage, policy, recipe.model, checkpoint, device))
    return hooks
