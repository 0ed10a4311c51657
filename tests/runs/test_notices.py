"""Rates that jump and settings without effect are said, not found out."""

import io

import pytest
import yaml
from rich.console import Console

from rlvr.learner.settings import Schedule, UpdateSettings
from rlvr.rl.train import train
from rlvr.runs.notices import precision_notice, schedule_notice, warmup_notice
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task
from tests.command import call


def learner(**schedule):
    return UpdateSettings(lr=1.0, schedule=Schedule(**schedule))


def test_a_schedule_that_another_length_moves_is_told():
    linear = learner(shape="linear")
    (line,) = schedule_notice(linear, 4, 8, 16)
    assert "is 0.75 instead of 0.5" in line
    assert schedule_notice(linear, 4, 8, 8) == []
    assert schedule_notice(learner(), 4, 8, 16) == []
    assert schedule_notice(learner(shape="cosine"), 8, 8, 16)


def test_a_warm_up_as_long_as_the_run_is_told():
    (line,) = warmup_notice(learner(warmup_updates=9), 4)
    assert "comes up to 0.4 instead of 1" in line
    assert warmup_notice(learner(warmup_updates=4), 4)
    assert warmup_notice(learner(warmup_updates=3), 4) == []


@pytest.mark.parametrize(
    ("asked", "precision", "told"),
    [
        ("bf16", "float32", True),
        ("fp16", "bfloat16", True),
        ("bf16", "bfloat16", False),
        ("no", "float32", False),
    ],
)
def test_a_launcher_s_precision_is_told_where_the_recipe_says_another(
    monkeypatch, asked, precision, told
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    assert bool(precision_notice(precision)) == told


def test_a_run_says_it_when_it_begins_and_goes_on(recipe_values, tmp_path, monkeypatch):
    def said(*overrides, resume=False):
        recipe = load_settings(find_task("rl").schema, recipe_values, overrides)
        console = Console(file=io.StringIO(), width=1000)
        train(recipe, resume=resume, console=console)
        return console.file.getvalue()

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    shape = "learner.schedule={shape: linear}"
    assert "ACCELERATE_MIXED_PRECISION = bf16 has no effect" in said(shape, "steps=2")
    later = said(shape, "steps=4", resume=True)
    assert "the run was 4 updates long and is now 8" in later
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    warmup = "learner.schedule.warmup_updates=4"
    planned = call("train", recipe, warmup, "steps=2", "--dry-run").stdout
    assert "# learner.schedule.warmup_updates = 4 is not over" in planned
