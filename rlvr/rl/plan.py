"""``--dry-run``: the resolved recipe and the numbers that follow from it, without loading weights.

The memory estimate is for one process and full float32 training state: weights, gradients and two
AdamW moments (16 bytes a trained parameter), the reference model if there is one, the logits of a
chunk and the log-probabilities kept for the backward pass, the keys and values of the rollout, the
activations of a micro-batch by a formula for Llama-like blocks, and the program with its libraries.
docs/benchmarks/cpu.md holds it against measurements.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rlvr.data import encode_prompts, load_template
from rlvr.learner.methods.prime import PrimeSettings
from rlvr.policy.loading import default_device, model_notes
from rlvr.policy.mixture import ModelSize, model_size
from rlvr.policy.token_stats import KEPT_LOGITS, default_chunk
from rlvr.policy.unloaded import unloaded_model
from rlvr.rl.prompts import load_data
from rlvr.rl.recipe import RLRecipe, stale_warnings
from rlvr.rollout.memory_share import planned_line
from rlvr.rollout.settings import VllmEngineSettings, VllmServerEngineSettings
from rlvr.runs.notices import notices
from rlvr.runs.reward_functions import RewardFunctions
from rlvr.runs.scoring import try_functions
from rlvr.runs.second_judge import check_problems
from rlvr.runs.shown import out_of_reach, prompts_shown, with_tokenizer
from rlvr.settings import to_yaml
from rlvr.types import Problem

_GIB = 2**30
_PROGRAM = 0.6 * _GIB
"""Python, torch and transformers, as measured on a CPU."""


@dataclass(frozen=True)
class ModelShape:
    """What the estimate needs to know of a model."""

    parameters: int
    trained: int
    hidden: int
    intermediate: int
    layers: int
    key_value_width: int
    vocabulary: int
    size: ModelSize


def render_plan(recipe: RLRecipe) -> str:
    """The resolved recipe as YAML, then the derived numbers as comment lines.

    Raises:
        ValueError: The problems or the model's configuration cannot be read, no prompt is short
            enough, or a reward function does not exist, or fails on made-up completions.
    """
    with closing(RewardFunctions(recipe.reward.functions, recipe.steps)) as functions:
        problems, _ = load_data(recipe, functions)
        checked = check_problems(recipe.reward.check, problems)
        try_functions(functions, problems[0], recipe.rollout.sampling.max_tokens)
    updates = recipe.steps * recipe.learner.updates_per_rollout
    advice = [*checked, *_advice(recipe), *notices(recipe, 0, updates)]
    lines = [*_work(recipe, len(problems)), *advice, *_model(recipe, problems)]
    return to_yaml(recipe) + "\n" + "\n".join(f"# {line}" for line in lines)


def _model(recipe: RLRecipe, problems: Sequence[Problem]) -> list[str]:
    """What its configuration and its tokenizer tell; a line, where the Hub is out of reach."""
    try:
        notes, shape = model_notes(recipe.model), model_shape(recipe)
    except ValueError as error:
        if not out_of_reach(error):
            raise
        return [f"the model's size, memory and prompts are not shown: {error}"]
    show = partial(_prompts, recipe, problems)
    return [*notes, *_memory(recipe, shape), *with_tokenizer(recipe.model, show)]


def _prompts(recipe: RLRecipe, problems: Sequence[Problem], tokenizer: Any) -> list[str]:  # noqa: ANN401
    template, limit = load_template(recipe.data.template), recipe.data.max_prompt_tokens
    return prompts_shown(encode_prompts(problems, template, tokenizer, limit), tokenizer)


def _work(recipe: RLRecipe, problems: int) -> list[str]:
    rollout = recipe.rollout
    completions = recipe.completions_per_step
    tokens = completions * rollout.sampling.max_tokens
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
    return recipe.steps * recipe.completions_per_step * recipe.rollout.sampling.max_tokens


def _memory(recipe: RLRecipe, shape: ModelShape) -> list[str]:
    parts = estimate_memory(recipe, shape)
    listed = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in parts.items())
    resident = parts["weights"] + 8 * shape.trained + parts.get("the reward model", 0)
    return [
        f"model: {shape.size.text}, {shape.trained:,} trained",
        f"a token forward: about {2 * shape.size.active:,} FLOPs; the run: at most "
        f"{_tokens(recipe) / shape.parameters:.3g} tokens a parameter",
        f"memory at full lengths, estimated, GiB: {sum(parts.values()) / _GIB:.2f} ({listed})",
        *_engine_share(recipe, int(resident)),
    ]


def _engine_share(recipe: RLRecipe, resident: int) -> list[str]:
    """A line about a vLLM process that shares this machine's GPU with one learner."""
    engine = recipe.rollout.engine
    if not isinstance(engine, VllmEngineSettings) or not torch.cuda.is_available():
        return []
    total = torch.cuda.mem_get_info()[1]
    return [planned_line(engine, not recipe.rollout.max_staleness, total, resident)]


