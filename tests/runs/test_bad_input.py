"""What a user can get wrong: one line that says what and how to mend it, exit code 2, no trace."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from rlvr.rl.recipe import RLRecipe
from rlvr.runs.run_folder import check_folder
from rlvr.settings import load_settings, to_yaml
from tests.command import call, refused

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2_arithmetic.yaml"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("rollout.sampling.temperature=0", "nothing to learn from"),
        ("rollout.sampling.top_p=0.9", "set top_p = 1"),
        ("rollout.samples_per_prompt=1", "sample at least 2"),
        ("learner.updates_per_rollout=7", "cannot split"),
        ("regularisers=[{name: kl}, {name: kl}]", "name one twice"),
        ("policy_loss.name=clp", "'clip'"),
        ("data.template=qwen_maths", "'qwen_math'"),
        ("data.source.name=aritmetic", "'arithmetic'"),
        ("seed=99999999999999999999999999", "less than 18446744073709551616"),
        ("evaluation.sets={a/b: {name: arithmetic}}", "evaluation.sets names 'a/b'"),
        ("steps=0", "greater than or equal to 1"),
        ("rollout.accuracy_range=[0.2,0.8]", "has nothing to choose from"),
        ("rollout={accuracy_range: [0.8,0.2], dynamic_sampling_rounds: 1}", "no range within"),
        ("prime={update: none}", "every reward is 0"),
        ("prime={returns: {form: printed}}", "'released'"),
    ],
)
def test_impossible_recipes_are_refused_before_anything_loads(recipe_values, override, part):
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_settings(RLRecipe, recipe_values, [override])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_packing_needs_an_attention_that_takes_a_mask(recipe_values):
    overrides = ["learner.layout=packed", "model.attention=flash_attention_2"]
    with pytest.raises(ValueError, match="needs a block mask"):
        load_settings(RLRecipe, recipe_values, overrides)


@pytest.fixture
def recipe_file(recipe_values, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    return path


def problems(tmp_path, *rows):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.source={{name: file, path: {path}}}"


GOOD = {"id": "a", "problem": "1+1=", "answer": "2"}


def test_faults_found_while_loading(recipe_file, tmp_path):
    """Through the real command line."""
    assert "is not a file" in refused("train", tmp_path / "none.yaml")
    assert "does not exist" in refused("train", recipe_file, "model.path=./none")
    missing = f"data.source={{name: file, path: {tmp_path}/none.jsonl}}"
    assert "none.jsonl" in refused("train", recipe_file, missing)
    renamed = problems(tmp_path, {"question": "1+1=", "answer": "2"})
    assert "'problem'" in refused("train", recipe_file, renamed)
    assert "is empty" in refused("train", recipe_file, problems(tmp_path)).replace(
        "no problems", "is empty"
    )
    assert "answer" in refused("train", recipe_file, problems(tmp_path, {**GOOD, "answer": ""}))
    assert "answer" in refused("train", recipe_file, problems(tmp_path, {**GOOD, "answer": [2]}))
    twice = problems(tmp_path, GOOD, {**GOOD, "problem": "1+2=", "answer": "3"})
    assert "'a'" in refused("train", recipe_file, twice)
    long = problems(tmp_path, {**GOOD, "problem": "1+" * 200})
    assert "max_prompt_tokens=16" in refused("train", recipe_file, long)
    context = refused("train", recipe_file, "rollout.sampling.max_tokens=300")
    assert "exceeds the model's context of 256" in context
    assert "acuracy" in refused("train", recipe_file, "reward.functions=[{function: acuracy}]")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("output=/proc/run", "output '/proc/run' cannot be written"),
        ("output=FILE/sub", "is a file); choose another output"),
        ("model.path=FILE", "is a file; give a folder or a Hub id"),
        ("log.track=[wandb]", "'wandb', which is not installed; run: pip install"),
    ],
)
def test_faults_found_before_anything_is_written(
    recipe_values, tmp_path, monkeypatch, override, part
):
    from rlvr.rl.train import train
    from rlvr.runs import trackers

    file = tmp_path / "file"
    file.write_text("precious")
    override = override.replace("FILE", str(file))
    recipe = load_settings(RLRecipe, recipe_values, [override])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\S") as caught:
        train(recipe)
    assert part in str(caught.value)
    assert not Path(recipe_values["output"]).exists()
    assert file.read_text() == "precious"


def test_a_tokenizer_of_another_model_is_refused(recipe_values, guessing_folder, tmp_path):
    """Its ids would be looked up beyond the end of the embedding."""
    from rlvr.policy.tiny import TinySettings, build_tiny_model
    from rlvr.rl.train import train

    shape = TinySettings(hidden_size=32, layers=1, heads=2, key_value_heads=2)
    build_tiny_model(0, 12, shape).save_pretrained(tmp_path / "small")
    overrides = [f"model.path={tmp_path}/small", f"model.tokenizer={guessing_folder}"]
    with pytest.raises(ValueError, match=r"but the model has 12 embeddings; set model.tokenizer"):
        train(load_settings(RLRecipe, recipe_values, overrides))


def test_a_tokenizer_without_chat_template_is_refused(recipe_file, guessing_folder, tmp_path):
    import shutil

    copy = shutil.copytree(guessing_folder, tmp_path / "bare")
    (copy / "chat_template.jinja").unlink()
    line = refused("train", recipe_file, f"model.path={copy}")
    assert "has no chat template" in line
    assert "raw" in line


def test_an_output_folder_with_something_in_it_is_not_touched(recipe_file, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    assert "contains other files" in refused("train", recipe_file)
    assert (folder / "thesis.tex").read_text() == "precious"
    (folder / "thesis.tex").unlink()
    assert call("train", recipe_file, "steps=1").returncode == 0
    assert "--resume" in refused("train", recipe_file)
    line = refused("train", recipe_file, "learner.lr=0.5", "--resume")
    assert "other settings" in line
    assert "0.003" in line


def test_processes_that_cannot_find_each_other_are_refused(recipe_values, monkeypatch):
    from rlvr.rl.train import train

    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 2 and RANK, .*by accelerate launch"):
        train(load_settings(RLRecipe, recipe_values))
    assert not Path(recipe_values["output"]).exists()


def test_a_disk_that_fills_up_during_a_checkpoint_costs_nothing(recipe_values, tmp_path):
    """On a real small file system: the second checkpoint does not fit, the first stays."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)]
    if subprocess.run(size, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        recipe = tmp_path / "recipe.yaml"
        values = {**recipe_values, "output": str(folder / "run"), "checkpoint": {"every": 2}}
        recipe.write_text(yaml.safe_dump(values))
        line = refused("train", recipe)
        assert "the checkpoint of step 4 could not be written" in line
        assert "step_000002 is intact" in line
        subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)
        done = call("train", recipe, "--resume")
        assert done.returncode == 0, done.stderr
        assert "resuming after step 2" in done.stdout
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_typing_errors_on_the_command_line():
    assert "No such command" in refused("trian")
    assert "No such option" in refused("train", "x.yaml", "--rezume")
    assert "give a recipe" in refused("train")
    assert "no setting begins with 'lerner'" in refused("settings", "lerner")
    assert "not of the form" in refused("train", RECIPE, "steps")


