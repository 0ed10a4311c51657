"""The examples of docs/how_to: a loss, an advantage and a reward from files, through whole runs."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import load_settings
from rlvr.settings.outside import load_outside
from tests.learner.launching import launch
from tests.objective.columns import row, slope
from tests.rl.test_train import ROOT, figures, same_weights, weights

EXAMPLES = ROOT / "docs" / "how_to" / "examples"
RECIPE = EXAMPLES / "own_parts.yaml"


@pytest.fixture
def arguments(guessing_folder, tmp_path):
    return [f"model.path={guessing_folder}", f"output={tmp_path / 'run'}", "data.source.digits=1",
            "data.source.size=60"]  # fmt: skip


def rlvr(*arguments):
    done = CliRunner().invoke(app, ["train", str(RECIPE), *arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def test_the_loss_is_its_equation():
    loss = load_outside(f"{EXAMPLES}/topr.py:Topr")(cap=0.5)
    assert slope(loss, row([0.5, 3.0], [2.0, 2.0])) == pytest.approx([-2.0, -2.0])
    assert slope(loss, row([0.5, 3.0], [-1.0, -1.0])) == pytest.approx([0.5, 0.5])
    assert slope(loss, row([0.5, 0.6], [-1.0, -1.0])) == pytest.approx([0.3, 0.3])


def test_the_advantage_is_its_equation():
    advantage = load_outside(f"{EXAMPLES}/w_reinforce.py:WeightedReinforce")(positive=0.2)
    values = advantage(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))
    assert values.tolist() == pytest.approx([0.2, -1.0, 0.2])


def test_a_dry_run_shows_places_and_settings(arguments):
    shown = rlvr(*arguments, "--dry-run")
    assert f"name: {EXAMPLES}/topr.py:Topr" in shown
    assert "cap: 0.5" in shown
    assert f"function: {EXAMPLES}/even_words.py:even_words" in shown


def test_a_run_trains_with_them_and_goes_on_from_another_folder(arguments, tmp_path, monkeypatch):
    rlvr(*arguments, "steps=1")
    monkeypatch.chdir(tmp_path)
    rlvr(*arguments, "steps=2", "--resume")
    resumed = tmp_path / "run"
    whole = [item.replace("/run", "/whole") for item in arguments]
    rlvr(*whole)
    assert same_weights(weights(resumed), weights(tmp_path / "whole"))
    assert "policy/taper" in figures(resumed)[-1]
    files = sorted((resumed / "completions").glob("*.jsonl"))
    kept = [json.loads(line) for file in files for line in file.open()]
    assert {round(item["advantage"], 6) for item in kept} <= {0.1, -1.0}
    assert all(set(item["rewards"]) == {"accuracy", "even_words"} for item in kept)
    # The recorded recipe alone, read from the run's folder.
    again = load_settings(RLRecipe, resumed / "recipe.yaml")
    assert again.policy_loss == load_settings(RLRecipe, RECIPE, arguments).policy_loss


@pytest.mark.deepspeed
@pytest.mark.timeout(600)
def test_every_process_finds_them(arguments):
    output = launch("zero2", "-m", "rlvr", "train", RECIPE, *arguments)
    folder = Path(arguments[1].partition("=")[2])
    assert "policy/taper" in figures(folder)[-1], output
