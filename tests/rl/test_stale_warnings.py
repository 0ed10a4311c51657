"""A recipe whose rollouts are older than its updates is told what is then not as it says."""

import pytest

from rlvr.rl.plan import render_plan
from rlvr.rl.recipe import RLRecipe, stale_warnings
from rlvr.settings import load_settings

STALE = ["rollout.engine.name=vllm", "rollout.engine.sleep=0", "rollout.max_staleness=1"]
LP_REG = "regularisers=[{name: lp_reg}]"
TOP = "filters=[{name: top_entropy}]"


def warnings(values, *overrides):
    values["rollout"] = {"prompts_per_step": 4, "samples_per_prompt": 4}
    return stale_warnings(load_settings(RLRecipe, values, overrides))


def test_a_ratio_of_1_without_a_correction_is_told(recipe_values):
    assert warnings(recipe_values) == []
    (told,) = warnings(recipe_values, *STALE)
    assert "correction is none" in told
    assert "up to 1 versions old" in told
    for cure in ("correction.name=truncated", "correction.name=masked"):
        assert warnings(recipe_values, *STALE, cure) == []
    assert warnings(recipe_values, *STALE, "learner.old_logprobs_from=rollout") == []


def test_groups_that_wait_are_as_old(recipe_values):
    (told,) = warnings(recipe_values, "rollout.oversample=2", "rollout.carry_over_steps=2")
    assert "up to 2 versions old" in told


@pytest.mark.parametrize(("part", "name"), [(LP_REG, "lp_reg"), (TOP, "top_entropy")])
def test_statistics_that_no_engine_reports_are_told(recipe_values, part, name):
    cure = "correction.name=truncated"
    (told,) = warnings(recipe_values, *STALE, cure, part)
    assert told.startswith(f"warning: {name}: ")
    assert warnings(recipe_values, cure, part) == []
    # What the engine does report needs no word.
    assert warnings(recipe_values, *STALE, cure, "filters=[{name: clip_cov}]") == []


def test_a_dry_run_says_it(recipe_values):
    recipe_values["rollout"] = {"oversample": 2, "carry_over_steps": 1}
    plan = render_plan(load_settings(RLRecipe, recipe_values, ["rollout.prompts_per_step=4"]))
    assert "# warning: rollouts up to 1 versions old" in plan