def estimate_memory(recipe: RLRecipe, shape: ModelShape) -> dict[str, float]:
    """Bytes by purpose; see the module docstring for what is counted."""
    regularised = any(term.needs_reference for term in recipe.regularisers)
    copies = 2 if regularised and recipe.model.lora is None else 1
    prime = {} if recipe.prime is None else _prime_memory(recipe.prime, shape)
    length = recipe.data.max_prompt_tokens + recipe.rollout.sampling.max_tokens
    chunk = recipe.learner.logits_chunk or default_chunk(shape.vocabulary, default_device().type)
    width = 2 if recipe.model.precision == "bfloat16" else 4
    tokens = max(recipe.learner.tokens_per_micro_batch, length)
    # Kept for the backward pass of a Llama-like block: about 14 hidden-sized and 4 MLP-sized
    # vectors a token; with checkpointing one hidden-sized vector a block and one block in full.
    block = 14 * shape.hidden + 4 * shape.intermediate
    checkpointing = recipe.model.gradient_checkpointing
    per_token = shape.hidden * shape.layers + block if checkpointing else block * shape.layers
    engine = recipe.rollout.engine
    if isinstance(engine, VllmEngineSettings):
        # A second process with weights and cache of its own, and the weights on their way there.
        rows, cache_gib = 0, engine.kv_cache_gib or 1.0
        own = {"vLLM's process": 2 * width * shape.parameters + cache_gib * _GIB}
    elif isinstance(engine, VllmServerEngineSettings):
        rows, own = 0, {"weights on their way": float(width * shape.parameters)}
    else:
        rows, own = min(engine.max_rows, recipe.completions_per_step), {}
    generation = 2 * shape.key_value_width * shape.layers * length * rows * width
    return (
        own
        | prime
        | {
            "weights": 4 * shape.parameters * copies,
            "gradients and moments": 12 * shape.trained,
            "the larger of update and rollout": max(
                tokens * per_token * width + 4 * (KEPT_LOGITS + 3 * chunk * shape.vocabulary),
                generation,
            ),
            "the program": _PROGRAM,
        }
    )


def _prime_memory(prime: PrimeSettings, shape: ModelShape) -> dict[str, float]:
    """A reward model of the policy's size, with its moments where it learns, and its reference."""
    state = 0 if prime.update == "none" else 12 * shape.trained
    copies = 1 if shape.trained < shape.parameters else 2
    return {"the reward model": float(4 * shape.parameters * copies + state)}


def model_shape(recipe: RLRecipe) -> ModelShape:
    """Read the model's configuration and count its parameters without allocating them."""
    model = unloaded_model(recipe.model)
    causal_lm = model.get_base_model() if recipe.model.lora is not None else model
    size, text = model_size(causal_lm), causal_lm.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1  # recurrent models have none
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    dense = _largest(getattr(text, "intermediate_size", None)) or 4 * text.hidden_size
    # What a token goes through: of a mixture, its experts.
    expert = _largest(getattr(text, "moe_intermediate_size", None)) or dense
    return ModelShape(
        parameters=size.total,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        hidden=text.hidden_size,
        intermediate=expert * size.experts_per_token if size.experts else dense,
        layers=text.num_hidden_layers,
        key_value_width=head_size * (getattr(text, "num_key_value_heads", None) or heads),
        vocabulary=text.vocab_size,
        size=size,
    )


def _largest(sizes: int | list[int] | None) -> int | None:
    """Some families give one for every layer."""
    return max(sizes) if isinstance(sizes, list) else sizes
