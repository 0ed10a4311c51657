"""Training explicit reward models: what is learned, kept, calibrated, taken up, and refused."""

import json
import os
import random
import xml.etree.ElementTree as ET

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rlvr.data.labelled_responses import load_responses
from rlvr.learner.head_rewards import HEAD, response_rewards
from rlvr.policy.settings import ModelSettings
from rlvr.reward_models.calibration import BinTargets, log_loss
from rlvr.reward_models.heads import has_head, load_reward_model
from rlvr.runs import frame
from rlvr.runs.frame import open_offline_run
from rlvr.runs.interrupt import Stopped, StopSignals
from rlvr.runs.log import read_metrics
from rlvr.runs.loop import step_clock
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task
from rlvr.tasks.reward_model import Best, RewardModelRecipe, RewardModelTask
from rlvr.tasks.tools.score import Scoring, score
from tests.tasks.test_prm import rows_of, write

SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115
WIN_TIE = ["loss={name: bradley_terry}", "pairs={ties: 0.25}"]
QUERIES = "head={name: layer_queries, heads: 4}"


@pytest.fixture
def values(tiny_folder, tmp_path):
    train_file = write(tmp_path / "train.jsonl", rows_of(0))
    return {
        "task": "reward_model",
        "output": str(tmp_path / "run"),
        "steps": 10,
        "model": {"path": str(tiny_folder)},
        "data": {"sources": [str(train_file)], "per_step": 32, "hold_out": 0.3},
        "learner": {"lr": 3e-3},
        "head_lr": 1e-2,
        "evaluation": {"every": 5},
        "checkpoint": {"every": 5, "keep": 3},
    }


def run(values, *overrides, resume=False):
    recipe = load_settings(RewardModelRecipe, values, overrides)
    folder = find_task("reward_model").train(recipe, resume=resume, console=SILENT)
    return folder, read_metrics(folder / "metrics.jsonl")


def by_step(rows):
    """What was learnt and evaluated, by step."""
    steps = {}
    for row in rows:
        own = {key: row[key] for key in row if key.startswith(("rm/", "eval/"))}
        steps.setdefault(row["step"], {}).update(own)
    return steps


def opened_run(recipe, *, resume=False):
    return open_offline_run(RewardModelTask(recipe), resume, SILENT, StopSignals())


@pytest.mark.parametrize(
    "overrides",
    [
        WIN_TIE,
        [*WIN_TIE, QUERIES, "pairs.within=0.5", "model.lora={rank: 4}"],
        ["loss={name: ldr}", "data.per_step=8"],
        ["loss={name: ce}"],
    ],
    ids=["win_tie", "queries_across_lora", "ldr", "ce"],
)
def test_right_is_told_from_wrong_and_the_folder_scores_as_the_run_did(values, overrides):
    folder, metrics = run(values, *overrides, "steps=20")
    losses = [row["rm/loss"] for row in metrics if "rm/loss" in row]
    assert losses[-1] < losses[0]
    last = [row for row in metrics if "eval/held_out/auc_within" in row][-1]
    assert last["step"] == 20
    assert last["eval/held_out/auc_within"] > 0.95
    assert last["eval/held_out/best_of_n"] > 0.95
    assert ("eval/held_out/nll" in last) == (overrides[0] == "loss={name: ce}")
    assert has_head(folder / "model")
    found = score(load_responses([folder.parent / "train.jsonl"]), Scoring(str(folder / "model")))
    right = [item.steps[0] for item in found if item.response.correct]
    wrong = [item.steps[0] for item in found if not item.response.correct]
    assert sum(right) / len(right) > sum(wrong) / len(wrong)


@pytest.mark.parametrize(
    "overrides",
    [WIN_TIE, [QUERIES, "head.dropout=0.1", "evaluation.keep_best=held_out"]],
    ids=["pairs", "dropout_and_best"],
)
def test_taken_up_again_it_ends_where_it_would_have_ended(values, overrides, tmp_path):
    whole, expected = run(values, *overrides)
    values["output"] = str(tmp_path / "parted")
    run(values, *overrides, "steps=5")
    folder, found = run(values, *overrides, resume=True)
    for name in ("model.safetensors", "reward_head.safetensors"):
        one, two = (load_file(path / "model" / name) for path in (whole, folder))
        assert all(torch.equal(one[key], two[key]) for key in one), name
    assert by_step(found) == by_step(expected)


