"""What a person should know although a run goes on: rates that jump, settings without effect."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlvr.learner.settings import UpdateSettings
from rlvr.runs.base_recipe import BaseRecipe

if TYPE_CHECKING:
    from rlvr.runs.parent import Branch


def notices(
    recipe: BaseRecipe, updates: int, total_updates: int, before: int | None = None
) -> list[str]:
    """All of them.

    Args:
        recipe: The run's.
        updates: Updates taken so far.
        total_updates: Updates of the whole run.
        before: The same when the checkpoint was written that the run goes on from, if any.
    """
    found = precision_notice(recipe.model.precision) + warmup_notice(recipe.learner, total_updates)
    if before is not None:
        found += schedule_notice(recipe.learner, updates, before, total_updates)
    return found


def warmup_notice(settings: UpdateSettings, total_updates: int) -> list[str]:
    """Say that a warm-up does not end within a run of so many updates."""
    schedule = settings.schedule
    if schedule.warmup_updates < total_updates:
        return []
    highest = settings.lr * schedule.fraction(total_updates - 1, total_updates)
    return [
        f"learner.schedule.warmup_updates = {schedule.warmup_updates} is not over when the run of "
        f"{total_updates} updates is: the learning rate comes up to {highest:.3g} instead of "
        f"{settings.lr:.3g}"
    ]


def schedule_notice(settings: UpdateSettings, update: int, before: int, now: int) -> list[str]:
    """Say that the learning rate jumps where a run goes on with another number of updates.

    Args:
        settings: The schedule, and the peak of the rate.
        update: Updates taken so far.
        before: Updates of the whole run, when the checkpoint was written.
        now: The same, now.
    """
    schedule = settings.schedule
    was, becomes = (settings.lr * schedule.fraction(update, total) for total in (before, now))
    if was == becomes:
        return []
    return [
        f"the run was {before} updates long and is now {now}: the learning rate of the next update "
        f"is {becomes:.3g} instead of {was:.3g}, because learner.schedule ({schedule.shape}) is "
        "laid out over the whole run; with the steps of before it goes on as it was"
    ]


def branch_notice(
    branch: Branch, settings: UpdateSettings, state: Mapping[str, Any], updates: int, total: int
) -> list[str]:
    """Say that the learning rate of a branch begins elsewhere than its parent's would go on.

    Args:
        branch: Where it begins.
        settings: Its schedule, and the peak of the rate.
        state: The parent's at the checkpoint.
        updates: Updates taken so far.
        total: Updates of the whole branch.
    """
    try:
        old = type(settings).model_validate_json(json.dumps(branch.recipe.get("learner", {})))
    except ValueError:  # of another version
        return []
    was = old.lr * old.schedule.fraction(state["updates"], state["total_updates"])
    becomes = settings.lr * settings.schedule.fraction(updates, total)
    if was == becomes:
        return []
    return [
        f"the learning rate of the next update is {becomes:.3g}; the parent's would be {was:.3g}"
    ]


def precision_notice(precision: str) -> list[str]:
    """Say that a launcher's mixed precision has no effect."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked in ("", "no") or (asked, precision) == ("bf16", "bfloat16"):
        return []
    return [
        f"ACCELERATE_MIXED_PRECISION = {asked} has no effect: the run computes in "
        f"model.precision = {precision}, as its recipe says"
    ]
