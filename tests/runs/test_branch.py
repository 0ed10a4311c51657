"""A run branches from a checkpoint of another: what it takes over, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from rlvr.files import locked
from rlvr.runs.log import read_metrics
from tests.command import call, refused
from tests.rl.test_train import figures, same_weights, weights
from tests.tasks.test_reward_model import rows_of, write
from tests.training import column, run, small_recipe


@pytest.fixture(scope="module")
def parent(guessing_folder, tmp_path_factory):
    """A run of six steps with every checkpoint, not to be changed."""
    folder = tmp_path_factory.mktemp("parent")
    values = {**small_recipe(guessing_folder, folder / "run"), "output": "run"}
    values["checkpoint"] = {"every": 2, "keep": 9}
    values["learner"]["schedule"] = {"shape": "linear"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert call("train", "recipe.yaml", folder=folder).returncode == 0
    return folder / "run"


def train(folder, *words):
    """Branch in a folder; what the command printed, in one line each."""
    done = call("train", *words, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def later(folder, step):
    return [row for row in figures(folder) if row["step"] > step]


def test_with_nothing_changed_it_is_the_rest_of_its_parent(parent, tmp_path):
    said = train(tmp_path, "--from", f"{parent}@2", "output=again")
    again = tmp_path / "again"
    assert f"branching after step 2 from {parent}" in said
    assert "changed:" not in said
    assert same_weights(weights(again), weights(parent))
    assert later(again, 2) == later(parent, 2)
    recorded = json.loads((again / "run.json").read_text())["parent"]
    assert recorded["folder"] == str(parent)
    assert recorded["step"] == 2
    assert len(recorded["digest"]) == 64
    assert recorded["changed"] == []
    assert column(read_metrics(again / "metrics.jsonl"), "reward/mean")
    assert f"{parent}, after step 2" in (again / "report.html").read_text()
    assert min(row["step"] for row in read_metrics(again / "metrics.jsonl")) == 2


def test_changed_settings_take_effect_from_there_on(parent, tmp_path):
    words = ["learner.lr=1e-3", "learner.schedule.shape=cosine", "steps=8", "output=changed"]
    said = train(tmp_path, parent.parent / "recipe.yaml", "--from", f"{parent}@4", *words)
    assert "changed: learner.lr was 0.003 and is 0.001" in said
    assert 'changed: learner.schedule.shape was "linear" and is "cosine"' in said
    assert "the learning rate of the next update is 0.0005; the parent's would be 0.001" in said
    rows = read_metrics(tmp_path / "changed" / "metrics.jsonl")
    rates = column(rows, "learner/lr")
    assert len(rates) == 4
    assert rates[0] == pytest.approx(1e-3 * (1 + 2**-0.5 * 0) / 2, rel=0.25)
    assert [row["learner/updates"] for row in rows if "learner/updates" in row] == [10, 12, 14, 16]
    changed = json.loads((tmp_path / "changed" / "run.json").read_text())["parent"]["changed"]
    assert "steps was 6 and is 8" in changed


def test_the_newest_intact_checkpoint_is_taken_and_data_that_changed_begin_anew(parent, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(parent, copy)
    (copy / "checkpoints" / "step_000006" / "state.json").write_text("{}")
    line = refused("train", "--from", f"{copy}@6", "output=x", folder=tmp_path)
    assert "step_000006' is damaged (state.json has 2 bytes" in line
    assert "there are also 2, 4" in line
    words = ["data.source.size=50", "learner.updates_per_rollout=1", "output=x"]
    said = train(tmp_path, "--from", copy, *words)
    assert "after step 4" in said
    assert "visited from the beginning of their first epoch" in said
    rows = read_metrics(tmp_path / "x" / "metrics.jsonl")
    assert column(rows, "learner/updates") == [5, 6], "the schedule stands where it stood"


def test_it_resumes_from_its_own_checkpoints_and_before_them_from_its_parent(parent, tmp_path):
    words = ["output=b", "learner.lr=1e-3"]
    train(tmp_path, "--from", f"{parent}@2", *words)
    whole, half = tmp_path / "b", tmp_path / "half"
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints" / "step_000006")
    recipe = parent.parent / "recipe.yaml"
    said = train(tmp_path, recipe, "output=half", "learner.lr=1e-3", "--resume")
    assert "resuming after step 4 from half" in said
    assert same_weights(weights(half), weights(whole))
    shutil.rmtree(half / "checkpoints")
    said = train(tmp_path, "--from", parent, "--resume", "output=half", "learner.lr=1e-3")
    assert "branching after step 2" in said
    assert same_weights(weights(half), weights(whole))
    assert later(half, 2) == later(whole, 2)
    assert json.loads((half / "run.json").read_text())["parent"]["step"] == 2
    for other in (f"{parent}@4", half):
        line = refused("train", "--from", other, "--resume", *words, folder=tmp_path)
        assert f"branched from {parent}@2; resume it without --from" in line


@pytest.mark.parametrize(
    ("asked", "words", "said"),
    [
        ("nowhere", [], "there is no run in 'nowhere'"),
        ("{run}@3", [], "no checkpoint of step 3; there are 2, 4, 6"),
        ("{run}@last", [], "'last' is no step; give RUN@STEP, such as"),
        ("{run}", [], "the checkpoint is after step 6 and the run has 6 steps altogether"),
        ("{run}@2", ["output={run}"], "is the run that --from names"),
        ("{run}@2", ["model.lora.rank=4"], "model.lora was null and is"),
        ("{run}@2", ["learner.lt=1"], "did you mean 'lr'"),
        ("{run}@2", ["nonsense"], "recipe 'nonsense' is not a file"),
        ("{run}@2", ["--resume", "output={run}"], "is the run that --from names"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_that_helps(parent, tmp_path, asked, words, said):
    words = ["output=new", *(word.format(run=parent) for word in words)]
    if "nonsense" in words:
        words = ["nonsense"]
    line = refused("train", "--from", asked.format(run=parent), *words, folder=tmp_path)
    assert said in line
    assert not (tmp_path / "new").exists()


def test_another_task_is_refused_with_what_to_do(parent, preference_values, tmp_path):
    file = tmp_path / "preference.yaml"
    file.write_text(yaml.safe_dump(preference_values))
    line = refused("train", file, "--from", parent)
    assert "of task 'rl' and the recipe is of task 'preference'" in line
    assert f"model.path={parent}/checkpoints/step_000006" in line


def test_a_run_that_goes_on_can_be_branched_from(parent, tmp_path):
    with locked(parent / "run.lock", "the parent"):
        train(tmp_path, "--from", parent / "checkpoints" / "step_000004", "output=b")
    assert (tmp_path / "b" / "model").is_dir()


def test_without_recipe_and_parent_it_says_what_to_give(tmp_path):
    assert "give a recipe" in refused("train", folder=tmp_path)
    assert "give a recipe" in refused("train", "learner.lr=1", folder=tmp_path)


def test_a_dry_run_shows_the_branch(parent, tmp_path):
    said = train(tmp_path, "--from", f"{parent}@4", "output=b", "seed=3", "--dry-run")
    assert "# branches after step 4 from" in said
    assert "# changed: seed was 0 and is 3" in said
    assert list(tmp_path.iterdir()) == []


def test_a_launch_branches_too(parent, tmp_path):
    """Its learners are told; what they would refuse is refused before."""
    line = ["launch", parent.parent / "recipe.yaml", "--slurm", "--gpus-per-node", "0", "--dry-run"]
    line += ["--accelerate", "cpu", "output=b", "--from"]
    done = call(*line, f"{parent}@4", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"output=b --from {parent}@4" in done.stdout
    assert "no checkpoint of step 5" in refused(*line, f"{parent}@5", folder=tmp_path)


def test_methods_may_come_and_go(parent, tmp_path):
    """A critic that the parent had not begins afresh; its child does without it again."""
    critic = ["advantage.name=gae", "regularisers=[]", "learner.skip_zero_advantage=false"]
    said = train(tmp_path, "--from", f"{parent}@2", "output=c", "steps=4", *critic)
    assert "critic is new: it begins afresh" in said
    words = ["advantage.name=group", "output=d", "steps=5"]
    said = train(tmp_path, "--from", "c", *words)
    assert "critic is not trained any more: dropped" in said
    assert (tmp_path / "d" / "model").is_dir()


def test_adapters_go_on(guessing_folder, tmp_path):
    values = small_recipe(guessing_folder, tmp_path / "a")
    values["model"]["lora"] = {"rank": 4}
    values["checkpoint"] = {"every": 2, "keep": 9}
    folder, _ = run(values, "steps=4")
    train(tmp_path, "--from", f"{folder}@2", "output=b")
    assert same_weights(weights(tmp_path / "b"), weights(folder))
    line = refused("train", "--from", f"{folder}@2", "output=c", "model.lora.rank=8")
    assert "model.lora.rank was 4 and is 8" in line
    assert "set model.path=" in line


@pytest.mark.slow
def test_preferences_go_on_by_a_process_of_its_own(preference_values, tmp_path):
    folder, _ = run(preference_values)
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [Path(sys.executable).parent / "rlvr", "train", "--from", f"{folder}@2", "output=b"]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert same_weights(weights(empty / "b"), weights(folder))
    assert later(empty / "b", 2) == later(folder, 2)


def test_demonstrations_go_on_within_an_epoch_with_steps_of_another_size(guessing_folder, tmp_path):
    """60 sequences, of which 16 were visited: 22 and 22 are left of the epoch, then 22 again."""
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(6) for b in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "sft",
        "output": str(tmp_path / "a"),
        "epochs": 1,
        "model": {"path": str(guessing_folder)},
        "data": {"sources": [str(tmp_path / "rows.jsonl")], "per_step": 8},
        "checkpoint": {"every": 2, "keep": 9},
    }
    folder, metrics = run(values)
    train(tmp_path, "--from", f"{folder}@2", "output=b")
    assert same_weights(weights(tmp_path / "b"), weights(folder))
    words = ["data.per_step=22", "epochs=null", "steps=5", "output=c"]
    train(tmp_path, "--from", f"{folder}@2", *words)
    found = column(read_metrics(tmp_path / "c" / "metrics.jsonl"), "sft/epoch")
    assert found == pytest.approx([38 / 60, 1, 82 / 60])
    line = refused("train", "--from", folder, f"output={tmp_path / 'd'}")
    assert "after step 8 and the run has 8 steps" in line
    assert len(column(metrics, "sft/epoch")) == 8


def test_a_reward_model_goes_on_and_seeks_its_best_anew(tiny_folder, tmp_path):
    """Within an epoch of soft targets, which were made with weights that are gone."""
    values = {
        "task": "reward_model",
        "output": str(tmp_path / "a"),
        "steps": 3,
        "model": {"path": str(tiny_folder)},
        "data": {
            "sources": [str(write(tmp_path / "rows.jsonl", rows_of(0)))],
            "per_step": 16,
            "hold_out": 0.3,
        },
        "evaluation": {"every": 2, "keep_best": "held_out"},
        "checkpoint": {"every": 1, "keep": 9},
    }
    head, _ = run(values)
    calibration = {"hard_epochs": 1, "targets": {"name": "bins", "bins": 4}}
    values |= {"output": str(tmp_path / "b"), "model": {"path": str(head / "model")}}
    folder, _ = run({**values, "calibration": calibration})
    train(tmp_path, "--from", f"{folder}@1", "output=c")
    for name in ("model", "reward_head"):
        own, its = (
            load_file(place / "checkpoints" / "step_000003" / file)
            for place in (tmp_path / "c", folder)
            for file in [f"model/{name}.safetensors" if name == "model" else f"{name}.safetensors"]
        )
        assert same_weights(own, its)
    state = json.loads((tmp_path / "c" / "checkpoints" / "step_000003" / "state.json").read_text())
    assert state["best"]["step"] in (2, 3)
