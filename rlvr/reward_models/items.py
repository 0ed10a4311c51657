"""What an optimizer step of an explicit reward model is made of, from labelled responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlvr.data.examples import Examples
from rlvr.reward_models.outcome_losses import RewardLoss
from rlvr.reward_models.pairs import PairSettings, build_pairs, held_out_prompts, members


def make_items(responses: Examples, loss: RewardLoss, pairs: PairSettings, seed: int) -> Examples:
    """What a loss learns from: pairs, single responses, or all responses of a prompt.

    Args:
        responses: The training data, an example each.
        loss: Says what an item is.
        pairs: Which pairs, where it is a pair.
        seed: Which are drawn.

    Raises:
        ValueError: There is nothing to learn from.
    """
    labels, groups = responses.labels, responses.groups
    if loss.unit == "pairs":
        return replace(responses, rows=tuple(build_pairs(labels, groups, pairs, seed)))
    if loss.unit == "responses":
        return responses
    lists = [
        tuple(rows)
        for rows in members(groups).values()
        if 0 < sum(labels[row] for row in rows) < len(rows)
    ]
    if not lists:
        raise ValueError(
            f"none of {len(set(groups))} problems has both right and wrong responses, so there are "
            "no lists to learn from; sample more of each, or use ce"
        )
    return replace(responses, rows=tuple(lists))


def split(
    whole: Examples, prompts: Sequence[str], share: float, seed: int
) -> tuple[Examples, Examples]:
    """What is trained on, and a share of the prompts, with all their responses, that is not.

    By ``prompts``, what the model reads: one may stand in the data under several ids.

    Raises:
        ValueError: Nothing would be left to train on.
    """
    out = held_out_prompts(prompts, share, seed)
    training, held_out = (
        whole.select([row for row, prompt in enumerate(prompts) if (prompt in out) == held])
        for held in (False, True)
    )
    return training, held_out
