"""Methods with state of their own through the whole loop; training on one problem."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.data import load_problems, read_accuracy_history
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.rl.prompts import relabelled
from tests.rl.test_train import figures, run_in_process

PPO = {
    "advantage": {"name": "gae", "kl_in_reward": 0.01},
    "critic": {"lr": 1e-3, "warmup_rollouts": 1},
}
LP_REG = {
    "policy_loss": {"name": "ratio", "cap": 10.0},
    "regularisers": [
        {"name": "lp_reg", "rho": 0.3, "kl": "full"},
        {"name": "adaptive_entropy", "target": 5.0, "step": 0.01},
    ],
    "filters": [{"name": "clip_cov", "fraction": 0.05}],
}

PRIME = {
    "advantage": {"name": "rloo"},
    "prime": {"lr": 1e-3, "update": "before", "returns": {"batch_norm": True, "whiten": True}},
}


@pytest.mark.parametrize("method", [PPO, LP_REG, PRIME], ids=["ppo", "lp_reg", "prime"])
def test_a_run_in_two_parts_ends_where_one_in_one_part_ends(recipe_values, tmp_path, method):
    """Critic, controller and draws go on from the checkpoint."""
    values = {**recipe_values, **method, "steps": 4}
    whole = run_in_process({**values, "output": str(tmp_path / "whole")})
    parts = {**values, "output": str(tmp_path / "parts")}
    run_in_process(parts, "steps=2")
    parts = run_in_process(parts, resume=True)
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    last = figures(whole)[-1]
    if method is PPO:
        assert any("critic/explained_variance" in row for row in figures(whole))
        critics = [
            load_file(next(folder.glob("checkpoints/step_*4/**/critic.safetensors")))
            for folder in (whole, parts)
        ]
        assert all(torch.equal(critics[0][name], critics[1][name]) for name in critics[0])
    elif method is PRIME:
        steps = [row for row in figures(whole) if "prm/loss" in row]
        assert [row["step"] for row in steps] == [1, 2, 3, 4]
        models = [load_file(folder / "prm" / "model.safetensors") for folder in (whole, parts)]
        assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
        start = load_file(Path(values["model"]["path"]) / "model.safetensors")
        assert any(not torch.equal(start[name], models[0][name]) for name in start)
        kept = [json.loads(line) for line in (whole / "completions/step_000004.jsonl").open()]
        assert all(len(row["token_rewards"]) == len(row["tokens"]) for row in kept)
        assert any(any(row["token_rewards"]) for row in kept)
    else:
        weights = [
            row["policy/entropy_coefficient"] for row in figures(parts) if "lp_reg/low" in row
        ]
        assert weights == pytest.approx([0.01 * (2 * step + 1) for step in range(4)])
    assert last["step"] == 4


def test_one_problem_fills_a_step_with_groups_of_its_own(recipe_values, tmp_path):
    source = {"name": "arithmetic", "digits": 1, "size": 1}
    values = {**recipe_values, "steps": 2, "data": {**recipe_values["data"], "source": source}}
    log = {"completions_per_step": 100, "watch_words": ["1", "nowhere"]}
    folder = run_in_process({**values, "log": log}, "evaluation.every=50")
    rows = [json.loads(line) for line in (folder / "accuracy.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        ((right, total),) = row["counts"].values()
        assert total == 36
        assert 0 <= right <= 36
    kept = [json.loads(line) for line in (folder / "completions" / "step_000001.jsonl").open()]
    assert len({item["group"] for item in kept}) == 6, "separate groups, not one of 36"
    assert len({item["sample"] for item in kept}) == 36, "samples of their own"
    evaluated = [json.loads(line) for line in (folder / "evaluations/step_000002.jsonl").open()]
    name = evaluated[0]["set"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    figure = [row for row in lines if f"eval/{name}/words_any" in row][-1]
    said = [("1" in row["response"]) for row in evaluated if row["set"] == name]
    assert figure[f"eval/{name}/words_1"] == pytest.approx(sum(said) / len(said))
    assert figure[f"eval/{name}/words_nowhere"] == 0
    history = read_accuracy_history(folder)
    assert [len(values) for values in history.values()] == [2]
    out = tmp_path / "chosen.jsonl"
    result = CliRunner().invoke(app, ["select", str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    (row,) = [json.loads(line) for line in out.open()]
    assert (row["id"], row["visits"]) == (next(iter(history)), 2)


def test_a_label_is_replaced_by_id_or_refused(recipe_values):
    from rlvr.data import ArithmeticSource

    problems = load_problems(ArithmeticSource(digits=1, size=5))
    changed = relabelled(problems, {problems[2].id: "929725"})
    assert [p.answer for p in changed] == [
        "929725" if index == 2 else p.answer for index, p in enumerate(problems)
    ]
    with pytest.raises(ValueError, match="'nobody'"):
        relabelled(problems, {"nobody": "1"})


def test_a_reward_model_that_was_trained_before_rewards_from_the_first_step(
    recipe_values, guessing_folder, tmp_path
):
    """Frozen, against the policy's own model as its reference."""
    settings = ModelSettings(path=str(guessing_folder))
    policy = load_policy(settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    policy.causal_lm.save_pretrained(tmp_path / "trained")
    load_tokenizer(settings).save_pretrained(tmp_path / "trained")
    prime = {"update": "none", "model": {"path": str(tmp_path / "trained")}}
    folder = run_in_process({**recipe_values, "steps": 1, "prime": prime})
    (row,) = (row for row in figures(folder) if "prm/drift" in row)
    assert row["prm/drift"] > 0.001
    assert "prm/loss" not in row
    assert not (folder / "prm").exists()
