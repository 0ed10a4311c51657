"""What a path stands for: models, runs, checkpoints."""

import json
import shutil

import pytest
import yaml
from rich.console import Console

from eval.models import find_targets, weights_sha256
from eval.run import evaluate
from rlvr.policy import ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from tests.eval.small import run, settings_for


@pytest.fixture
def run_folder(tmp_path, tiny_folder):
    """A run with two checkpoints of different weights and no final model."""
    folder = tmp_path / "myrun"
    folder.mkdir()
    recipe = {"task": "rl", "model": {"path": str(tiny_folder), "precision": "float32"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for step in (1, 2):
        place = folder / "checkpoints" / f"step_{step:06d}"
        shape = TinySettings(hidden_size=32, layers=2, heads=4, key_value_heads=2)
        write_tiny_model(place / "model", seed=step, settings=shape)
        (place / "MANIFEST.json").write_text("{}")
    return folder


def test_checkpoints_are_swept_by_one_engine_with_their_own_weights(
    run_folder, benchmark_file, tmp_path
):
    targets = find_targets(ModelSettings(path=str(run_folder)), all_checkpoints=True)
    assert [(target.label, target.step) for target in targets] == [
        ("myrun-step_000001", 1), ("myrun-step_000002", 2)
    ]  # fmt: skip
    swept = evaluate(
        settings_for(benchmark_file), targets, tmp_path / "out", console=Console(quiet=True)
    )
    (alone,) = run(targets[1].saved, benchmark_file, tmp_path / "alone")
    assert (swept[1] / "samples.jsonl").read_bytes() == (alone / "samples.jsonl").read_bytes()
    assert (swept[0] / "samples.jsonl").read_bytes() != (alone / "samples.jsonl").read_bytes()
    hashes = [json.loads((f / "plan.json").read_text())["model"]["weights_sha256"] for f in swept]
    assert hashes[0] != hashes[1]
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_run_stands_for_its_final_model_else_its_newest_checkpoint(run_folder, tiny_folder):
    (target,) = find_targets(ModelSettings(path=str(run_folder)))
    assert target.label == "myrun-step_000002"
    shutil.copytree(tiny_folder, run_folder / "model")
    (target,) = find_targets(ModelSettings(path=str(run_folder)))
    assert (target.label, target.step) == ("myrun", None)
    checkpoint = run_folder / "checkpoints" / "step_000001"
    (target,) = find_targets(ModelSettings(path=str(checkpoint)))
    assert target.saved == checkpoint


def test_the_hash_follows_every_weight(tiny_folder):
    (target,) = find_targets(ModelSettings(path=str(tiny_folder)))
    policy, again = target.load(), target.load()
    assert weights_sha256(policy) == weights_sha256(again)
    next(again.parameters()).data[3, 1] += 1e-6
    assert weights_sha256(policy) != weights_sha256(again)


def test_what_has_no_checkpoints_is_refused(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        find_targets(ModelSettings(path=str(tiny_folder)), all_checkpoints=True)
    (tmp_path / "recipe.yaml").write_text("model: {path: x}")
    with pytest.raises(ValueError, match="holds no checkpoints"):
        find_targets(ModelSettings(path=str(tmp_path)), all_checkpoints=True)
    with pytest.raises(ValueError, match="neither a final model nor a sound checkpoint"):
        find_targets(ModelSettings(path=str(tmp_path)))
