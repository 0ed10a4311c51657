"""A run whose numbers are none ends with one line, and leaves only weights that are numbers."""

import json
import math
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from reward import grade
from reward.functions import RewardInput, combine
from rlvr.files import line
from rlvr.report.history import read_history
from rlvr.runs.log import read_metrics
from tests.command import call, refused
from tests.learner.test_bad_updates import poisoned_copy


@pytest.fixture
def recipes(recipe_values, preference_values, tmp_path):
    """Recipes of all tasks, each with a checkpoint after every step of which one is kept."""
    rows = [json.loads(row) for row in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    texts = [{"prompt": r["prompt"], "response": r["completion"], **r} for r in rows]
    labels = [
        {"prompt": r["prompt"], "response": r["response"], "label": r["label"]} for r in texts
    ]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in labels))
    demonstrations = [{k: r[k] for k in ("prompt", "response")} for r in labels if r["label"]]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(r) + "\n" for r in demonstrations))
    common = {"model": preference_values["model"], "output": str(tmp_path / "run"), "steps": 12}
    sources = {"sources": [str(tmp_path / "responses.jsonl")]}
    found = {
        "rl": recipe_values,
        "preference": {k: v for k, v in preference_values.items() if k != "evaluation"},
        "sft": {"task": "sft", "data": {"sources": [str(tmp_path / "sft.jsonl")], "per_step": 8}},
        "prm": {"task": "prm", "data": sources},
        "reward_model": {"task": "reward_model", "data": sources},
    }
    found = {name: {**values, **common} for name, values in found.items()}
    for name, values in found.items():
        values["checkpoint"] = {"every": 1, "keep": 1}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


TASKS = ["rl", "preference", "sft", "prm", "reward_model"]


def strict(path):
    """Rows of a file of JSON lines that holds nothing else."""

    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    return [json.loads(row, parse_constant=refuse) for row in path.read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_a_rate_of_1e30_ends_the_run_with_step_tensor_and_checkpoint(recipes, task):
    said = refused(
        "train",
        recipes / f"{task}.yaml",
        "learner.lr=1e30",
        "learner.max_grad_norm=1",
        "learner.max_bad_updates=2",
    )
    assert said.startswith("rlvr: step ")
    assert "2 updates in a row" in said or "made weights infinite" in said
    assert "'model." in said
    checkpoints = sorted((recipes / "run" / "checkpoints").glob("step_*"))
    good = "is the last good checkpoint" in said
    assert not good or any(f"{path} is the last good checkpoint" in said for path in checkpoints)
    for path in checkpoints:
        weights = load_file(path / "model" / "model.safetensors")
        assert all(bool(value.isfinite().all()) for value in weights.values())
    assert not (recipes / "run" / "model").exists()
    strict(recipes / "run" / "metrics.jsonl")


def test_a_run_that_ends_in_skipped_updates_has_no_final_model(recipes):
    said = refused("train", recipes / "sft.yaml", "learner.lr=1e30", "steps=3")
    assert said.startswith("rlvr: step 3: the run ends with 2 updates in a row")
    assert "step_000001 is the last good checkpoint" in said
    assert not (recipes / "run" / "model").exists()


@pytest.mark.parametrize("task", TASKS)
def test_a_model_with_a_nan_is_refused_before_anything_is_written(recipes, guessing_folder, task):
    name = poisoned_copy(guessing_folder, recipes / "bad", "model.safetensors")
    said = refused("train", recipes / f"{task}.yaml", f"model.path={recipes / 'bad'}")
    assert repr(name) in said
    assert "model.safetensors are not finite" in said
    assert not (recipes / "run").exists()


def test_an_evaluation_refuses_it_as_well(recipes, guessing_folder):
    name = poisoned_copy(guessing_folder, recipes / "bad", "model.safetensors")
    problems = recipes / "problems.jsonl"
    problems.write_text('{"problem": "1+1=", "answer": "2"}\n')
    said = refused("eval", recipes / "bad", "-b", problems, "--out", recipes / "evaluated")
    assert repr(name) in said


@pytest.mark.parametrize(("value", "weight"), [(1e308, 1.0), (1e38, 10.0), (-1e39, 1.0)])
def test_a_reward_without_a_finite_mean_is_refused_with_function_and_value(value, weight):
    with pytest.raises(ValueError, match=r"big.*e\+3") as caught:
        combine([("big", lambda item: value, weight)])(RewardInput("1", "1", grade("1", "1")))
    assert "finite number" in str(caught.value)


def test_such_a_reward_ends_a_run_in_one_line(recipes):
    (recipes / "rewards.py").write_text("def huge(item):\n    return 1e308\n")
    function = f"{recipes / 'rewards.py'}:huge"
    said = refused("train", recipes / "rl.yaml", f"reward.functions=[{{function: {function}}}]")
    assert "huge" in said
    assert "1e+308" in said


def test_metrics_are_json_and_readers_see_a_gap(tmp_path):
    row = {"step": 1, "a": math.nan, "b": [1.5, math.inf], "c": {"d": -math.inf}, "e": 2}
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(row) + line({"step": 2, "a": 0.5}))
    plain = {"step": 1, "a": "NaN", "b": [1.5, "Infinity"], "c": {"d": "-Infinity"}, "e": 2}
    assert strict(path) == [plain, {"step": 2, "a": 0.5}]
    assert math.isnan(read_metrics(path)[0]["a"])
    history = read_history(path)
    assert history.columns["a"] == [None, 0.5]
    assert any("a is not a finite number at step 1" in note for note in history.notes)


def test_a_report_of_such_a_run_is_written(recipes):
    call("train", recipes / "sft.yaml", "learner.lr=1e30", "steps=3")
    done = call("report", recipes / "run")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_file()
