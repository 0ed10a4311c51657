"""Seconds of a run: phases and named waiting add up to its steps, and steps to its wall clock."""

import subprocess
import sys
import threading
import time

import pytest
import yaml
from rich.console import Console

from rlvr.files import read_lines
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.rollouts import AsynchronousRollouts
from rlvr.rl.train import train
from rlvr.runs import frame
from rlvr.runs.clock import WallClock, other_seconds, process_began
from rlvr.settings import load_settings
from rlvr.tasks.preference import PreferenceTask
from rlvr.tasks.registry import find_task
from tests.rl.test_rollouts import CopyEngine
from tests.training import run

BETWEEN = ("step", "record", "evaluate", "evaluate_wait", "settle", "checkpoint", "start", "finish")
LEARNER = ("wait", "statistics", "update", "sync", "ledger", "other")
ENGINE = ("generate", "verify", "load")


def by_step(folder):
    steps = {}
    for row in read_lines(folder / "metrics.jsonl").objects:
        assert not steps.setdefault(row["step"], {}).keys() & row.keys() - {"step"}
        steps[row["step"]].update(row)
    return steps


def total(rows, names):
    return sum(row.get(f"time/{name}", 0.0) for row in rows for name in names)


def named(rows):
    return {name[5:] for row in rows for name in row if name.startswith("time/")}


def test_what_is_not_named_is_told_and_only_once():
    wall = WallClock(time.time() - 10)
    wall.begin_steps()
    assert wall.start == pytest.approx(10, abs=0.1)
    time.sleep(0.05)
    first = wall.of_step(0.02)
    assert first["time/start"] == pytest.approx(10, abs=0.1)
    assert 0.03 <= first["time/record"] < 0.2
    time.sleep(0.03)
    wall.name(0.01, 0.02)
    later = wall.of_step(0.0)
    assert set(later) == {"time/record"}
    assert later["time/record"] < 0.1
    beside = {"time/generate": 5.0, "time/update": 1.0, "time/wait": 0.5, "reward/mean": 9.0}
    assert other_seconds(2.0, beside, beside=True) == pytest.approx(0.5)
    assert other_seconds(8.0, beside) == pytest.approx(1.5)


def test_a_process_knows_when_it_began():
    """Half a second before it asks, as its own clock counts: no speed of a machine is in this."""
    program = (
        "import time; first = time.time(); time.sleep(0.5)\n"
        "from rlvr.runs.clock import process_began as began; print(began(), first, time.time())"
    )
    before = time.time()
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    began, first, asked = map(float, said.stdout.split())
    assert before - 0.05 <= began <= first + 0.05
    assert began <= asked - 0.45
    assert process_began() <= before + 0.05


@pytest.mark.timed
def test_the_seconds_of_a_process_are_all_named(recipe_values, tmp_path):
    """From the start of the interpreter to the end of the run."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "rlvr", "train", str(recipe)], check=True, capture_output=True
    )
    elapsed = time.time() - began
    steps = by_step(tmp_path / "run")
    rows = [*steps.values()]
    # What is left: the report, and the interpreter on its way out.
    assert 0 <= elapsed - total(rows, BETWEEN) < 0.25 * elapsed
    for row in rows:
        if "time/step" in row:
            assert total([row], (*ENGINE, *LEARNER)) == pytest.approx(row["time/step"], abs=1e-6)
    assert named(rows) <= {*BETWEEN, *LEARNER, *ENGINE}
    assert not named(rows) & {"wait", "settle", "evaluate_wait"}  # nothing to wait for
    assert [step for step in steps if "time/start" in steps[step]] == [1]
    assert [step for step in steps if "time/finish" in steps[step]] == [6]


class LateEngine(CopyEngine):
    """Samples for training only once the learner waits for it."""

    asked = threading.Event()

    def generate(self, requests, sampling, progress=None, finished=None):
        if sampling.temperature:
            self.asked.wait(5)
            self.asked.clear()
            time.sleep(0.1)
        return super().generate(requests, sampling, progress, finished)


def ahead(recipe_values, monkeypatch, engine):
    recipe_values["rollout"] |= {"max_staleness": 1, "engine": {"name": "vllm"}}
    monkeypatch.setattr(
        "rlvr.rl.run.build_engine",
        lambda _, policy, stop_ids, *__, **___: engine(policy, stop_ids, lambda: None),
    )
    began = time.time()
    folder = train(load_settings(RLRecipe, recipe_values), console=Console(quiet=True))
    elapsed = time.time() - began
    rows = [*by_step(folder).values()]
    stepped = [row for row in rows if "time/step" in row]
    for row in stepped:
        assert total([row], LEARNER) == pytest.approx(row["time/step"], abs=1e-6)
    # The run also ends its thread, which no row says.
    assert total(rows, BETWEEN) == pytest.approx(elapsed, abs=0.1 + 0.1 * elapsed)
    return rows, stepped


@pytest.mark.timed
def test_seconds_add_up_where_the_engine_samples_ahead(recipe_values, monkeypatch):
    rows, _ = ahead(recipe_values, monkeypatch, CopyEngine)
    assert {"wait", "settle", "evaluate_wait"} <= named(rows)


@pytest.mark.timed
def test_waiting_for_the_engine_is_named(recipe_values, monkeypatch):
    following = AsynchronousRollouts.next

    def asked(self, clock):
        LateEngine.asked.set()
        return following(self, clock)

    monkeypatch.setattr(AsynchronousRollouts, "next", asked)
    recipe_values |= {"evaluation": {}, "checkpoint": {"every": 6}}
    _, stepped = ahead(recipe_values, monkeypatch, LateEngine)
    assert all(row["time/wait"] >= 0.1 for row in stepped)


@pytest.mark.timed
def test_a_run_without_rollouts_names_its_seconds_too(preference_values):
    recipe = load_settings(find_task("preference").schema, preference_values)
    task = PreferenceTask(recipe)
    began = time.time()
    folder = frame.train(task, console=Console(quiet=True))
    elapsed = time.time() - began
    rows = [*by_step(folder).values()]
    assert total(rows, BETWEEN) == pytest.approx(elapsed, abs=0.1 + 0.1 * elapsed)
    for row in rows:
        if "time/step" in row:
            inside = total([row], ("statistics", "update", "other"))
            assert inside == pytest.approx(row["time/step"], abs=1e-6)


def test_a_resumed_run_names_each_second_once(recipe_values):
    run(recipe_values, "steps=4")
    folder, _ = run(recipe_values, resume=True)
    steps = by_step(folder)  # no metric twice in a step
    assert [step for step in steps if "time/start" in steps[step]] == [1, 5]
    assert [step for step in steps if "time/finish" in steps[step]] == [4, 6]
