"""A trained reward model as a term of a completion's reward."""

import json
import os

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.data import load_template
from rlvr.data.labelled_responses import encode_responses, load_responses
from rlvr.policy.batching import padded_inputs
from rlvr.policy.loading import load_policy, load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import character_tokenizer
from rlvr.reward_models.head_settings import LayerQueries
from rlvr.reward_models.heads import OutcomeRewardModel, head_writer
from rlvr.reward_models.outcome_scores import outcome_rewards
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train
from rlvr.rollout.weight_sync import write_model
from rlvr.runs.rewards import RewardSettings
from rlvr.runs.scoring import Scorer
from rlvr.settings import load_settings
from rlvr.tasks.tools.score import Scoring, score
from rlvr.types import Completion, Group, Message, Problem

SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115


@pytest.fixture(scope="session")
def scored_folder(guessing_folder, tmp_path_factory):
    """A model folder with a head that was drawn at random, and that head's model."""
    folder = tmp_path_factory.mktemp("scored") / "model"
    policy = load_policy(ModelSettings(path=str(guessing_folder)))
    torch.manual_seed(1)
    model = OutcomeRewardModel(policy, LayerQueries(heads=2, layers=(1,)), bias=True).eval()
    torch.nn.init.normal_(model.head.out.weight)
    write_model(policy, folder, torch.float32)
    load_tokenizer(ModelSettings(path=str(guessing_folder))).save_pretrained(folder)
    head_writer(model)(folder)
    return folder, model


def groups_of(tokenizer, texts):
    problem = Problem("a", (Message(role="user", content="1+1="),), "2", "test")
    prompt = (1, *tokenizer("1+1=")["input_ids"])
    completions = [(*tokenizer(text)["input_ids"], 2) for text in texts]
    rows = [
        Completion("a", "1/0", index, prompt, ids, (0.0,) * len(ids), "stop", 0)
        for index, ids in enumerate(completions)
    ]
    return [Group(problem, tuple(rows))]


def test_its_value_is_the_models_own_and_joins_the_sum_with_its_weight(scored_folder):
    folder, model = scored_folder
    tokenizer = load_tokenizer(ModelSettings(path=str(folder)))
    groups = groups_of(tokenizer, ["\\boxed{2}", "\\boxed{3}", "no"])
    rows = groups[0].completions
    with torch.no_grad():
        expected = [
            float(model(padded_inputs([row.prompt_ids], [row.token_ids], (0,)))) for row in rows
        ]
    assert len({*expected}) == 3
    term = {"path": str(folder), "weight": 0.5}
    settings = load_settings(RewardSettings, {"models": [term]})
    with Scorer(settings, tokenizer, 8) as scorer:
        ((*found,),) = scorer.score(groups)
    for item, value, right in zip(found, expected, (1.0, 0.0, 0.0), strict=True):
        assert item.rewards == {"accuracy": right, "model": pytest.approx(value, abs=1e-5)}
        assert item.reward == pytest.approx(right + 0.5 * value, abs=1e-5)
    alone = {"functions": [], "models": [{**term, "name": "orm", "transform": "sigmoid"}]}
    with Scorer(load_settings(RewardSettings, alone), tokenizer, 8) as scorer:
        ((*found,),) = scorer.score(groups)
    chances = torch.tensor(expected).sigmoid().tolist()
    assert [item.rewards["orm"] for item in found] == pytest.approx(chances, abs=1e-5)
    assert [item.reward for item in found] == pytest.approx([0.5 * p for p in chances], abs=1e-5)


def test_what_cannot_be_a_term_is_refused(scored_folder, guessing_folder, tmp_path):
    folder, _ = scored_folder
    tokenizer = load_tokenizer(ModelSettings(path=str(folder)))
    with pytest.raises(ValueError, match="give at least one"):
        load_settings(RewardSettings, {"functions": []})
    twice = [{"path": str(folder)}, {"path": str(folder)}]
    with pytest.raises(ValueError, match="each with a different name"):
        load_settings(RewardSettings, {"models": twice})
    bare = load_settings(RewardSettings, {"models": [{"path": str(guessing_folder)}]})
    with (
        pytest.raises(ValueError, match="holds no reward model's head"),
        Scorer(bare, tokenizer, 8),
    ):
        pass
    other = character_tokenizer()
    other.add_tokens(["newcomer"])
    settings = load_settings(RewardSettings, {"models": [{"path": str(folder)}]})
    with (
        pytest.raises(ValueError, match="another tokenizer than the policy"),
        Scorer(settings, other, 8),
    ):
        pass


def test_a_policy_is_trained_on_it(recipe_values, scored_folder):
    """The tests' policy has no mixed groups by the model's reward alone, unless it is looked at."""
    models = f"reward.models=[{{path: {scored_folder[0]}, transform: sigmoid}}]"
    overrides = ["steps=1", "evaluation={sets: {}}", "reward.functions=[]", models]
    recipe = load_settings(RLRecipe, recipe_values, overrides)
    folder = train(recipe, console=SILENT)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    step = next(row for row in rows if row.get("step") == 1)
    assert 0 < step["reward/mean"] < 1
    assert step["reward/std"] > 0
    kept = [json.loads(line) for line in next((folder / "completions").glob("*.jsonl")).open()]
    assert {*kept[0]["rewards"]} == {"model"}


def test_responses_are_ranked_by_it_as_by_an_implicit_one(scored_folder, guessing_folder, tmp_path):
    folder, model = scored_folder
    path, scored = tmp_path / "held_out.jsonl", tmp_path / "scored.jsonl"
    rows = [
        {
            "problem_id": str(number),
            "prompt": f"{number}+1=",
            "response": f"\\boxed{{{number + 1 + sample}}}",
            "extracted": str(number + 1 + sample),
            "correct": sample == 0,
        }
        for number in range(4)
        for sample in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["prm", "score", str(path), "--model", str(folder), "--out", str(scored)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    kept = [json.loads(line) for line in scored.open()]
    responses = load_responses([path])
    tokenizer = load_tokenizer(ModelSettings(path=str(folder)))
    encoded = encode_responses(responses, load_template("raw"), tokenizer)
    prompts, ids = zip(*encoded, strict=True)
    expected = outcome_rewards(model, prompts, ids, tokens_per_micro_batch=20).tolist()
    assert [row["reward"] for row in kept] == pytest.approx(expected, abs=1e-4)
    assert all(row["step_rewards"] == [row["reward"]] for row in kept)
    outputs = [
        CliRunner().invoke(app, ["prm", "rank", *source, "--out", str(tmp_path / "out.json")])
        for source in ([str(scored)], [str(path), "--model", str(folder)])
    ]
    assert outputs[0].output == outputs[1].output
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["settings"]["beta"], found["settings"]["vote_coefficient"]) == (1.0, 1.0)
    best = sum(
        max(range(4), key=lambda sample, n=number: expected[4 * n + sample]) == 0
        for number in range(4)
    )
    assert found["curves"]["best_of_n"]["4"]["value"] == pytest.approx(best / 4)
    with pytest.raises(ValueError, match="which has no reference"):
        score(responses, Scoring(str(folder), str(guessing_folder)))
