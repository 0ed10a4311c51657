"""What a run of reinforcement learning needs memory for: its models, its lengths, its engine."""

from dataclasses import replace

from rlvr.learner.methods.prime import PrimeSettings
from rlvr.memory import GIB, EngineWork, ExtraModel, ModelShape, Work
from rlvr.objective.parts import CriticAdvantage
from rlvr.policy.settings import ModelSettings
from rlvr.rl.recipe import RLRecipe
from rlvr.rollout.settings import (
    TransformersEngineSettings,
    VllmEngineSettings,
)
from rlvr.runs.memory import Device, work_of


def rl_work(recipe: RLRecipe, shape: ModelShape, device: Device) -> Work:
    """A recipe on a model of that shape, as an estimate takes it.

    Args:
        recipe: What to do.
        shape: Of ``recipe.model``.
        device: What the learner runs on.
    """
    longest = recipe.data.max_prompt_tokens + recipe.longest_completion
    work = work_of(recipe, shape, device, sequence=longest, extra=_extra(recipe, shape))
    engine = _engine(recipe)
    return replace(work, update=_update_tokens(recipe), engine=engine)


def _update_tokens(recipe: RLRecipe) -> int:
    """Input positions of an update at full lengths; packed, a prompt runs once for its group."""
    rollout, updates = recipe.rollout, recipe.learner.updates_per_rollout
    prompts = -(-rollout.prompts_per_step // updates)
    completions = prompts * rollout.samples_per_prompt
    runs = completions if recipe.learner.layout == "padded" else prompts
    limit = recipe.data.max_prompt_tokens
    return runs * limit + completions * recipe.longest_completion


def _extra(recipe: RLRecipe, shape: ModelShape) -> tuple[ExtraModel, ...]:
    """Models beside the policy, taken to be of its size."""
    found = []
    advantage = recipe.advantage
    critic = isinstance(advantage, CriticAdvantage)
    in_reward = isinstance(advantage, CriticAdvantage) and advantage.kl_in_reward > 0
    regularised = in_reward or any(term.needs_reference for term in recipe.regularisers)
    if regularised and recipe.model.lora is None:
        found.append(ExtraModel("the reference"))
    if critic:
        states = recipe.critic.optimizer_states
        found.append(ExtraModel("the critic", shape.parameters, states))
    if recipe.prime is not None:
        found += _prime(recipe.prime, recipe.model, shape)
    return tuple(found)


def _prime(prime: PrimeSettings, policy: ModelSettings, shape: ModelShape) -> list[ExtraModel]:
    """A reward model, trained unless it is told not to be, and its reference."""
    chosen, base = prime.model or policy, prime.reference or policy
    learns = shape.parameters if chosen.lora is None else shape.trained
    trained = 0 if prime.update == "none" else learns
    own = [ExtraModel("the reward model", trained, prime.optimizer_states)]
    if chosen.lora is None or base.path != chosen.path:
        own.append(ExtraModel("the reward model's reference"))
    return own


def _engine(recipe: RLRecipe) -> EngineWork:
    engine = recipe.rollout.engine
    if isinstance(engine, TransformersEngineSettings):
        return EngineWork(
            "own",
            rows=engine.max_rows,
            completions=recipe.completions_per_step,
            prompt=recipe.data.max_prompt_tokens,
        )
    if isinstance(engine, VllmEngineSettings):
        return EngineWork(
            "vllm",
            cache=None if engine.kv_cache_gib is None else engine.kv_cache_gib * GIB,
            share=engine.memory_share,
            devices=engine.tensor_parallel_size,
            sleeps=engine.sleeps(not recipe.rollout.max_staleness),
        )
    return EngineWork("server")
