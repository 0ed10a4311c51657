"""What a start would refuse, ``--dry-run`` refuses."""

import json

import pytest
import yaml

from tests.command import call, refused


@pytest.fixture
def recipe_file(tmp_path):
    def write(values):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


ZERO_3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def test_an_engine_on_weights_that_zero_3_shards(recipe_values, recipe_file, tmp_path):
    recipe = recipe_file(recipe_values)
    assert "ZeRO 3" in refused("train", recipe, "--dry-run", environment=ZERO_3)
    ranks = {"WORLD_SIZE": "2", "RANK": "0"}
    assert call("train", recipe, "--dry-run", environment=ranks).returncode == 0
    sizes = ["--slurm", "--nodes", "1", "--gpus-per-node", "2", "--dry-run"]
    line = refused("launch", recipe, *sizes, "--accelerate", "zero3", folder=tmp_path)
    assert "ZeRO 3" in line
    assert call("launch", recipe, *sizes, folder=tmp_path).returncode == 0


def test_problems_answered_by_weights_that_zero_3_shards(preference_values, recipe_file):
    recipe = recipe_file(preference_values)
    assert "evaluation.sets names 'sums'" in refused(
        "train", recipe, "--dry-run", environment=ZERO_3
    )


@pytest.mark.parametrize("verb", [("train",), ("launch", "--slurm")])
def test_a_reward_function_that_is_not_there(recipe_values, recipe_file, verb, tmp_path):
    recipe = recipe_file(recipe_values)
    overrides = ["reward.functions=[{function: acuracy}]", "--dry-run"]
    assert "acuracy" in refused(verb[0], recipe, *verb[1:], *overrides, folder=tmp_path)


@pytest.mark.parametrize("values", ["recipe_values", "preference_values"])
def test_evaluation_sets_that_cannot_be_read(values, recipe_file, request):
    recipe = recipe_file(request.getfixturevalue(values))
    missing = {"name": "file", "path": "missing.jsonl"}
    override = f"evaluation.sets={json.dumps({'more': missing})}"
    assert "missing.jsonl" in refused("train", recipe, override, "--dry-run")


def test_held_out_pairs_that_cannot_be_read(preference_values, recipe_file):
    recipe = recipe_file(preference_values)
    missing = {"name": "file", "path": "missing.jsonl"}
    override = f"evaluation.pairs={json.dumps({'held_out': missing})}"
    assert "missing.jsonl" in refused("train", recipe, override, "--dry-run")


def shown(done):
    """The comment lines after the recipe."""
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["output"], "still a recipe"
    return [line.removeprefix("# ") for line in done.stdout.splitlines() if line.startswith("#")]


def test_two_prompts_are_shown_with_special_tokens_and_where_the_completion_begins(
    recipe_values, recipe_file
):
    recipe = recipe_file(recipe_values)
    template = '{mode: text, user: "{problem}\\nThink.\\n"}'
    lines = shown(call("train", recipe, f"data.template={template}", "data.max_prompt_tokens=99",
                       "--dry-run"))  # fmt: skip
    titles = [line for line in lines if line.startswith("prompt of problem")]
    assert len(titles) == 2
    text = "\n".join(lines[lines.index(titles[0]) + 1 : lines.index(titles[1])])
    assert "\n| Think.\n| [" in text
    assert text.endswith("[the completion begins here]")


def test_prompts_that_are_too_long_are_counted_and_none_left_is_refused(recipe_values, recipe_file):
    recipe = recipe_file(recipe_values)
    source = "{name: arithmetic, digits: 2, size: 60}"
    override = (f"data.source={source}", "data.max_prompt_tokens=6", "--dry-run")
    assert any("longer than 6 tokens" in line for line in shown(call("train", recipe, *override)))
    assert "max_prompt_tokens=1" in refused(
        "train", recipe, "data.max_prompt_tokens=1", "--dry-run"
    )


def test_two_examples_are_shown_with_what_is_learnt(preference_values, recipe_file):
    lines = shown(call("train", recipe_file(preference_values), "--dry-run"))
    titles = [line for line in lines if line.startswith("example ")]
    assert [title.split(",")[0] for title in titles] == ["example 1"] * 2 + ["example 2"] * 2
    assert "completion 1 of 2" in titles[0]
    text = lines[lines.index(titles[0]) + 1]
    assert text.count("[trained from here]") == text.count("[to here]") == 1
    assert any(line.startswith("memory of a") for line in lines)


def test_demonstrations_and_steps_are_shown(tiny_folder, recipe_file, tmp_path):
    rows = [{"prompt": "1+1=", "response": "One.\n\nTwo.", "label": 1, "correct": True}] * 2
    rows += [{"prompt": "1+2=", "response": "Four", "label": 0, "correct": False}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "sft",
        "output": str(tmp_path / "run"),
        "steps": 1,
        "model": {"path": str(tiny_folder)},
        "data": {"sources": [str(data)]},
    }
    text = "\n".join(shown(call("train", recipe_file(values), "--dry-run")))
    assert "| <bos>1+1=[trained from here]One.\n|" in text
    values |= {"task": "prm", "objective": {"name": "bag"}}
    text = "\n".join(shown(call("train", recipe_file(values), "--dry-run")))
    assert "[step]Two." in text
    values |= {"objective": {"name": "ce"}}
    lines = shown(call("train", recipe_file(values), "--dry-run"))
    assert any(line.startswith("example 1, ") and ", label 1" in line for line in lines)


def test_a_model_that_cannot_be_reached_leaves_out_what_needs_it(
    recipe_values, preference_values, recipe_file, monkeypatch
):
    for values in (recipe_values, preference_values):
        values["model"] = {"path": "someone/far-away"}
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        lines = shown(call("train", recipe_file(values), "--dry-run"))
        assert any("not shown: no " in line and "far-away" in line for line in lines)


def test_a_tokenizer_that_is_not_there_leaves_out_the_prompts(recipe_values, recipe_file, tmp_path):
    (tmp_path / "empty").mkdir()
    override = f"model.tokenizer={tmp_path / 'empty'}"
    lines = shown(call("train", recipe_file(recipe_values), override, "--dry-run"))
    assert any(line.startswith("what the model reads is not shown: no tok") for line in lines)
    assert any(line.startswith("memory of a") for line in lines)
