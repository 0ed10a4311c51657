"""Rewards of completions as the loop gives them, and evaluation that compares like with like."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from rlvr.policy import ModelSettings, load_tokenizer
from rlvr.settings import load_settings
from rlvr.train.evaluation import evaluate
from rlvr.train.recipe import RewardSettings, RLRecipe
from rlvr.train.run import build_learner, open_run
from rlvr.train.scoring import Scorer
from rlvr.types import Completion, Group, Message, Problem

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
