"""Alarms: what raises each, what does not, when they end, and what settings of them are refused."""

import math
import random
from pathlib import Path

import pytest
from rich.console import Console

from rlvr.quickstart import quickstart
from rlvr.rl.recipe import RLRecipe
from rlvr.runs.alarm_readings import ALARMS, FEW
from rlvr.runs.alarm_settings import AlarmSettings, RLAlarmSettings
from rlvr.runs.alarms import RELEASE, replay, watches
from rlvr.runs.log import read_metrics
from rlvr.settings import load_settings
from rlvr.tasks.sft import SftRecipe

QUIET = {
    "reward/mean": 0.5,
    "reward/zero_variance_groups": 0.4,
    "completion/length_mean": 100.0,
    "completion/truncated": 0.1,
    "policy/entropy": 0.6,
    "learner/grad_norm": 1.0,
    "mismatch/difference": 1e-5,
    "check/disputed": 0.01,
    "check/accepted_judged": 50.0,
    "bias/length": 1.02,
    "bias/length_z": 0.4,
    "bias/difficulty": 0.05,
    "bias/difficulty_z": 0.5,
    "time/step": 1.0,
}
# Ten steps as they should be, the steps that raise it, and ten that end it.
RAISING = {
    "gradient_norm": [{"learner/grad_norm": 10.5}],
    "mismatch": [{"mismatch/difference": 0.002}] * 3,
    "entropy_collapse": [{"policy/entropy": 0.05}] * 3,
    "length_explosion": [{"completion/length_mean": 205.0}] * 3,
    "truncation": [{"completion/truncated": 0.31}] * 3,
    "held_out_gap": [{"eval/test/accuracy": 0.5, "eval/test/accuracy_se": 0.02}] * 2,
    "disputed": [{"check/disputed": 0.12}] * 3,
    "zero_variance": [{"reward/zero_variance_groups": 0.85}] * 3,
    "length_bias": [{"bias/length": 0.7, "bias/length_z": -6.0}] * 8,
    "difficulty_bias": [{"bias/difficulty": 0.4, "bias/difficulty_z": 6.0}] * 8,
}


def rows_of(raising):
    steps = [QUIET] * 10 + [{**QUIET, **more} for more in raising] + [QUIET] * 20
    return [{"step": number, **row} for number, row in enumerate(steps, 1)]


def with_evaluations(rows):
    """A reward that rises while the accuracy of a held-out set falls, and then comes back."""
    best = {"eval/test/accuracy": 0.6, "eval/test/accuracy_se": 0.02}
    jitter = random.Random(0)
    for row in rows:
        row["reward/mean"] = 0.3 + 0.02 * row["step"] + jitter.uniform(-0.005, 0.005)
        if row["step"] <= 4 or row["step"] > 12:
            row.update(best)
    return rows


def changes_of(rows, settings=None):
    found = replay(rows, watches(settings or RLAlarmSettings()))
    return [change for changes in found for change in changes]


@pytest.mark.parametrize("name", ALARMS)
def test_each_begins_and_ends_where_its_evidence_does_and_no_other_does(name):
    rows = rows_of(RAISING[name])
    rows = with_evaluations(rows) if name == "held_out_gap" else rows
    changes = changes_of(rows)
    assert [(change.name, change.event) for change in changes] == [
        (name, "begins"), (name, "ends")
    ]  # fmt: skip
    begin, end = changes
    assert 10 < begin.step <= 10 + len(RAISING[name])
    assert begin.step < end.step
    assert end.since == begin.step
    assert begin.reading.figure > begin.rule.above > end.reading.figure / RELEASE
    assert f"alarm {name} begins at step {begin.step}: " in begin.line()
    assert f"docs/alarms.md#{name}" in begin.line()
    assert begin.row()["evidence"] in begin.line()
    assert not changes_of(rows_of([]))


@pytest.mark.parametrize("name", ALARMS)
def test_each_can_be_off_and_needs_as_many_steps_as_asked(name):
    rows = rows_of(RAISING[name])
    rows = with_evaluations(rows) if name == "held_out_gap" else rows
    for rule in ("off", {"steps": 30}, {"above": 1e9}):
        settings = RLAlarmSettings.model_validate({name: rule})
        assert not changes_of(rows, settings), rule


def test_between_the_two_bounds_an_alarm_stays_as_it_is():
    """Truncation begins above 0.3 and ends below 0.24, three times in a row each."""
    shares = [0.31, 0.31, 0.29, 0.31, 0.31, 0.31, 0.25, 0.25, 0.25, 0.23, 0.23, 0.31, 0.23, 0.23]
    shares += [0.25, *[0.23] * 3, *[0.29] * 9]
    rows = [{"step": n, "completion/truncated": x, "time/step": 1.0} for n, x in enumerate(shares)]
    assert [(c.event, c.step) for c in changes_of(rows)] == [("begins", 5), ("ends", 17)]


def test_steps_without_the_figure_change_nothing():
    cut = {"completion/truncated": 1.0}
    rows = [cut, {}, cut, {}, {}, cut, {}, {}]
    rows = [{"step": n, "time/step": 1.0, **row} for n, row in enumerate(rows)]
    assert [(c.event, c.step) for c in changes_of(rows)] == [("begins", 5)]


