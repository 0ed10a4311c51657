"""What a path stands for: models, runs, checkpoints."""

import json
import shutil

import pytest
import torch
import yaml
from rich.console import Console

from eval.command import prompt_of_training
from eval.run import evaluate
from eval.settings import EvalSettings
from eval.targets import find_targets, weights_sha256
from rlvr.data import load_template
from rlvr.learner.checkpoint import save_checkpoint
from rlvr.policy.loading import load_policy
from rlvr.policy.saving import save_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.rollout.weight_sync import learner_logprobs
from tests.eval.small import run, settings_for


@pytest.fixture
def run_folder(tmp_path, tiny_folder):
    """A run with two checkpoints of different weights and no final model."""
    folder = tmp_path / "myrun"
    folder.mkdir()
    recipe = {"task": "rl", "model": {"path": str(tiny_folder), "precision": "float32"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shape = TinySettings(hidden_size=32, layers=2, heads=4, key_value_heads=2)
    for step in (1, 2):
        save_checkpoint(
            folder / "checkpoints",
            step,
            write_model=lambda place, seed=step: write_tiny_model(place / "model", seed, shape),
            tensors={},
            state={"step": step},
            keep=2,
        )
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
    with pytest.raises(ValueError, match="is not a run folder"):
        find_targets(ModelSettings(path=str(tiny_folder)), all_checkpoints=True)
    (tmp_path / "recipe.yaml").write_text("model: {path: x}")
    with pytest.raises(ValueError, match="contains no checkpoints"):
        find_targets(ModelSettings(path=str(tmp_path)), all_checkpoints=True)
    with pytest.raises(ValueError, match="neither a final model nor an intact checkpoint"):
        find_targets(ModelSettings(path=str(tmp_path)))


def test_an_adapter_is_evaluated_merged_into_its_base(tiny_folder, tmp_path):
    adapted = load_policy(ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    save_policy(adapted, tmp_path)
    (target,) = find_targets(ModelSettings(path=str(tmp_path / "adapter")))
    sequence = list(range(3, 30))
    expected = learner_logprobs(adapted, sequence)
    assert learner_logprobs(target.load(), sequence) == pytest.approx(expected, abs=1e-4)
    assert learner_logprobs(load_policy(ModelSettings(path=str(tiny_folder))), sequence) != (
        pytest.approx(expected, abs=1e-2)
    )


def test_a_run_that_learnt_from_other_prompts_is_said(tmp_path):
    def note(trained, **settings):
        data = {} if trained is None else {"data": {"template": trained}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"task": "rl", **data}))
        return prompt_of_training(EvalSettings(**settings), tmp_path)

    recorded = load_template("plain").settings.model_dump(mode="json")
    assert "--template plain asks as in training" in note(recorded)
    assert "as a file to --template" in note({**recorded, "user": "Q: {problem}"})
    assert note(recorded, template=load_template("raw").settings) is None
    assert note(None) is None
    assert prompt_of_training(EvalSettings(), tmp_path / "none") is None
