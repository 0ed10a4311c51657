"""Rewards that are scored more than once: values, uncertainties, advantages, refusals."""

import json
import os
from statistics import fmean, pstdev

import pytest
import torch
from rich.console import Console

from reward.functions import RewardInput
from rlvr.objective.advantages.group import GroupAdvantage
from rlvr.objective.uncertainty import Uncertainty
from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.rl.batch import build_batch, group_advantages, rollout_metrics
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train
from rlvr.runs.rewards import RewardSettings
from rlvr.runs.scoring import Scorer, scored_from_state, scored_state
from rlvr.settings import load_settings
from tests.judges import noisy_judge
from tests.runs.test_model_reward import groups_of, scored_folder  # noqa: F401

SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115
JUDGE = {"function": "tests.judges:noisy_judge", "draws": 3, "weight": 2.0}
LABEL = "noisy_judge"
TEXTS = ["\\boxed{2}", "\\boxed{3}", "no", "\\boxed{11}", "7"]


@pytest.fixture
def tokenizer(guessing_folder):
    return load_tokenizer(ModelSettings(path=str(guessing_folder)))


def scored_by(terms, tokenizer, **settings):
    found = load_settings(RewardSettings, {"functions": terms, **settings})
    with Scorer(found, tokenizer, 8) as scorer:
        return scorer.score(groups_of(tokenizer, TEXTS))


def test_a_stochastic_function_is_worth_its_mean_and_as_sure_as_its_draws_agree(tokenizer):
    first = scored_by([JUDGE], tokenizer)
    assert first == scored_by([JUDGE], tokenizer)
    for item in first[0]:
        values = [
            noisy_judge(RewardInput(item.response, "2", item.grade), draw=draw) for draw in range(3)
        ]
        assert item.rewards[LABEL] == pytest.approx(fmean(values))
        assert item.reward == pytest.approx(2 * fmean(values))
        assert item.uncertainties[LABEL] == pytest.approx(pstdev(values))
        assert item.uncertainty == pytest.approx(2 * pstdev(values))
        assert scored_from_state(json.loads(json.dumps(scored_state(item)))) == item


def test_several_models_are_worth_their_mean_and_as_sure_as_they_agree(
    scored_folder, tokenizer  # noqa: F811
):  # fmt: skip
    path = str(scored_folder[0])
    term = {"path": path, "others": [path, path]}
    (alike,) = scored_by([], tokenizer, models=[term])
    (alone,) = scored_by([], tokenizer, models=[{"path": path}])
    for one, other in zip(alike, alone, strict=True):
        assert one.reward == pytest.approx(other.reward)
        assert one.uncertainties == {"model": 0.0}
        assert other.uncertainties == {}


def test_exact_rewards_are_left_alone_to_the_bit(tokenizer):
    plain = scored_by([{"function": "accuracy"}], tokenizer)
    drawn = scored_by([{"function": "tests.judges:sure", "draws": 2}], tokenizer)
    for advantage in (GroupAdvantage(), GroupAdvantage(scale="none")):
        expected = build_batch(plain, advantage)
        for apply in ("advantages", "rewards"):
            found = build_batch(drawn, advantage, uncertainty=Uncertainty(apply=apply))
            assert torch.equal(found.advantages_BT, expected.advantages_BT)
            assert torch.equal(found.rewards_B, expected.rewards_B)


def test_advantages_are_weighed_or_rewards_drawn_to_the_mean(tokenizer):
    scored = scored_by([JUDGE], tokenizer)
    plain = group_advantages(scored, GroupAdvantage())
    spreads = torch.tensor([item.uncertainty for item in scored[0]])
    weights = torch.exp(-spreads.double() / 0.5)
    weights = weights / weights.mean()
    rule = Uncertainty(temperature=0.5, apply="advantages")
    weighed = group_advantages(scored, GroupAdvantage(), rule)
    assert torch.allclose(weighed, (plain * weights).float(), atol=1e-6)
    rule = Uncertainty(temperature=0.5, apply="rewards")
    rewards = torch.tensor([item.reward for item in scored[0]]).double()
    drawn = rewards.mean() + weights * (rewards - rewards.mean())
    expected = GroupAdvantage()(drawn.float(), torch.zeros(5, dtype=torch.long))
    found = group_advantages(scored, GroupAdvantage(), rule)
    assert torch.allclose(found, expected, atol=1e-5)


def test_metrics_say_whether_uncertainty_tells_where_the_judge_errs(tokenizer):
    scored = scored_by([JUDGE], tokenizer)
    metrics = rollout_metrics(scored)
    name = LABEL
    spreads = [item.uncertainties[name] for item in scored[0]]
    assert metrics[f"reward/{name}/uncertainty"] == pytest.approx(fmean(spreads))
    errors = [abs(item.rewards[name] - float(item.grade.correct)) for item in scored[0]]
    expected = torch.corrcoef(torch.tensor([spreads, errors]))[0, 1]
    assert metrics[f"reward/{name}/uncertainty_error"] == pytest.approx(float(expected), abs=1e-5)
    exact = rollout_metrics(scored_by([{"function": "accuracy"}], tokenizer))
    assert not [key for key in exact if "uncertainty" in key]


def test_a_policy_is_trained_on_it(recipe_values):
    overrides = [f"reward.functions=[{json.dumps(JUDGE)}]", "reward.uncertainty={temperature: 0.5}"]
    overrides += ["steps=1", "evaluation={sets: {}}"]
    folder = train(load_settings(RLRecipe, recipe_values, overrides), console=SILENT)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    step = next(row for row in rows if row.get("step") == 1)
    assert step[f"reward/{LABEL}/uncertainty"] > 0


def test_what_cannot_be_weighed_is_refused(recipe_values):
    with pytest.raises(ValueError, match="every term has only one"):
        load_settings(RLRecipe, recipe_values, ["reward.uncertainty={}"])
    judged = [f"reward.functions=[{json.dumps(JUDGE)}]", "reward.uncertainty={apply: advantages}"]
    with pytest.raises(ValueError, match="use apply: rewards"):
        load_settings(RLRecipe, recipe_values, [*judged, "advantage={name: gae}"])
