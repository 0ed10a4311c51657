"""Rewards of completions as the loop gives them, and evaluation that compares like with like."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
from rich.console import Console

from reward.certainty import LEVELS
from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.run import build_learner, open_run
from rlvr.runs.evaluation import evaluate
from rlvr.runs.rewards import RewardSettings
from rlvr.runs.scoring import Scorer
from rlvr.settings import load_settings
from rlvr.types import Completion, Group, Message, Problem
from tests.data.byte_tokenizers import CHATML, build
from tests.training import run, small_recipe

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
    with open_run(recipe, resume=False, console=SILENT) as opened:
        metrics, rows = evaluate(opened, opened.held_out)
        opened.step = 3
        again, later = evaluate(opened, opened.held_out)
        score = opened.scorer.score

        def all_cut(groups, limit, **more):
            scored = score(groups, limit, **more)
            for item in (item for group in scored for item in group):
                object.__setattr__(item.completion, "finish_reason", "length")
            return scored

        other = SimpleNamespace(score=all_cut, rewards_beyond_verdicts=False)
        cut, _ = evaluate(opened, replace(opened.held_out, scorer=other))
    assert metrics["eval/held_out/accuracy"] > 0
    assert again == metrics
    assert [row["tokens"] for row in later] == [row["tokens"] for row in rows]
    assert cut["eval/held_out/accuracy"] == 0
    assert cut["eval/held_out/truncated"] == 1


def test_the_learner_is_told_the_sampling_temperature_and_the_length_of_the_run(recipe_values):
    overrides = ["rollout.sampling.temperature=0.7", "steps=5"]
    learner = build_learner(load_settings(RLRecipe, recipe_values, overrides))
    assert learner.passes.temperature == pytest.approx(0.7)
    assert learner.total_updates == 10


def test_rewards_see_the_thought_and_how_the_prompt_ended(tmp_path):
    """Markers are special tokens; the reward function looks for them, the verifier behind them."""
    tokenizer = build(CHATML)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<think>", "</think>", "<|plan_think|>", "<|/plan_think|>"]},
        replace_extra_special_tokens=False,
    )
    (tmp_path / "own.py").write_text(
        "def tags(item):\n"
        "    return float(item.response.startswith('<think>two</think>') + 2 * bool(item.opened))\n"
    )
    own = {"function": f"{tmp_path / 'own.py'}:tags"}
    settings = load_settings(RewardSettings, {"functions": [{"function": "accuracy"}, own]})
    problem = Problem("a", (Message(role="user", content="2+2="),), "4", "test")

    def completion(prompt, text):
        ids = tuple(tokenizer.encode(text + "<|im_end|>"))
        prompt_ids = tuple(tokenizer.encode(f"<|im_start|>assistant\n{prompt}"))
        return Completion("a", "1/0", 0, prompt_ids, ids, (0.0,) * len(ids), "stop", 0)

    rows = (
        completion("", "<think>two</think>\\boxed{4}"),
        completion("", "<think>two \\boxed{4}"),
        completion("<think>\n", "\\boxed{4} and two: \\boxed{4}"),
        completion("<think>\n", "two</think>\\boxed{4}"),
        completion("", "<|plan_think|>\\boxed{4}"),
    )
    with Scorer(settings, tokenizer, 8) as scorer:
        (found,) = scorer.score([Group(problem, rows)])
    assert [item.rewards["accuracy"] for item in found] == [1, 0, 0, 1, 0]
    assert [item.rewards["tags"] for item in found] == [1, 0, 2, 2, 0]
    assert found[0].response == "<think>two</think>\\boxed{4}"


def test_the_token_that_closes_a_turn_stops_a_completion(guessing_folder, recipe_values, tmp_path):
    tokenizer = load_tokenizer(ModelSettings(path=str(guessing_folder)))
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "unk_token")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    values = {**recipe_values, "evaluation": {}}
    for name, ends in (("plain", (2, 3)), ("raw", (2,))):
        overrides = [f"model.tokenizer={tmp_path / 'tokenizer'}", f"data.template={name}"]
        recipe = load_settings(RLRecipe, values, [*overrides, f"output={tmp_path / name}"])
        with open_run(recipe, resume=False, console=SILENT) as opened:
            assert opened.engine.stop_ids == ends


@pytest.mark.parametrize("task", ["rl", "sft"])
def test_a_resume_that_would_see_other_prompts_is_refused(guessing_folder, tmp_path, task):
    """The chat template prints the time, to the microsecond."""
    jinja = tmp_path / "dated.jinja"
    jinja.write_text("{{ bos_token }}{{ strftime_now('%f') }}{{ messages[0]['content'] }}")
    template = {"mode": "chat", "chat_template": str(jinja)}
    values = {**small_recipe(guessing_folder, tmp_path / "run"), "steps": 2, "evaluation": {}}
    values["data"] = {**values["data"], "template": template}
    if task == "sft":
        (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "response": "2"}\n' * 4)
        data = {"sources": [str(tmp_path / "rows.jsonl")], "template": template, "per_step": 2}
        kept = {name: values[name] for name in ("output", "steps", "model", "checkpoint")}
        values = {**kept, "task": "sft", "data": data}
    folder, _ = run(values)
    state = json.loads(next(folder.glob("checkpoints/step_*2/state.json")).read_text())
    assert len(state["data_digest"]) == 16
    with pytest.raises(ValueError, match=r"trained on other tokens .* prints today's date"):
        run(values, "steps=4", resume=True)


def test_a_reward_may_ask_for_evidence(tiny_folder):
    """0.333333 is a third only within rounding."""
    tokenizer = load_tokenizer(ModelSettings(path=str(tiny_folder)))
    assert get_args(RewardSettings.model_fields["certainty"].annotation) == LEVELS
    found = {}
    for level in ("library", "points"):
        with Scorer(RewardSettings(certainty=level), tokenizer, 30) as scorer:
            (grade,) = scorer.pool.grade_many([("\\boxed{0.333333}", "\\frac{1}{3}")])
            found[level] = (grade.correct, grade.status, scorer.pool.counters["uncertain"])
    assert found == {"library": (True, "ok", 0), "points": (False, "uncertain", 1)}
