"""A user's reward function that fails: named at the start, or after the finished steps are kept."""

import os
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from reward.functions import RewardError, RewardInput, combine
from reward.verdict import Grade
from rlvr.learner.learner import Learner
from rlvr.report import write_report
from rlvr.runs.collectives import FailedTogetherError, gather_or_stop
from rlvr.runs.ending import read_ending
from rlvr.runs.log import read_metrics
from rlvr.runs.reward_functions import RewardFunctions
from rlvr.runs.rewards import RewardTerm
from tests.command import call, refused
from tests.report.conftest import embedded
from tests.training import column, run

OWN = """
calls = 0

def score(item):
    global calls
    calls += 1
    {body}
"""


@pytest.fixture
def own(recipe_values, tmp_path):
    """A recipe file with a reward function of this body beside accuracy."""

    def own(name, body):
        file = tmp_path / f"{name}.py"
        file.write_text(OWN.format(body=body))
        functions = [{"function": "accuracy"}, {"function": f"{file}:score"}]
        values = {**recipe_values, "reward": {"functions": functions}}
        values["checkpoint"] = {"every": 6}
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return own


def item(**changed):
    grade = Grade(True, "2", "int", "exact", "")
    return RewardInput(
        **{"response": "2", "gold": "2", "grade": grade, "problem_id": "p", **changed}
    )


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("return 'good'", "returned 'good', of type str; it must return a number, or None"),
        ("return [1.0]", "returned [1.0], of type list"),
        ("return item.metadata['level']", "KeyError: 'level'"),
        ("return float('nan')", "finite number"),
    ],
)
def test_a_function_that_cannot_work_is_named_before_there_is_a_folder(
    own, recipe_values, tmp_path, body, part
):
    name = f"bad{abs(hash(body))}"
    line = refused("train", own(name, body))
    assert part in line
    assert "'score'" in line
    assert not Path(recipe_values["output"]).exists()


@pytest.mark.parametrize("nothing", ["None", "float('nan')"])
def test_none_says_that_a_function_does_not_apply(nothing):
    total = combine([("a", lambda item: 2.0, 0.5), ("b", lambda item: eval(nothing), 3.0)])
    if nothing == "None":
        assert total(item()) == (1.0, {"a": 2.0})
    else:
        with pytest.raises(ValueError, match="finite"):
            total(item())


@pytest.mark.parametrize("value", [True, 1, 0.5, torch.tensor(0.5)])
def test_numbers_of_any_kind_are_rewards(value):
    assert combine([("a", lambda item: value, 1.0)])(item())[0] == float(value)


def test_a_failing_function_is_named_with_problem_and_place():
    def broken(item):
        raise LookupError("no such thing")

    with pytest.raises(RewardError, match=r"'a' on problem 'p': LookupError.*test_failing_rewards"):
        combine([("a", broken, 1.0)])(item())


def test_draws_that_do_not_apply_are_left_out(tmp_path):
    (tmp_path / "sometimes.py").write_text(
        "def sometimes(item, draw=0):\n    return None if draw == 0 or item.truncated else draw\n"
    )
    term = RewardTerm(function=f"{tmp_path}/sometimes.py:sometimes", draws=3)
    with closing(RewardFunctions([term])) as functions:
        begun = functions.begin([[item()], [item(truncated=True)]], 0)
        some, none = functions.finish([begun], 0)
    assert some.values == [[None, 1.0, 2.0]]
    assert none.values == [[None, None, None]]


def test_an_error_keeps_the_finished_steps_and_names_its_cause(own, recipe_values, tmp_path):
    """As Ctrl-C does; and the run then ends where an undisturbed one ends."""
    stop = tmp_path / "stop"
    stop.touch()
    body = f"import pathlib\n    if calls > 200 and pathlib.Path({str(stop)!r}).exists():"
    recipe = own("late", f"{body}\n        raise RuntimeError('judge is down')\n    return 0.25")
    folder = Path(recipe_values["output"])
    done = call("train", recipe)
    assert done.returncode == 2
    assert "'score' on problem" in done.stderr.strip().splitlines()[-1]
    assert "judge is down" in done.stderr
    assert "late.py, line" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "a fault after step" in done.stdout
    (checkpoint,) = (folder / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step_"))
    assert step > 1
    assert f"a fault after step {step}; saving what is there" in done.stdout
    state, reason = read_ending(folder)
    assert state == "failed"
    assert "judge is down" in reason
    assert "it failed after step" in embedded(write_report(folder))["notes"][0]
    stop.unlink()
    assert call("train", recipe, "--resume").returncode == 0
    assert read_ending(folder) is None
    other = tmp_path / "undisturbed"
    assert call("train", recipe, f"output={other}").returncode == 0
    one, two = (load_file(x / "model" / "model.safetensors") for x in (folder, other))
    assert all(torch.equal(one[name], two[name]) for name in two)
    counted = [
        [row for row in read_metrics(x / "metrics.jsonl") if "verifier/graded" in row]
        for x in (folder, other)
    ]
    for name in ("verifier/graded", "verifier/correct", "reward/mean"):
        assert column(counted[0], name) == column(counted[1], name)


def test_half_an_update_is_not_saved(recipe_values, monkeypatch):
    update, calls = Learner.update, []

    def fail(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise RuntimeError("in the middle")
        return update(self, batch)

    monkeypatch.setattr(Learner, "update", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        run(recipe_values, "checkpoint.every=6")
    assert not (Path(recipe_values["output"]) / "checkpoints").exists()


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("{function: acuracy}", "did you mean 'accuracy'"),
        ("{function: length}", "missing a required argument: 'target'"),
        ("{function: accuracy, parameters: {right: 2}}", "'right'"),
        ("{function: 'no_such_module:f'}", "no_such_module"),
    ],
)
def test_a_dry_run_knows_which_functions_there_are(recipe_values, tmp_path, function, part):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    assert part in refused("train", recipe, f"reward.functions=[{function}]", "--dry-run")


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_here.py").write_text("def boolean(item):\n    return True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", os.getcwd())])
    source = RewardTerm(function="my_rewards_here:boolean").source
    assert source(item()) is True


class TwoRanks:
    """The first of two; the second says what it is given."""

    def __init__(self, other):
        self.other = other

    def gather(self, value):
        return [value, self.other]


def test_an_error_of_one_process_ends_the_work_of_all():
    with pytest.raises(FailedTogetherError, match="process 1: no judge"):
        gather_or_stop(TwoRanks([0, "no judge", None]), lambda: 1)
    with pytest.raises(FailedTogetherError, match="process 0: KeyError: 'x'"):
        gather_or_stop(TwoRanks([0, None, 1]), lambda: {}["x"])
    assert gather_or_stop(TwoRanks([0, None, 1]), lambda: 2) == [2, 1]
