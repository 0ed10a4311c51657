"""A run in several processes: the run of one process, records of the first, and nothing lost.

Two processes on the CPU, data parallel and ZeRO 2, sample with the same seeds as one, so they get
the same rollouts while weights agree; sums are taken in another order, so weights drift apart by
rounding, and once a token comes out otherwise by more. Within one way of launching all is bitwise.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from rlvr.runs.log import read_metrics
from tests.learner.launching import command, environment
from tests.rl.test_train import ROOT, figures, run_in_process, weights

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(1500)]
CONFIGS = ("multi_cpu", "zero2")


def start(config, values, tmp_path, *arguments, processes=2):
    """Start ``accelerate launch -m rlvr train`` in a session of its own."""
    recipe = tmp_path / f"{Path(values['output']).name}.yaml"
    recipe.write_text(yaml.safe_dump(values))
    line = command(config, "-m", "rlvr", "train", recipe, *arguments, processes=processes)
    return subprocess.Popen(
        line,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(config, values, tmp_path, *arguments, processes=2):
    process = start(config, values, tmp_path, *arguments, processes=processes)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-6000:]
    return Path(values["output"]), output


def furthest(one, two):
    assert set(one) == set(two)
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def newer(paths, moment):
    """Whether one of the paths was changed after the moment; one that has just gone was not."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime > moment:
                return True
    return False


def wait_for(condition, process, seconds=300, pause=0.02):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "the run did not get that far in time"
        time.sleep(pause)


@pytest.fixture(params=CONFIGS)
def config(request):
    return request.param


@pytest.fixture
def values(recipe_values):
    """Fewer steps; a rate at which rounding does not flip a token within them.

    The first rollout may have no reward at all: its gradient is rounding, of which Adam with a
    small epsilon would make steps of full size.
    """
    learner = {**recipe_values["learner"], "lr": 1e-4, "epsilon": 1e-3}
    return {**recipe_values, "steps": 4, "learner": learner}


def test_two_processes_do_the_run_of_one(config, values, tmp_path):
    alone = run_in_process({**values, "output": str(tmp_path / "alone")})
    folder, output = run(config, values, tmp_path)
    assert furthest(weights(folder), weights(alone)) < 1e-5
    start = load_file(Path(values["model"]["path"]) / "model.safetensors")
    assert furthest(weights(alone), start) > 1e-4, "there was something to learn"
    ours, theirs = figures(folder), figures(alone)
    assert [set(row) for row in ours] == [set(row) for row in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        for name in (
            n for n in mine if n.startswith(("reward/", "completion/", "policy/", "eval/"))
        ):
            assert mine[name] == pytest.approx(its[name], abs=1e-4), name
        for name in {"learner/rows_run", "learner/lr", "learner/updates"} & set(mine):
            assert mine[name] == its[name], name
    for path in alone.glob("completions/step_*.jsonl"):
        twin = folder / path.relative_to(alone)
        assert len(path.read_text().splitlines()) == len(twin.read_text().splitlines())
    assert output.count("step 3/4") == 1, "one process speaks"


def test_killed_at_random_moments_and_resumed_it_ends_where_it_would_have_ended(
    config, values, tmp_path
):
    """kill -9 of launcher and ranks alike: generating, updating, evaluating or writing."""
    undisturbed, _ = run(config, {**values, "output": str(tmp_path / "undisturbed")}, tmp_path)
    folder, generator, kills = Path(values["output"]), random.Random(config), 0
    for _ in range(3):
        process = start(config, values, tmp_path, "--resume")
        began = time.time()
        wait_for(lambda: newer(folder.glob("[tm]*.jsonl"), began), process)  # noqa: B023
        time.sleep(generator.random() * 2)
        os.killpg(process.pid, signal.SIGKILL)
        kills += process.wait(timeout=30) == -signal.SIGKILL
    assert kills, "at least one kill must have come before the end"
    run(config, values, tmp_path, "--resume")
    assert furthest(weights(folder), weights(undisturbed)) == 0.0
    assert figures(folder) == figures(undisturbed)
    assert not list(folder.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("cpu", 1), ("zero2", 2)])
