"""PRIME in a run: its reward model is built, saved and exported beside the policy."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rlvr.learner import PrimeTraining, RewardModel
from rlvr.policy import ModelSettings, Policy, load_policy, policy_writer
from rlvr.prm import steps_of_ids
from rlvr.ranks import Ranks
from rlvr.rollout.weights import merged_buckets, write_model
from rlvr.train.recipe import RLRecipe
from rlvr.train.scoring import Scored

FOLDER = "prm"
"""Where a checkpoint, and the run folder in the end, hold the reward model."""


def build_prime(
    recipe: RLRecipe, policy: Policy, checkpoint: Path | None, device: torch.device | None
) -> PrimeTraining | None:
    """The reward model of a recipe, from its checkpoint if there is one; None without PRIME.

    Raises:
        ValueError: There is no such model, or it has another vocabulary than the policy.
    """
    if recipe.prime is None:
        return None
    settings = recipe.prime.model or recipe.model
    trained = recipe.prime.update != "none"
    saved = checkpoint / FOLDER if checkpoint is not None and trained else None
    model = load_policy(settings, saved=saved, device=device)
    check_vocabulary(policy, model, settings)
    if not trained:
        model.requires_grad_(False).eval()
    base, reference = recipe.prime.reference or recipe.model, None
    if not model.has_adapters or base.path != settings.path:  # else its own base serves
        reference = load_policy(_whole(base)).requires_grad_(False).eval()
        check_vocabulary(policy, reference, base)
    return PrimeTraining(RewardModel(model), reference, recipe.prime, recipe.advantage)


def _whole(settings: ModelSettings) -> ModelSettings:
    return settings.model_copy(update={"lora": None})


def check_vocabulary(policy: Policy, model: Policy, settings: ModelSettings) -> None:
    """See that a model takes the policy's tokens.

    Raises:
        ValueError: It has another vocabulary.
    """
    sizes = [p.causal_lm.get_input_embeddings().num_embeddings for p in (policy, model)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the reward model or reference {settings.path!r} has {sizes[1]} embeddings and the "
            f"policy {sizes[0]}: they do not share a tokenizer; choose models of one family"
        )


def reward_model_writer(
    prime: PrimeTraining | None, *, keep: bool, copy: bool
) -> Callable[[Path], None]:
    """What writes a trained reward model into a checkpoint; weights are gathered now."""
    if prime is None or not prime.trained:
        return lambda path: None
    write = policy_writer(prime.model.policy, keep=keep, copy=copy)
    return lambda path: write(path / FOLDER)


def add_token_rewards(
    rows: Sequence[dict[str, Any]],
    items: Sequence[Scored],
    rewards_BT: torch.Tensor,
    tokenizer: Any,  # noqa: ANN401
    steps: str,
) -> None:
    """Add to kept completions what each token was given, and where steps end.

    Args:
        rows: As :func:`rlvr.train.log.completion_row` made them.
        items: What they were made of: the first of the batch, in its order.
        rewards_BT: Token rewards of the batch.
        tokenizer: Says where tokens begin in the text.
        steps: How steps are found (:func:`rlvr.prm.step_starts`).
    """
    for row, item, rewards_T in zip(rows, items, rewards_BT.tolist(), strict=False):
        ids = item.completion.token_ids
        row["token_rewards"] = [round(reward, 5) for reward in rewards_T[: len(ids)]]
        row["step_ends"] = steps_of_ids(tokenizer, ids, steps)


def export_reward_model(
    prime: PrimeTraining | None,
    tokenizer: Any,  # noqa: ANN401
    folder: Path,
    ranks: Ranks,
) -> None:
    """Write a trained reward model as ``folder/prm``, whole or not at all; collective."""
    if prime is None or not prime.trained:
        return
    model = prime.model.policy
    if not ranks.first:
        for _ in merged_buckets(model, torch.float32):
            pass  # sharded weights are gathered by all
        return
    target, partial = folder / FOLDER, folder / f".{FOLDER}.partial"
    for leftover in (partial, target):
        shutil.rmtree(leftover, ignore_errors=True)
    write_model(model, partial, torch.float32)
    tokenizer.save_pretrained(partial)
    partial.rename(target)
