"""Rewards of completions as the loop gives them, and evaluation that compares like with like."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rlvr.policy import ModelSettings, load_tokenizer
from rlvr.settings import load_settings
from rlvr.train.batch import rollout_metrics
from rlvr.train.evaluation import evaluate
from rlvr.train.recipe import RewardSettings, RLRecipe
from rlvr.train.run import build_learner, open_run
from rlvr.train.scoring import Scorer, scored_from_state, scored_state
from rlvr.types import Completion, Group, Message, Problem
from tests.train.test_rl import figures, run_in_process

SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115


def completion_of(tokenizer, text, reason):
    ids = tuple(tokenizer(text)["input_ids"])
    return Completion("a", "1/0", 0, (1,), ids, (0.0,) * len(ids), reason, 0)


def test_a_truncated_completion_earns_nothing_however_right_it_looks(guessing_folder):
    tokenizer = load_tokenizer(ModelSettings(path=str(guessing_folder)))
    problem = Problem("a", (Message(role="user", content="1+1="),), "2", "test")
    rows = tuple(completion_of(tokenizer, "\\boxed{2}", reason) for reason in ("stop", "length"))
    with Scorer(RewardSettings(), tokenizer, 8) as scorer:
        ((whole, cut),) = scorer.score([Group(problem, rows)])
    assert (whole.reward, cut.reward) == (1.0, 0.0)
    assert whole.grade.correct
    assert cut.grade.correct


def test_evaluation_counts_the_truncated_as_wrong_and_draws_the_same_numbers_at_every_step(
    recipe_values,
):
    sampling = {"max_tokens": 8, "temperature": 1.0}
    overrides = [f"evaluation={{sets: {recipe_values['evaluation']['sets']}}}"]
    overrides += [f"evaluation.sampling={sampling}", "evaluation.samples=32"]
    recipe = load_settings(RLRecipe, recipe_values, overrides)
    with open_run(recipe, resume=False, console=SILENT) as run:
        metrics, rows = evaluate(run, run.held_out)
        run.step = 3
        again, later = evaluate(run, run.held_out)
        score = run.scorer.score

        def all_cut(groups, limit):
            scored = score(groups, limit)
            for item in (item for group in scored for item in group):
                object.__setattr__(item.completion, "finish_reason", "length")
            return scored

        cut, _ = evaluate(run, replace(run.held_out, scorer=SimpleNamespace(score=all_cut)))
    assert metrics["eval/held_out/accuracy"] > 0
    assert again == metrics
    assert [row["tokens"] for row in later] == [row["tokens"] for row in rows]
    assert cut["eval/held_out/accuracy"] == 0
    assert cut["eval/held_out/truncated"] == 1


def test_the_learner_is_told_the_sampling_temperature_and_the_length_of_the_run(recipe_values):
    overrides = ["rollout.sampling.temperature=0.7", "steps=5"]
    learner = build_learner(load_settings(RLRecipe, recipe_values, overrides))
    assert learner.temperature == pytest.approx(0.7)
    assert learner.total_updates == 10


def judge(item, *, seed: int = 0, spread: float = 0.0):
    """A made-up judge, its error by the response's length: exact for short ones."""
    unsure = spread * len(item.response) % 1
    return float(item.grade.correct) + (unsure if seed % 2 else -unsure)


UNCERTAIN = {
    "functions": [],
    "uncertain": {
        "scores": [
            {"function": "tests.train.test_scoring:judge", "parameters": {"seed": seed}}
            for seed in (0, 1)
        ]
    },
}


def spread_out(values, spread):
    changed = [{**s, "parameters": {**s["parameters"], "spread": spread}} for s in values["scores"]]
    return {**values, "scores": changed}


def test_uncertain_scores_are_averaged_and_their_spread_is_kept(guessing_folder):
    tokenizer = load_tokenizer(ModelSettings(path=str(guessing_folder)))
    problem = Problem("a", (Message(role="user", content="1+1="),), "2", "test")
    rows = tuple(completion_of(tokenizer, text, "stop") for text in ("\\boxed{2}", "\\boxed{3}"))
    settings = {**UNCERTAIN, "uncertain": spread_out(UNCERTAIN["uncertain"], 0.1)}
    reward = load_settings(RewardSettings, {**settings, "functions": [{"function": "accuracy"}]})
    with Scorer(reward, tokenizer, 8) as scorer:
        ((right, wrong),) = scorer.score([Group(problem, rows)])
    assert (right.reward, wrong.reward) == (2.0, 0.0)
    assert right.scores == pytest.approx((0.1, 1.9))
    assert right.uncertainty == pytest.approx(0.9)
    assert scored_from_state(scored_state(right)) == right
    found = rollout_metrics([[right, replace(wrong, uncertainty=0.1)]])
    assert found["reward/uncertainty"] == pytest.approx(0.5)
    assert found["reward/score_error"] == 0
    assert "reward/uncertainty_error" not in found, "the error does not vary"


def test_exact_scores_change_no_run(recipe_values, tmp_path):
    """Weights that see equal scores leave every parameter as it is."""
    weights = []
    for name, reward in (("plain", {}), ("scored", UNCERTAIN)):
        values = {**recipe_values, "steps": 2, "output": str(tmp_path / name), "reward": reward}
        folder = run_in_process(values)
        weights.append(load_file(folder / "model" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_unsure_scores_weigh_advantages(recipe_values):
    reward = {**UNCERTAIN, "uncertain": spread_out(UNCERTAIN["uncertain"], 0.03)}
    folder = run_in_process({**recipe_values, "steps": 1, "reward": reward})
    (row,) = [row for row in figures(folder) if "reward/uncertainty" in row]
    assert row["reward/uncertainty"] > 0
    kept = [json.loads(line) for line in (folder / "completions/step_000001.jsonl").open()]
    groups = {row["group"] for row in kept}
    for group in groups:
        own = [row["advantage"] for row in kept if row["group"] == group]
        assert sum(own) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": {"functions": []}}, "reward.functions is empty"),
        ({"reward": UNCERTAIN, "advantage": {"name": "gae"}}, "weighs the advantages"),
        ({"reward": UNCERTAIN, "advantage": {"name": "rloo"}}, "baseline plain"),
        ({"reward": {"uncertain": {"scores": []}}}, "at least 2"),
    ],
)
def test_uncertain_rewards_that_cannot_work_are_refused(recipe_values, change, message):
    with pytest.raises(ValueError, match=message):
        load_settings(RLRecipe, {**recipe_values, **change})