@pytest.mark.parametrize("command", [[], ["train"], ["quickstart"], ["report"], ["doctor"]])
def test_help_teaches(command):
    done = call(*command, "--help")
    assert done.returncode == 0
    assert len(done.stdout) > 200


def test_dry_run_prints_a_recipe_that_reads_back_and_the_numbers(recipe_file, recipe_values):
    done = call("train", recipe_file, "steps=7", "--dry-run")
    assert done.returncode == 0, done.stderr
    resolved = load_settings(RLRecipe, yaml.safe_load(done.stdout))
    assert resolved == load_settings(RLRecipe, recipe_values, ["steps=7"])
    assert "6 prompts x 6 samples = 36 completions, at most 288 tokens" in done.stdout
    assert "7 steps, 14 updates" in done.stdout
    assert not Path(recipe_values["output"]).exists()


def test_a_run_goes_on_with_its_servers_elsewhere_and_scripts_of_its_launch_in_its_folder(
    recipe_values, tmp_path
):
    """A job that is queued again gets other nodes."""
    folder = tmp_path / "run"
    (folder / "launch").mkdir(parents=True)
    (folder / "launch" / "job.sh").write_text("#!/bin/bash")

    def served_at(host, **more):
        engine = {"name": "vllm_server", "addresses": [f"http://{host}:8000"]}
        engine["weights_folder"] = f"/shared/{host}"
        rollout = {**recipe_values["rollout"], "engine": {**engine, **more}}
        return load_settings(RLRecipe, {**recipe_values, "rollout": rollout})

    check_folder(served_at("node1"), resume=False)
    (folder / "recipe.yaml").write_text(to_yaml(served_at("node1")))
    check_folder(served_at("node2", start_timeout_s=5.0), resume=True)
    with pytest.raises(
        ValueError, match=r"other settings: rollout.engine.sync_tolerance was null and is 1\.0"
    ):
        check_folder(served_at("node2", sync_tolerance=1.0), resume=True)
