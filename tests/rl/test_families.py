"""Reinforcement learning, as the default recipe does it, with models of several families."""

import json

import pytest
import torch

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from tests.benchmarks.families import EXACT, measure_apart
from tests.command import refused
from tests.families import FAMILIES, write_family
from tests.policy.test_folders import tiny_llava
from tests.training import column, run, small_recipe

VARIETY = """
def variety(item):
    return float(len(set(item.response)) % 3)
"""


@pytest.fixture
def recipe(tmp_path):
    def of(family, **model):
        folder = tmp_path / "model"
        if family == "llava":
            from rlvr.policy.tiny import character_tokenizer

            tiny_llava().save_pretrained(folder)
            character_tokenizer().save_pretrained(folder)
        else:
            write_family(family, folder)
        values = small_recipe(folder, tmp_path / "run") | {"steps": 1}
        values["model"] |= model
        values["rollout"] |= {"prompts_per_step": 2, "samples_per_prompt": 3}
        del values["evaluation"]
        return values

    return of


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "sdpa"),
        ("qwen3", "sdpa"),
        ("lfm2", "sdpa"),
        ("qwen3_5", "sdpa"),
        ("llava", "sdpa"),
        ("mamba2", "eager"),
        ("bloom", "eager"),
        ("gpt_oss", "eager"),
    ],
)
def test_a_step_is_taken_and_the_model_is_written(recipe, family, attention, tmp_path):
    values = recipe(family, attention=attention)
    (tmp_path / "rewards.py").write_text(VARIETY)
    function = json.dumps({"function": f"{tmp_path / 'rewards.py'}:variety"})
    folder, metrics = run(values, f"reward.functions=[{function}]")
    (differences,) = column(metrics, "mismatch/difference_max")
    assert differences < 1e-4
    start, end = (
        load_policy(ModelSettings(path=str(path), attention=attention))
        for path in (values["model"]["path"], folder / "model")
    )
    weights = start.causal_lm.state_dict()
    moved = [n for n, w in end.causal_lm.state_dict().items() if not torch.equal(w, weights[n])]
    assert moved


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("mamba2", "set model.attention=eager"),
        ("gemma2", "soft cap"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_what_does_not_train_leaves_no_folder(recipe, family, message, more, tmp_path):
    values = recipe(family)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(values))
    assert message in refused("train", file, *more)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_or_says_why_not(family):
    found = measure_apart(family, 300)
    if "not built" in found:
        pytest.skip(f"no tiny configuration: {found['not built']}")
    assert "failed" not in found, found["failed"]
    if "refused" not in found:
        assert found["difference"] < EXACT
        assert found["saved"] < EXACT
        assert found["lora"].startswith("exact")