def test_where_an_alarm_stands_depends_on_the_rows_alone():
    rows = rows_of([row for raising in RAISING.values() for row in raising])
    whole = changes_of(rows)
    for cut in (3, 11, 14, 20):
        watching = watches(RLAlarmSettings())
        list(replay(rows[:cut], watching))
        later = [change for found in replay(rows[cut:], watching) for change in found]
        assert later == [change for change in whole if change.step > cut]


def test_figures_that_are_no_numbers_or_lack_a_level_raise_nothing():
    rows = rows_of([{"learner/grad_norm": math.nan}, {"learner/grad_norm": math.inf}])
    assert not changes_of(rows)
    fresh = [{"step": n, "time/step": 1.0, "learner/grad_norm": 10.0**n} for n in range(FEW)]
    assert not changes_of(fresh)  # too few steps to say what is usual


def test_old_rollouts_and_bfloat16_differ_from_the_learner_for_reasons_that_are_known():
    high = [{"mismatch/difference": 0.05}] * 5
    rows = rows_of(high)
    assert changes_of(rows)
    assert not changes_of(rows_of([{**row, "rollout/staleness_max": 1.0} for row in high]))
    assert not list(filter(None, replay(rows, watches(RLAlarmSettings(), "bfloat16"))))
    tf32 = rows_of([{"mismatch/difference": 0.005}] * 5)
    assert not list(filter(None, replay(tf32, watches(RLAlarmSettings(), "float32", "cuda"))))


def test_a_reward_that_stands_still_or_a_drop_within_its_error_raises_no_gap():
    drop = {"eval/test/accuracy": 0.5, "eval/test/accuracy_se": 0.02}
    rows = with_evaluations(rows_of([drop] * 2))
    assert changes_of(rows)
    assert not changes_of([{**row, "reward/mean": 0.5} for row in rows])
    wide = [{**row, "eval/test/accuracy_se": 0.05} if "eval/test/accuracy" in row else row
            for row in rows]  # fmt: skip
    assert not changes_of(wide)


def test_few_second_opinions_say_nothing():
    rows = rows_of(RAISING["disputed"])
    for row in rows:
        row.update({"check/accepted_judged": 30.0, "check/accepted_undecided": 11.0})
    assert not changes_of(rows)


def test_an_action_may_stand_for_the_rule():
    for given in ("stop", {"action": "stop"}):
        settings = RLAlarmSettings.model_validate({"truncation": given})
        assert settings.truncation.action == "stop"
        assert settings.zero_variance.action == "warn"
    # YAML reads a bare off as false.
    assert RLAlarmSettings.model_validate({"mismatch": False}).mismatch.action == "off"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("alarms.entropy_colapse=stop", ("'alarms.entropy_colapse'", "'entropy_collapse'")),
        ("alarms.truncation=halt", ("alarms.truncation.action", "'halt'", "'stop'")),
        ("alarms.truncation.above=-1", ("alarms.truncation.above", "-1")),
        ("alarms.truncation.abov=1", ("'alarms.truncation.abov'", "'above'")),
        ("alarms.truncation.steps=0", ("alarms.truncation.steps", "0")),
        ("alarms.truncation=true", ("alarms.truncation",)),
    ],
)
def test_unknown_names_and_values_are_refused_by_name(recipe_values, override, words):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        load_settings(RLRecipe, recipe_values, [override])
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_task_without_rollouts_has_the_alarms_that_apply(recipe_values):
    assert [*AlarmSettings.model_fields] == ["gradient_norm"]
    assert {*ALARMS} == {*RLAlarmSettings.model_fields}
    assert SftRecipe.model_fields["alarms"].annotation is AlarmSettings


def quickstart_rows():
    """Of ``rlvr quickstart`` (seed 0), what alarms read, with four digits."""
    return read_metrics(Path(__file__).parent / "quickstart_metrics.jsonl")


def test_the_quickstart_raises_no_alarm():
    rows = quickstart_rows()
    assert max(row["step"] for row in rows) == 80
    assert not changes_of(rows)


def test_what_goes_wrong_in_the_quickstart_is_told():
    """The same rows, with one thing gone wrong in the second half each time."""
    for name, metric, factor in (
        ("gradient_norm", "learner/grad_norm", 30), ("entropy_collapse", "policy/entropy", 0.1),
        ("length_explosion", "completion/length_mean", 2.5), ("mismatch", "mismatch/difference", 0),
    ):  # fmt: skip
        rows = [dict(row) for row in quickstart_rows()]
        for row in rows:
            if row["step"] > 40 and metric in row:
                row[metric] = row[metric] * factor if factor else 0.01
        found = changes_of(rows)
        assert {change.name for change in found} == {name}
        assert 41 <= found[0].step <= 43


@pytest.mark.slow
def test_a_fresh_quickstart_raises_no_alarm(tmp_path):
    quickstart(0, tmp_path / "quick", Console(quiet=True))
    assert not (tmp_path / "quick" / "run" / "alarms.jsonl").exists()
