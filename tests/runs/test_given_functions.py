"""Reward functions that Python gives as objects: recorded by name, found again or asked for."""

import functools

import pytest
import yaml
from trl.rewards import think_format_reward

from rlvr.rl.recipe import RLRecipe
from rlvr.runs.function_calls import planned
from rlvr.runs.rewards import RewardSettings
from rlvr.settings import load_settings, to_yaml
from rlvr.settings.outside import load_outside
from tests.command import refused
from tests.judges import noisy_judge
from tests.training import run


def make(value):
    def score(response):
        return value

    return score


class Judge:
    def __call__(self, response):
        return 4.0


def test_each_recipe_keeps_its_own_function_however_it_is_passed_on():
    one, two = (
        load_settings(RewardSettings, {"functions": [{"function": make(x)}]}) for x in (1.0, 2.0)
    )
    both = RewardSettings(functions=({"function": make(3.0)}, {"function": Judge(), "name": "j"}))
    again = RewardSettings.model_validate(both.model_dump())
    values = [term.source("") for found in (one, two, both, again) for term in found.functions]
    assert values == [1.0, 2.0, 3.0, 4.0, 3.0, 4.0]
    assert [term.label for term in both.functions] == ["score", "j"]


@pytest.mark.parametrize(
    ("function", "recorded", "label"),
    [
        (noisy_judge, "tests.judges:noisy_judge", "noisy_judge"),
        (think_format_reward, ":think_format_reward", "think_format_reward"),
        (make(1.0), "test_given_functions:make.<locals>.score", "score"),
        (lambda response: 1.0, "test_given_functions:<lambda>", "lambda"),
        (functools.partial(noisy_judge, draw=1), "tests.judges:<noisy_judge>", "noisy_judge"),
        (Judge(), "test_given_functions:<Judge>", "Judge"),
    ],
)
def test_a_recipe_records_where_the_function_is(function, recorded, label):
    found = load_settings(RewardSettings, {"functions": [{"function": function}]})
    (term,) = yaml.safe_load(to_yaml(found))["functions"]
    assert term["function"].endswith(recorded)
    assert found.functions[0].label == label
    read = load_settings(RewardSettings, yaml.safe_load(to_yaml(found)))
    assert read == found
    if "<" in recorded:
        with pytest.raises(ValueError, match="given in Python and cannot be found from here"):
            planned(read.functions[0])
    else:
        assert load_outside(term["function"]) is function


def test_what_is_no_function_is_refused():
    with pytest.raises(ValueError, match="name of a function, or in Python the function itself"):
        RewardSettings(functions=({"function": 3},))
    with pytest.raises(ValueError, match=r"together \['score', 'score'\]"):
        RewardSettings(functions=({"function": make(1.0)}, {"function": make(2.0)}))


def test_a_run_goes_on_in_python_and_the_command_line_says_how(recipe_values, tmp_path):
    values = {**recipe_values, "steps": 2, "evaluation": {}}
    given = {**values, "reward": {"functions": [{"function": make(1.0)}]}}
    folder, _ = run(given, "steps=1")
    assert "make.<locals>.score" in (folder / "recipe.yaml").read_text()
    line = refused("train", folder / "recipe.yaml", "--resume", "steps=2")
    assert "'tests.runs.test_given_functions:make.<locals>.score' was given in Python" in line
    assert "file.py:score" in line
    _, metrics = run(given, resume=True)
    assert max(row["step"] for row in metrics) == 2
    (tmp_path / "kept.py").write_text("def score(response):\n    return 1.0\n")
    functions = [{"function": f"{tmp_path}/kept.py:score"}]
    _, metrics = run({**values, "steps": 3, "reward": {"functions": functions}}, resume=True)
    assert max(row["step"] for row in metrics) == 3


def test_a_recipe_with_functions_is_that_of_its_task(recipe_values):
    values = {**recipe_values, "reward": {"functions": [{"function": lambda item: 1.0}]}}
    recipe = load_settings(RLRecipe, values, ["steps=3"])
    assert recipe.reward.functions[0].source(None) == 1.0
    assert load_settings(RLRecipe, yaml.safe_load(to_yaml(recipe))) == recipe
