"""``--dry-run`` of a preference recipe: the resolved recipe and the numbers that follow from it."""

from rlvr.data.preferences import load_preferences
from rlvr.settings import to_yaml
from rlvr.train.preference_recipe import PreferenceRecipe


def render_plan(recipe: PreferenceRecipe) -> str:
    """The recipe as YAML, then the derived numbers as comment lines.

    Raises:
        ValueError: The preferences cannot be read.
    """
    count = len(load_preferences(recipe.data.source, recipe.kind))
    what = "pairs" if recipe.kind == "pairs" else "labelled completions"
    epochs = recipe.steps * recipe.data.per_step / count
    reference = "none"
    if recipe.needs_reference:
        reference = "in every step" if recipe.live_reference else "once, before training"
    lines = [
        f"{what}: {count}",
        f"the run: {recipe.steps} steps of {recipe.data.per_step}, {epochs:.2f} epochs",
        f"loss: {' + '.join(f'{loss.weight:g} x {loss.name}' for loss in recipe.losses)}",
        f"reference log-probabilities: {reference}",
    ]
    return to_yaml(recipe) + "\n" + "\n".join(f"# {line}" for line in lines)
