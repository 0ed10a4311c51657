"""Parts from outside of the package: found by their place, validated, found again; faults named."""

from pathlib import Path

import pytest
import yaml

from rlvr.objective.parts import PolicyLoss
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import load_settings, to_yaml

SOURCE = {"name": "arithmetic", "digits": 1, "size": 4}
VALUES = {"output": "x", "steps": 1, "model": {"path": "x"}, "data": {"source": SOURCE}}
MINE = '''
from __future__ import annotations
from typing import Literal
from pydantic import Field
from rlvr.objective.loss_inputs import LossInputs, PerToken
from rlvr.objective.parts import PolicyLoss

class Mine(PolicyLoss):
    """Mine."""
    name: Literal["mine"] = "mine"
    strength: float = Field(1.0, ge=0)
    """How strong."""
    def __call__(self, terms: LossInputs) -> PerToken:
        return PerToken(-self.strength * terms.advantages_BT * terms.logprobs_BT)

class Bare(PolicyLoss):
    """Without its mathematics."""
    name: Literal["bare"] = "bare"

class Nameless(PolicyLoss):
    """Without a name."""
    def __call__(self, terms: LossInputs) -> PerToken:
        return PerToken(terms.logprobs_BT)

class Stranger:
    """No loss at all."""
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_loss.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "unreadable.py").write_text("def (:\n")
    return tmp_path


def recipe(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**VALUES, **changes}))
    return path


def test_a_class_of_a_file_beside_the_recipe_reads_its_settings(folder):
    given = {"name": "my_loss.py:Mine", "strength": 2}
    loaded = load_settings(RLRecipe, recipe(folder, policy_loss=given))
    assert (loaded.policy_loss.name, loaded.policy_loss.strength) == ("mine", 2.0)
    written = to_yaml(loaded)
    assert f"name: {folder}/my_loss.py:Mine" in written
    elsewhere = folder / "run" / "recipe.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(written)
    assert load_settings(RLRecipe, elsewhere) == loaded, "the very same class, too"
    assert "mine" not in PolicyLoss.registry()


def test_on_the_command_line_it_is_of_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    loaded = load_settings(RLRecipe, VALUES, ["policy_loss={name: 'my_loss.py:Mine'}"])
    assert f"name: {folder}/my_loss.py:Mine" in to_yaml(loaded)
    loaded = load_settings(RLRecipe, VALUES, [f"policy_loss.name={folder}/my_loss.py:Mine"])
    assert loaded.policy_loss.name == "mine"


def test_a_class_of_a_module_is_written_down_by_the_module(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    loaded = load_settings(RLRecipe, VALUES, ["policy_loss.name=my_loss:Mine"])
    assert "name: my_loss:Mine" in to_yaml(loaded)


def test_a_file_called_like_a_package_shadows_nothing(folder):
    (folder / "reward.py").write_text(MINE)
    loaded = load_settings(RLRecipe, recipe(folder, policy_loss={"name": "reward.py:Mine"}))
    import reward

    assert loaded.policy_loss.name == "mine"
    assert Path(reward.__file__).name == "__init__.py"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("my_lss.py:Mine", ["no file 'my_lss.py'", "beside the recipe"]),
        ("my_loss.py:Min", ["has no 'Min'", "it defines Mine, Bare, Nameless, Stranger"]),
        ("my_loss.py:Bare", ["lacks __call__", "define it"]),
        ("my_loss.py:Nameless", ["has no name", 'name: Literal["nameless"] = "nameless"']),
        ("my_loss.py:Stranger", ["is no PolicyLoss", "extends rlvr.objective.parts.PolicyLoss"]),
        ("broken.py:Mine", ["broken.py cannot be imported", "nothing_of_that_name"]),
        ("unreadable.py:Mine", ["cannot be imported: SyntaxError", "line 1"]),
        ("no.such.module:Mine", ["cannot be imported", "give file.py:Name"]),
        ("clp", ["unknown name 'clp'", "did you mean 'clip'"]),
        ("ppo", ["unknown name 'ppo'", "here it is 'clip'"]),
        ("ipo", ["ipo is refused in reinforcement learning", "use it in task preference"]),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_in_one_line(folder, name, parts):
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_settings(RLRecipe, recipe(folder, policy_loss={"name": name}))
    message = str(caught.value)
    assert "\n" not in message
    assert "policy_loss" in message or "refused" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"name": "my_loss.py:Mine", "strength": -1}, "'policy_loss.strength' = -1: input should"),
        (
            {"name": "my_loss.py:Mine", "strenth": 1},
            "'policy_loss.strenth' (value 1); did you mean",
        ),
        ("clip", "'policy_loss' = 'clip': a group of settings is needed, such as {name: clip}"),
    ],
)
def test_settings_of_a_part_are_checked_like_all_others(folder, given, part):
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_settings(RLRecipe, recipe(folder, policy_loss=given))
    assert part in str(caught.value)


def test_a_reward_function_is_found_in_the_same_way(folder):
    (folder / "mine.py").write_text("def shout(item):\n    return 1.0\nNONE = None\n")
    functions = [{"function": "accuracy"}, {"function": "mine.py:shout"}]
    loaded = load_settings(RLRecipe, recipe(folder, reward={"functions": functions}))
    assert [term.label for term in loaded.reward.functions] == ["accuracy", "shout"]
    assert f"function: {folder}/mine.py:shout" in to_yaml(loaded)
    for name, part in (("mine.py:shuot", "has no 'shuot'"), ("mine.py:NONE", "is no function")):
        with pytest.raises(ValueError, match=part):
            load_settings(RLRecipe, recipe(folder, reward={"functions": [{"function": name}]}))
