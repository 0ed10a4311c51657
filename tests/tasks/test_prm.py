"""Training a reward model from labels, scoring and ranking files, and what is refused."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.data.labelled_responses import load_responses
from rlvr.runs.log import read_metrics
from rlvr.settings import load_settings
from rlvr.tasks.prm import PrmRecipe, PrmTask
from rlvr.tasks.tools.rank import rank, rank_table
from rlvr.tasks.tools.score import Scoring, read_scored, score
from tests.command import refused
from tests.training import column, run

PROBLEMS, SAMPLES = 20, 4


def rows_of(seed, problems=PROBLEMS):
    """Sums; a right answer has the step "ok", a wrong one "no"."""
    generator, rows = random.Random(seed), []
    for number in range(problems):
        a, b = generator.randrange(10), generator.randrange(10)
        for sample in range(SAMPLES):
            right = sample % 2 == 0
            answer = str(a + b if right else a + b + 1 + sample)
            word = "ok" if right else "no"
            rows.append(
                {
                    "problem_id": f"{seed}/{number}",
                    "prompt": f"<bos>{a}+{b}=",
                    "response": f"add\n\n{word}\n\n\\boxed{{{answer}}}",
                    "correct": right,
                    "extracted": answer,
                }
            )
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def values(tiny_folder, tmp_path):
    return {
        "task": "prm",
        "output": str(tmp_path / "prm"),
        "steps": 10,
        "model": {"path": str(tiny_folder)},
        "data": {"sources": [str(write(tmp_path / "train.jsonl", rows_of(0)))], "per_step": 32},
        "learner": {"lr": 3e-3},
        "evaluation": {
            "every": 5,
            "responses": {"held_out": [str(write(tmp_path / "held_out.jsonl", rows_of(1)))]},
        },
        "checkpoint": {"every": 5, "keep": 2},
    }


@pytest.mark.parametrize(
    ("objective", "start"), [("ce", 0.6931), ("dpo", 0.6931), ("nca", 1.3863), ("kto", 0.5)]
)
def test_every_objective_learns_to_rank_held_out_responses(values, tmp_path, objective, start):
    _, metrics = run(values, f"objective.name={objective}")
    losses = column(metrics, "preference/loss")
    assert losses[0] == pytest.approx(start, abs=1e-3)
    assert losses[-1] < losses[0]
    areas = column(metrics, "eval/held_out/auc_within")
    assert areas[0] == 0.5
    assert areas[-1] > 0.95
    kept = read_metrics(tmp_path / "prm" / "calibration.jsonl")
    assert [(row["step"], row["set"]) for row in kept] == [(s, "held_out") for s in (0, 5, 10)]
    assert sum(item["count"] for item in kept[-1]["bins"]) == PROBLEMS * SAMPLES
    assert kept[-1]["brier"] == pytest.approx(column(metrics, "eval/held_out/brier")[-1])
    if objective == "ce":
        assert column(metrics, "eval/held_out/brier")[-1] < 0.25


def test_a_run_stopped_and_resumed_ends_where_it_would_have_ended(values, tmp_path):
    folder, _ = run(values)
    other = {**values, "output": str(tmp_path / "other")}
    run(other, "steps=5")
    again, _ = run(other, resume=True)
    one, two = (load_file(f / "model" / "model.safetensors") for f in (folder, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_without_a_reference_the_log_probability_alone_is_trained(values):
    folder, metrics = run(values, "use_reference=false", "steps=2", "evaluation.every=1")
    assert not (folder / "reference.safetensors").exists()
    assert column(metrics, "preference/loss")[0] > 1  # sigmoid of a very unlikely response


def test_a_dry_run_counts_pairs(values):
    plan = PrmTask.plan(load_settings(PrmRecipe, values, ["objective.name=dpo"]))
    assert "# responses: 80 to 20 problems, 40 of them right" in plan
    assert "# pairs: 80\n" in plan


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["objective.name=cee"], "'ce'"),
        (["objective.name=kto", "use_reference=false"], "use ce"),
        (["objective={name: dpo, balance: dataset}"], "balance"),
        (["learner.updates_per_rollout=2"], "unknown setting"),
        (["data.max_response_tokens=2"], "none of 80 responses"),
        (["data.sources=[none.jsonl]"], "does not exist"),
        (["data.steps=lines"], "means nothing to the objective 'ce'"),
        (["reference={path: x}", "use_reference=false"], "leave one out"),
        (["evaluation.responses={a/b: [x.jsonl]}"], "names 'a/b'"),
    ],
)
def test_what_cannot_work_is_refused(values, overrides, part):
    with pytest.raises(ValueError, match=r"\S") as caught:
        run(values, *overrides)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_responses_all_of_one_kind_make_no_pairs(values, tmp_path):
    rows = [row for row in rows_of(0) if row["correct"]]
    values["data"]["sources"] = [str(write(tmp_path / "right.jsonl", rows))]
    with pytest.raises(ValueError, match="both right and wrong"):
        run(values, "objective.name=dpo")
    with pytest.raises(ValueError, match="keeps none of 40"):
        run(values, "objective.balance=instruction")


def in_steps(rows):
    """The same responses with labels of steps: "no" and what follows it is wrong."""
    found = []
    for row in rows:
        steps = row["response"].split("\n\n")
        labels = [None, row["correct"], row["correct"]]
        found.append({"prompt": row["prompt"], "steps": steps, "step_labels": labels})
    return found


def test_a_second_stage_learns_labels_of_steps_from_the_first_ones_reference(
    values, tmp_path, tiny_folder
):
    folder, metrics = run(values, "steps=3")
    reached = column(metrics, "eval/held_out/brier")[-1]
    steps = write(tmp_path / "steps.jsonl", in_steps(rows_of(2)))
    second = {
        **values,
        "output": str(tmp_path / "second"),
        "model": {"path": str(folder / "model")},
        "reference": {"path": str(tiny_folder)},
        "objective": {"name": "steps"},
        "data": {"sources": [str(steps)], "per_step": 32},
    }
    plan = PrmTask.plan(load_settings(PrmRecipe, second))
    assert "# steps: 240, 160 judged, 80 of them wrong" in plan
    assert "# responses in steps: 80\n" in plan
    _, metrics = run(second)
    # It starts where the first stage ended: rewards are against that one's reference.
    assert column(metrics, "eval/held_out/brier")[0] == pytest.approx(reached, abs=1e-6)
    losses, right = column(metrics, "preference/loss"), column(metrics, "preference/step_accuracy")
    assert losses[-1] < losses[0]
    assert right[-1] > 0.9
    assert column(metrics, "eval/held_out/auc_within")[-1] > 0.95
    once = load_file(tmp_path / "second" / "model" / "model.safetensors")
    (tmp_path / "second").rename(tmp_path / "whole")
    run(second, "steps=5")
    run(second, resume=True)
    again = load_file(tmp_path / "second" / "model" / "model.safetensors")
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_labels_of_steps_that_teach_nothing_are_refused(values, tmp_path):
    path = tmp_path / "steps.jsonl"
    values["data"]["sources"] = [str(path)]
    for row, part in (
        ({"prompt": "1", "steps": ["a"], "step_labels": [None]}, "line 1: no step is judged"),
        ({"prompt": "1", "steps": ["a"]}, "no step is judged"),
        ({"prompt": "1", "response": "a", "correct": True}, "no step is judged"),
    ):
        write(path, [row])
        with pytest.raises(ValueError, match=part):
            run(values, "objective.name=steps")


def test_responses_are_judged_where_nobody_has(tmp_path):
    path = write(
        tmp_path / "plain.jsonl",
        [
            {"prompt": "1+1=", "completion": "so \\boxed{2}", "answer": "2"},
            {"prompt": [{"role": "user", "content": "1+1="}], "response": "\\boxed{3}",
             "answer": "2"},
        ],
    )  # fmt: skip
    first, second = load_responses([path])
    assert (first.correct, first.extracted, second.correct) == (True, "2", False)
    assert first.problem == second.problem


@pytest.fixture
def trained(values):
    folder, _ = run(values)
    return folder / "model"


def test_scores_written_to_a_file_rank_as_scores_taken_at_once(
    trained, tiny_folder, tmp_path, values
):
    held_out, scored = tmp_path / "held_out.jsonl", tmp_path / "scored.jsonl"
    arguments = ["--model", str(trained), "--reference", str(tiny_folder)]
    runner = CliRunner()
    done = runner.invoke(app, ["prm", "score", str(held_out), *arguments, "--out", str(scored)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in scored.open()]
    for row in rows:
        assert len(row["step_rewards"]) == 3
        assert row["step_ends"][-1] == len(row["token_rewards"])
        assert sum(row["step_rewards"]) == pytest.approx(row["reward"], abs=1e-3)
    outputs = [
        runner.invoke(app, ["prm", "rank", *source, "--out", str(tmp_path / "out.json")]).output
        for source in ([str(scored)], [str(held_out), *arguments])
    ]
    assert outputs[0] == outputs[1]
    assert "majority vote" in outputs[0]
    curves = json.loads((tmp_path / "out.json").read_text())["curves"]
    assert curves["random"]["4"]["value"] == 0.5
    assert curves["best_of_n"]["4"]["value"] > 0.9
    assert curves["best_of_n"]["1"]["value"] == pytest.approx(0.5)
    assert curves["weighted_vote"]["4"]["value"] >= curves["majority"]["4"]["value"] - 1e-9
    assert curves["pass"]["4"]["value"] == 1.0


def test_a_model_that_is_its_reference_ranks_as_chance_and_votes_as_the_majority(
    tiny_folder, values, tmp_path
):
    how = Scoring(str(tiny_folder), str(tiny_folder))
    found = rank(score(load_responses([tmp_path / "held_out.jsonl"]), how))
    assert found["quality"]["auc_within"] == 0.5
    curves = found["curves"]
    for n in ("1", "2", "4"):
        exact, drawn = curves["majority"][n]["value"], curves["weighted_vote"][n]["value"]
        assert drawn == pytest.approx(exact, abs=0.05)
    assert "random" in rank_table(found)


def test_what_rank_cannot_do_is_said_in_one_line(tiny_folder, values, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    assert "has no step_rewards" in refused("prm", "rank", held_out)
    assert "needs its reference" in refused("prm", "rank", held_out, "--model", tiny_folder)
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "1", "response": "2"}])
    assert "neither true nor false" in refused("prm", "rank", bad)
    with pytest.raises(ValueError, match="neither diff nor cumulative"):
        rank(read_scored([write(tmp_path / "s.jsonl", [{**rows_of(0)[0], "step_rewards": [1.0]}])]),
             values="differences")  # fmt: skip


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_a_bag_of_steps_learns_from_outcomes_alone(values, rho):
    values["objective"] = {"name": "bag", "rho": rho, "beta": 0.2}
    _, metrics = run(values)
    losses = column(metrics, "preference/loss")
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0]
    assert column(metrics, "eval/held_out/auc_within")[-1] > 0.9
    plan = PrmTask.plan(load_settings(PrmRecipe, values))
    assert "# responses in bags of steps: " in plan


def test_a_bag_of_single_steps_is_cross_entropy(values, tmp_path):
    """No response has the marker, so every bag holds one step: the same run.

    Such a large epsilon keeps updates in proportion to gradients. With a small one Adam makes a
    whole step of a gradient that is nothing but rounding.
    """
    overrides = ("steps=3", "learner.lr=0.1", "learner.epsilon=1.0")
    plain, _ = run({**values, "objective": {"name": "ce"}}, *overrides)
    data = {**values["data"], "steps": "@@"}
    other = {**values, "output": str(tmp_path / "bag"), "data": data}
    bags, _ = run({**other, "objective": {"name": "bag", "rho": 0.3}}, *overrides)
    start = load_file(f"{values['model']['path']}/model.safetensors")
    one, two = (load_file(f / "model" / "model.safetensors") for f in (plain, bags))
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    assert moved > 1e-3
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-4 * moved) for name in one)
