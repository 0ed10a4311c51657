"""A run folder has one writer, and a run that never began leaves none."""

import json
import os
from pathlib import Path

import pytest
import yaml

from rlvr.files import locked
from rlvr.rl.train import train
from rlvr.runs.run_folder import check_folder
from rlvr.settings import load_settings, to_yaml
from rlvr.tasks.registry import find_task
from tests.command import call, refused
from tests.training import SILENT, run


@pytest.fixture
def recipe_file(recipe_values, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe_values, "steps": 2}))
    return path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("arguments", [[], ["--resume"]])
def test_a_run_in_progress_is_left_alone_and_named(recipe_values, recipe_file, arguments):
    folder, _ = run(recipe_values, "steps=2")
    with locked(folder / "run.lock", "the first"):
        before = contents(folder)
        line = refused("train", recipe_file, "steps=4", *arguments)
        assert f"in use by process {os.getpid()} on " in line
        assert contents(folder) == before
    assert call("train", recipe_file, "steps=4", "--resume").returncode == 0
    assert not (folder / "run.lock").exists()


def test_of_two_starts_the_slower_is_refused(recipe_values, recipe_file, monkeypatch):
    """Both have found no run there; the other records its own meanwhile."""
    from rlvr.rl.run import Run

    folder = Path(recipe_values["output"])

    def prepare(self, console):
        folder.mkdir()
        (folder / "recipe.yaml").write_text("another's")

    monkeypatch.setattr(Run, "prepare", prepare)
    assert "already contains a run" in refused("train", recipe_file)
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


def test_the_lock_of_a_killed_run_is_no_other_file(recipe_values):
    folder = Path(recipe_values["output"])
    folder.mkdir()
    (folder / "run.lock").write_text("{}")
    check_folder(load_settings(find_task("rl").schema, recipe_values), resume=False)


@pytest.mark.parametrize("existing", [False, True])
def test_a_run_that_fails_before_its_first_step_leaves_nothing(
    recipe_values, monkeypatch, existing
):
    """Also where it fails later than everything that is tried."""
    from rlvr.learner.learner import Learner

    def fail(self, batch):
        raise RuntimeError("no kernel")

    folder = Path(recipe_values["output"]) / "deep"
    if existing:
        (folder / "launch").mkdir(parents=True)
    recipe = load_settings(
        find_task("rl").schema, {**recipe_values, "output": str(folder), "steps": 2}
    )
    with monkeypatch.context() as broken:
        broken.setattr(Learner, "update", fail)
        with pytest.raises(RuntimeError, match="no kernel"):
            train(recipe, console=SILENT)
    assert folder.exists() == existing
    assert folder.parent.exists() == existing
    assert not existing or [path.name for path in folder.iterdir()] == ["launch"]
    train(recipe, console=SILENT)
    assert (folder / "model").is_dir()


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["learner.lr=2e-3"], ["learner.lr was 0.003 and is 0.002"]),
        (
            ["seed=1", "rollout.sampling.max_tokens=9", "data.source.size=61"],
            [
                "seed was 0 and is 1",
                "data.source.size was 60 and is 61",
                "rollout.sampling.max_tokens was 8 and is 9",
            ],
        ),
        (
            ["regularisers=[{name: kl, coefficient: 0.5}]"],
            ["regularisers.0.coefficient was 0.01 and is 0.5"],
        ),
        (["regularisers=[]"], ['regularisers was [{"name": "kl", ', " and is []"]),
        (["policy_loss.name=gspo"], ['policy_loss.name was "clip" and is "gspo"']),
        (["model.lora.rank=3"], ["model.lora was null and is {"]),
        (
            ["reward.functions=[{function: mine.py:second}]"],
            ["reward.functions.0.function was ", "/mine.py:first", "/mine.py:second"],
        ),
    ],
)
def test_a_setting_that_changed_is_named_alone_with_what_to_do(
    recipe_values, tmp_path, monkeypatch, words, changes
):
    """Also of long texts, such as the places of functions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def first(item): return 0.0\n\nsecond = first\n")
    values = {**recipe_values, "reward": {"functions": [{"function": "mine.py:first"}]}}
    folder = Path(values["output"])
    folder.mkdir()
    schema = find_task("rl").schema
    (folder / "recipe.yaml").write_text(to_yaml(load_settings(schema, values)))
    check_folder(load_settings(schema, values, ["log.track=[]", "steps=9"]), resume=True)
    with pytest.raises(ValueError, match="other settings") as error:
        check_folder(load_settings(schema, values, words), resume=True)
    line = str(error.value)
    for change in changes:
        assert change in line
    assert line.count(" was ") == line.count(" and is ") == len(words)
    assert f"rlvr train RECIPE --from {folder} output=ANOTHER_FOLDER" in line


def test_another_task_is_told_before_its_settings(recipe_values, preference_values):
    folder = Path(recipe_values["output"])
    folder.mkdir()
    recorded = load_settings(find_task("rl").schema, recipe_values)
    (folder / "recipe.yaml").write_text(to_yaml(recorded))
    other = load_settings(find_task("preference").schema, preference_values)
    with pytest.raises(ValueError, match='settings: task was "rl" and is "preference"; resume'):
        check_folder(other, resume=True)


def test_a_checkpoint_of_another_version_is_told_in_one_line(recipe_values, recipe_file):
    """Whole, and not what this version writes."""
    from rlvr.learner.checkpoint import _manifest

    folder, _ = run(recipe_values, "steps=2")
    checkpoint = folder / "checkpoints" / "step_000002"
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "MANIFEST.json").unlink()
    (checkpoint / "state.json").write_text(json.dumps({"step": 2, "sampler": {}, "ranks": 1}))
    (checkpoint / "MANIFEST.json").write_text(json.dumps(_manifest(checkpoint)))
    line = refused("train", recipe_file, "steps=4", "--resume")
    assert "another version" in line
    assert "'updates'" in line
    assert state["updates"] == 4