def test_ten_kills_in_one_run_cost_nothing(name, processes, values, tmp_path):
    """Five at random moments, five as soon as a checkpoint has been begun."""
    values = {**values, "steps": 12, "checkpoint": {"every": 1}}
    undisturbed, _ = run(
        name, {**values, "output": str(tmp_path / "undisturbed")}, tmp_path, processes=processes
    )
    folder, generator, half_written = Path(values["output"]), random.Random(0), 0
    for number in range(10):
        process = start(name, values, tmp_path, "--resume", processes=processes)
        began = time.time()
        aimed = number % 2 == 1
        marks = "checkpoints/*.partial" if aimed else "timeline.jsonl"
        pause = 0.0005 if aimed else 0.02
        wait_for(lambda: newer(folder.glob(marks), began), process, pause=pause)  # noqa: B023
        time.sleep(0 if aimed else generator.random())
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL, f"kill {number} came after the end"
        half_written += bool(list(folder.rglob("*.partial")))
    assert half_written, "no kill met a checkpoint being written"
    run(name, values, tmp_path, "--resume", processes=processes)
    assert furthest(weights(folder), weights(undisturbed)) == 0.0
    assert figures(folder) == figures(undisturbed)
    assert not list(folder.rglob("*.partial"))


def test_a_signal_stops_all_processes_at_the_same_step_and_nothing_is_lost(
    config, values, tmp_path
):
    undisturbed, _ = run(config, {**values, "output": str(tmp_path / "undisturbed")}, tmp_path)
    values = {**values, "checkpoint": {"every": 100}}
    process = start(config, values, tmp_path)
    folder = Path(values["output"])
    wait_for((folder / "completions" / "step_000002.jsonl").exists, process)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.monotonic() - began < 60, output[-3000:]
    assert len(list((folder / "checkpoints").glob("step_*"))) == 1, output[-3000:]
    run(config, values, tmp_path, "--resume")
    assert furthest(weights(folder), weights(undisturbed)) == 0.0


def test_another_number_of_processes_goes_on_and_says_what_is_not_exact(values, tmp_path):
    undisturbed = run_in_process({**values, "output": str(tmp_path / "undisturbed")})
    run("zero2", {**values, "steps": 2}, tmp_path)
    folder, output = run("cpu", values, tmp_path, "--resume", processes=1)
    assert "written by 2 processes and is resumed by 1" in output
    assert furthest(weights(folder), weights(undisturbed)) < 1e-5
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")][-1] == 4


def test_adapters_are_merged_on_export(config, values, tmp_path):
    values["model"] = {**values["model"], "lora": {"rank": 2}}
    alone = run_in_process({**values, "output": str(tmp_path / "alone")})
    folder, _ = run(config, values, tmp_path)
    assert furthest(weights(folder), weights(alone)) < 1e-4


def test_what_does_not_go_with_a_launch_is_refused_in_one_line(values, tmp_path):
    process = start("zero3", values, tmp_path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "which ZeRO 3 parts over processes; use vllm" in output
    assert not Path(values["output"]).exists()


def test_two_processes_branch_from_the_run_of_one_and_of_two(config, values, tmp_path):
    """With nothing changed they end where those end that were never interrupted."""
    values = {**values, "checkpoint": {"every": 2, "keep": 9}}
    whole, _ = run(config, values, tmp_path)
    branch = {**values, "output": str(tmp_path / "branch")}
    folder, output = run(config, branch, tmp_path, "--from", f"{whole}@2")
    assert "branching after step 2" in output
    assert furthest(weights(folder), weights(whole)) == 0.0
    alone = run_in_process({**values, "output": str(tmp_path / "alone")})
    other = {**values, "output": str(tmp_path / "other")}
    folder, output = run(config, other, tmp_path, "--from", f"{alone}@2")
    assert "written by 1 processes and is resumed by 2" in output
    assert furthest(weights(folder), weights(alone)) < 1e-4
