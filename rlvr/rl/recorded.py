"""The recipe of a recorded run, for what reads its ledger: ``rlvr audit`` and ``rlvr replay``."""

from pathlib import Path

from rlvr.rl.recipe import RLRecipe
from rlvr.runs.ledger import LEDGER
from rlvr.runs.run_folder import not_a_run
from rlvr.settings import load_settings, read_recipe


def recipe_with_ledger(run: Path) -> RLRecipe:
    """The recipe of a run of reinforcement learning that keeps a ledger.

    Raises:
        ValueError: The folder holds no such run.
    """
    path = run / "recipe.yaml"
    if not path.is_file():
        raise ValueError(not_a_run(run))
    task = read_recipe(path).data.get("task", "rl")
    if task != "rl":
        raise ValueError(
            f"{str(run)!r} is a run of task {task!r}, which samples no completions to learn from "
            "and keeps no ledger; name a run of reinforcement learning (task: rl)"
        )
    recipe = load_settings(RLRecipe, path)
    if recipe.log.ledger == "none" and not (run / LEDGER).is_file():
        raise ValueError(
            f"{str(run)!r} keeps no ledger, as log.ledger is none in its recipe; nothing can be "
            "audited or sampled again"
        )
    return recipe