def test_the_model_folder_holds_the_best_and_patience_ends_the_run(values):
    """Random labels: the first model, which says one half, is the best on held-out problems."""
    rows, generator = rows_of(0), random.Random(0)
    for index, row in enumerate(rows):
        row["correct"] = generator.random() < 0.5 if index % 3 else index % 2 == 0
    write(values_path(values), rows)
    overrides = ["evaluation={every: 1, keep_best: held_out, patience: 3}", "steps=40"]
    folder, metrics = run(values, *overrides, "learner.lr=0.01")
    measured = {
        row["step"]: row["eval/held_out/nll"] for row in metrics if "eval/held_out/nll" in row
    }
    best = min(measured, key=lambda step: (measured[step], step))
    assert max(measured) == best + 3 < 40
    model = load_reward_model(ModelSettings(path=str(folder / "model")))
    recipe = load_settings(RewardModelRecipe, values, [*overrides, "learner.lr=0.01"])
    with opened_run(recipe, resume=True) as again:
        assert again.task.best == Best(pytest.approx(measured[best]), best, 3)
        assert again.finished
        again.learner.store.models.auxiliary[HEAD].head.load_state_dict(model.head.state_dict())
        again.policy.load_state_dict(model.policy.state_dict())
        rewards = response_rewards(again.learner, again.held_out["held_out"])
        outcomes = again.held_out["held_out"].columns["label"].double()
    assert log_loss(rewards, outcomes) == pytest.approx(measured[best], abs=1e-6)
    assert run(values, *overrides, "learner.lr=0.01", resume=True)[1][-1]["step"] == best + 3


def values_path(values):
    from pathlib import Path

    return Path(values["data"]["sources"][0])


@pytest.fixture
def early(values, tmp_path):
    """A model trained by cross-entropy, and a recipe that calibrates it."""
    values["output"] = str(tmp_path / "early")
    folder, _ = run(values, "steps=3")
    values["output"] = str(tmp_path / "cape")
    values["model"] = {"path": str(folder / "model")}
    values["calibration"] = {"hard_epochs": 1, "targets": {"name": "bins", "bins": 4}}
    return values


def test_targets_are_made_when_a_soft_epoch_begins_and_held_through_it(early):
    """56 training responses, 32 a step: epochs begin in steps 1, 3, 5 (2 each, then 1)."""
    recipe = load_settings(RewardModelRecipe, early)
    seen = []
    with opened_run(recipe) as opened:
        outcomes, clock = opened.data.columns["label"], step_clock(opened, 0)
        for _ in range(8):
            epoch = opened.step * 32 // len(opened.data)
            p = response_rewards(opened.learner, opened.data).sigmoid()
            own = BinTargets(bins=4)(p, outcomes)
            examples, _ = opened.task.next(opened, clock)
            targets = outcomes if opened.task.soft_epoch != epoch else opened.task.soft_M
            seen.append((epoch, targets.clone(), own))
            assert not targets.requires_grad
            opened.learner.update(examples)
            opened.step += 1
    made = {}
    for epoch, targets, own in seen:
        if epoch % 2:
            assert torch.equal(targets.float(), outcomes)
        else:
            made.setdefault(epoch, own)
            assert torch.equal(targets, made[epoch])
            assert float(targets.mean()) == pytest.approx(float(outcomes.mean()))
    assert len(made) >= 2
    first, second = list(made.values())[:2]
    assert not torch.equal(first, second)


