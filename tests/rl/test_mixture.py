"""A mixture of experts through the whole loop: losses, replay, telemetry, record."""

import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.reinforce import Reinforce
from rlvr.objective.reducers import TokenMean
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.quickstart import EXPERTS, quickstart_recipe, warm_up_once
from rlvr.report.headline import headline
from rlvr.report.recorded_run import read_run
from rlvr.rl.plan import render_plan
from rlvr.rl.recipe import PathwaySettings, RLRecipe
from rlvr.rl.routing_probe import Probe
from rlvr.runs.prompts import Prompt
from rlvr.settings import load_settings
from rlvr.types import Problem
from tests.rl.test_train import figures, run_in_process


@pytest.fixture
def values(recipe_values, mixture_folder):
    """The small recipe on a tiny mixture, and every figure of its routers."""
    evaluation = {**recipe_values["evaluation"], "pathways": {"problems": 10}}
    return {
        **recipe_values,
        "steps": 4,
        "model": {"path": str(mixture_folder)},
        "router": {"balance": 0.1, "z": 0.01, "against": "old", "replay": True},
        "evaluation": evaluation,
        "regularisers": [],
    }


def test_a_run_in_two_parts_ends_where_one_in_one_part_ends(values, tmp_path):
    whole = run_in_process({**values, "output": str(tmp_path / "whole")})
    parts = {**values, "output": str(tmp_path / "parts")}
    run_in_process(parts, "steps=2")
    parts = run_in_process(parts, resume=True)
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert figures(whole) == figures(parts)
    steps = [row for row in figures(whole) if "router/balance" in row]
    assert len(steps) == 4
    assert all(row["router/balance"] > 0.9 for row in steps)
    assert steps[0]["router/changed"] >= 0
    measured = [row for row in figures(whole) if "eval/training/pathway_distance" in row]
    assert [row["step"] for row in measured] == [0, 2, 4]
    for row in measured:
        for name in ("training", "held_out"):
            assert 0 <= row[f"eval/{name}/pathway_distance"] <= 1
            assert -1 <= row[f"eval/{name}/pathway_consistency"] <= 1
            assert row[f"eval/{name}/answer_loss"] > 0
    start = load_file(f"{values['model']['path']}/model.safetensors")
    gate = next(name for name in start if name.endswith("gate.weight"))
    assert not torch.equal(start[gate], one[gate]), "the router losses train without any reward"


def test_the_record_and_the_report_say_how_much_of_the_model_is_active(values):
    folder = run_in_process({**values, "steps": 1})
    card = json.loads((folder / "run.json").read_text())["model"]
    assert card["parameters"] > card["active_parameters"]
    assert (card["experts"], card["experts_per_token"]) == (6, 2)
    facts = dict(headline(read_run(folder))["facts"])
    assert f"{card['active_parameters']:,} active per token (2 of 6 experts" in facts["Parameters"]
    plan = render_plan(load_settings(RLRecipe, values))
    assert f"{card['parameters']:,} parameters, {card['active_parameters']:,} active" in plan


def test_watching_leaves_a_run_as_it_is(values, tmp_path):
    plain = {**values, "router": None, "steps": 2, "output": str(tmp_path / "plain")}
    plain["evaluation"] = {**values["evaluation"], "pathways": None}
    watched = {**values, "steps": 2, "output": str(tmp_path / "watched")}
    watched["router"] = {"balance": 0, "z": 0, "against": "old"}
    one, two = (
        load_file(run_in_process(v) / "model" / "model.safetensors") for v in (plain, watched)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_engine_sends_tokens_where_the_learner_does(values):
    router = {"balance": 0.1, "z": 0, "against": "engine", "replay": True}
    learner = {**values["learner"], "updates_per_rollout": 1}
    folder = run_in_process({**values, "router": router, "learner": learner, "steps": 2})
    changed = [row["router/changed"] for row in figures(folder) if "router/changed" in row]
    assert len(changed) == 2
    assert max(changed) < 0.01, "the same weights, and float32 in both"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"router": {"replay": True}}, "router.replay needs choices"),
        (
            {"router": {"against": "old"}, "learner": {"lr": 1e-3}},
            "compares the policy with itself",
        ),
        (
            {"router": {"against": "engine"}, "rollout": {"engine": {"name": "vllm"}}},
            "needs an engine that tells",
        ),
        ({"model": {"path": "x", "compile": True}}, "model.compile = true drops"),
    ],
)
def test_what_cannot_work_is_refused(values, change, message):
    with pytest.raises(ValueError, match=message):
        load_settings(RLRecipe, {**values, **change})


def test_a_dense_model_has_no_routers_to_set(values, tiny_folder):
    with pytest.raises(ValueError, match="no mixture-of-experts layers"):
        run_in_process({**values, "model": {"path": str(tiny_folder)}})


def test_an_evaluation_set_may_not_be_called_as_the_training_problems_are(values):
    sets = {"training": next(iter(values["evaluation"]["sets"].values()))}
    evaluation = {**values["evaluation"], "sets": sets}
    with pytest.raises(ValueError, match="rename that set"):
        load_settings(RLRecipe, {**values, "evaluation": evaluation})


def probe_of(folder, count=12, **settings):
    tokenizer = load_tokenizer(ModelSettings(path=str(folder)))
    prompts = [
        Prompt(
            problem=Problem(f"p{i}", ({"role": "user", "content": ""},), str(3 * i), "made"),
            ids=tuple(tokenizer(f"{i}+{2 * i}=")["input_ids"]),
        )
        for i in range(count)
    ]
    return Probe(PathwaySettings(**settings), {"made": prompts}, tokenizer)


def test_the_probe_leaves_model_and_gradients_alone_and_repeats_itself(mixture_folder):
    policy = load_policy(ModelSettings(path=str(mixture_folder)))
    policy.watch_routers()
    learner = Learner(policy, Objective(Reinforce(), (), TokenMean()), LearnerSettings())
    before = [p.clone() for p in policy.parameters()]
    probe = probe_of(mixture_folder)
    one, two = probe.measure(learner), probe.measure(learner)
    assert one == two
    learner.budget.tokens = 40
    split = probe.measure(learner)
    assert split == pytest.approx(one, abs=1e-5)
    assert all(p.grad is None for p in policy.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_a_response_that_is_no_format_is_named(mixture_folder):
    with pytest.raises(ValueError, match=r"pathways\.response = 'boxed\{x\}'"):
        probe_of(mixture_folder, response="boxed{x}")


def test_the_quickstart_has_a_mixture_too(tmp_path, monkeypatch):
    recipe = quickstart_recipe(0, tmp_path, moe=True)
    assert recipe.router is not None
    assert recipe.evaluation.pathways is not None
    assert recipe.model.path.endswith("tiny-moe")
    monkeypatch.setattr("rlvr.quickstart.warm_up", lambda *_: {"steps": 0, "sampled_accuracy": 0.2})
    warm_up_once(0, tmp_path / "tiny-moe", Console(quiet=True), EXPERTS)
    policy = load_policy(ModelSettings(path=str(tmp_path / "tiny-moe")))
    assert policy.watch_routers().experts == 8
    assert quickstart_recipe(0, tmp_path).router is None


def test_more_experts_a_token_than_there_are_is_refused(tmp_path):
    with pytest.raises(ValueError, match="experts_per_token = 5 of 4 experts"):
        write_tiny_model(tmp_path, 0, TinySettings(experts=4, experts_per_token=5))
