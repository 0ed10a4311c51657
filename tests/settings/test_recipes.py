"""Every recipe of the repository loads, and an heir says only what its base does not."""

from pathlib import Path

import pytest

from rlvr.distill.recipe import DistillRecipe
from rlvr.settings import load_settings, read_recipe, to_yaml
from rlvr.tasks.registry import task_of

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "recipes").rglob("*.yaml")
    if path.parent.name not in ("accelerate", "plan")
)


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_loads_and_is_written_whole(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    schema = DistillRecipe if path.parent.name == "distill" else task_of(path).schema
    assert "\nbase:" not in to_yaml(load_settings(schema, path))
    assert all(source.is_relative_to("recipes") for source, _ in read_recipe(path).layers)


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if len(read_recipe(ROOT / path).layers) > 1], ids=str
)
def test_an_heir_repeats_nothing_of_its_base(path):
    (_, own), (base, _), *_ = read_recipe(ROOT / path).layers
    inherited = read_recipe(base).data
    assert [name for name in own if is_part(own[name], inherited.get(name))] == []


def is_part(own, inherited):
    """Whether the base says all of it already."""
    if isinstance(own, dict) and isinstance(inherited, dict):
        return all(name in inherited and is_part(own[name], inherited[name]) for name in own)
    return own == inherited