def test_calibration_goes_on_from_a_head_and_is_taken_up_within_an_epoch(early, tmp_path):
    whole, expected = run(early, "checkpoint.every=1")
    assert [row["rm/soft"] for row in expected if "rm/soft" in row][:4] == [1.0, 1.0, 0.0, 0.0]
    early["output"] = str(tmp_path / "parted")
    run(early, "steps=1", "checkpoint.every=1")
    folder, _ = run(early, "checkpoint.every=1", resume=True)
    one, two = (load_file(path / "model" / "model.safetensors") for path in (whole, folder))
    assert all(torch.equal(one[key], two[key]) for key in one)
    ET.fromstring((folder / "reliability_held_out.svg").read_text())
    kept = [json.loads(line) for line in (folder / "calibration.jsonl").open()]
    assert {row["step"] for row in kept} >= {0, 5, 10}
    assert {row["set"] for row in kept} == {"held_out"}


def test_prompts_alone_predict_the_rate_at_which_they_are_passed(values):
    """Prompts that end with = are passed in three samples of four, others in one of four."""
    rows = rows_of(0, problems=40)
    for index, row in enumerate(rows):
        easy = index // 4 % 2 == 0
        row["prompt"] = f"<bos>{index // 4:02d}{'=' if easy else '?'}"
        row["correct"] = (index % 4 < 3) if easy else (index % 4 == 0)
    write(values_path(values), rows)
    _, metrics = run(values, "data.part=prompt", "steps=30")
    measured = [row for row in metrics if "eval/held_out/rate_mse" in row]
    assert measured[0]["eval/held_out/rate_mse"] == pytest.approx(1 / 16)
    assert measured[-1]["eval/held_out/rate_mse"] < 0.02


def test_a_stop_is_obeyed_after_the_step_and_can_be_taken_up(values, monkeypatch):
    whole, _ = run(values, *WIN_TIE)
    values["output"] += "_stopped"
    step = frame.train_step

    def stopping(task, run):
        step(task, run)
        if run.step == 3:
            raise Stopped(15)

    monkeypatch.setattr(frame, "train_step", stopping)
    with pytest.raises(Stopped):
        run(values, *WIN_TIE)
    monkeypatch.undo()
    folder, _ = run(values, *WIN_TIE, resume=True)
    one, two = (load_file(path / "model" / "model.safetensors") for path in (whole, folder))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pairs={ties: 0.5}"], "the loss 'ce' takes none"),
        ([*WIN_TIE, "calibration={}"], "'bradley_terry' does not take; use ce"),
        ([*WIN_TIE, "data.part=prompt"], "has nothing to compare"),
        (["evaluation.keep_best=other"], "not one of the evaluation sets"),
        (["evaluation.patience=2"], "has to name the set"),
        (["learner.updates_per_rollout=2"], "unknown setting"),
        (["calibration={}"], "holds no head"),
        (["head={name: layer_queries, heads: 3}"], "does not divide the model's width"),
        (["evaluation.responses={leak: [SOURCE]}"], "are trained on"),
        ([*WIN_TIE, "pairs.size=100000"], "there are"),
        (["head={name: first_token}"], "last_token"),
    ],
)
def test_what_cannot_work_is_said_before_a_folder_is_made(values, overrides, message, tmp_path):
    overrides = [text.replace("SOURCE", str(values_path(values))) for text in overrides]
    with pytest.raises(ValueError, match=message):
        run(values, *overrides)
    assert not (tmp_path / "run").exists()


def test_a_head_of_another_kind_than_the_folders_is_refused(early):
    with pytest.raises(ValueError, match="set head to the former"):
        run(early, "head={name: layer_queries, heads: 4}")


def test_the_plan_counts_what_will_be_trained_on(values):
    recipe = load_settings(RewardModelRecipe, values, [*WIN_TIE])
    text = RewardModelTask.plan(recipe)
    assert "# responses: 80 to 20 problems, 40 of them right" in text
    with opened_run(recipe) as opened:
        held_out, items = opened.held_out["held_out"], opened.data
    assert f"# held_out: {len(held_out)} responses held out" in text
    assert f"# pairs: {len(items)}" in text
    problems = (80 - len(held_out)) // 4
    assert len(items) == 5 * problems  # four of each, and a quarter as many ties
