"""The whole loop: it learns, records, stops, resumes, and loses nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train
from rlvr.runs.ending import read_ending
from rlvr.runs.log import RunLog, read_metrics
from rlvr.settings import load_settings
from tests.command import call
from tests.training import small_recipe

ROOT = Path(__file__).parents[2]
SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115


def run_in_process(values, *overrides, resume=False):
    recipe = load_settings(RLRecipe, values, overrides)
    return train(recipe, resume=resume, console=SILENT)


def start(values, tmp_path, *arguments):
    """Start ``rlvr train`` in a process of its own."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    return subprocess.Popen(
        [sys.executable, "-m", "rlvr", "train", str(recipe), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def figures(folder):
    """Everything logged that is not a time, a rate or a size of memory."""
    rows = []
    for row in read_metrics(folder / "metrics.jsonl"):
        kept = {
            name: value
            for name, value in row.items()
            if not name.startswith(("time/", "throughput/", "memory/", "verifier/"))
        }
        if set(kept) != {"step"}:
            rows.append(kept)
    return rows


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def same_weights(one, two):
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(guessing_folder, tmp_path_factory):
    """The folder of the small recipe's run, not to be changed."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    return run_in_process(small_recipe(guessing_folder, output))


def test_a_run_learns_and_leaves_its_records(recipe_values):
    """Four problems to learn by heart: the reward must rise far above its noise of 0.05."""
    overrides = ["steps=30", "data.source.size=4", "learner.lr=5e-3", "regularisers=[]"]
    overrides += ["rollout.prompts_per_step=4", "rollout.samples_per_prompt=64"]
    folder = run_in_process(recipe_values, *overrides, "evaluation.every=30")
    rows = read_metrics(folder / "metrics.jsonl")
    rewards = [row["reward/mean"] for row in rows if "reward/mean" in row]
    assert len(rewards) == 30
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15
    assert [row["step"] for row in rows if "eval/held_out/accuracy" in row] == [0, 30]
    kept = (folder / "completions" / "step_000030.jsonl").read_text().splitlines()
    row = json.loads(kept[0])
    assert len(row["tokens"]) == len(row["logprobs"])
    assert row["prompt"].startswith("<bos>")
    assert json.loads((folder / "run.json").read_text())["seed"] == 0
    assert load_settings(RLRecipe, folder / "recipe.yaml").steps == 30
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert not list(folder.rglob(".*"))


def test_the_same_seed_gives_the_same_run_and_another_seed_another(recipe_values, undisturbed):
    again = run_in_process(recipe_values)
    assert same_weights(weights(again), weights(undisturbed))
    assert figures(again) == figures(undisturbed)
    other = run_in_process({**recipe_values, "output": str(again.parent / "other"), "seed": 1})
    assert not same_weights(weights(other), weights(undisturbed))


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "the run did not get that far in time"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))]
)
def test_killed_and_resumed_ends_bitwise_where_an_undisturbed_run_ends(
    recipe_values, undisturbed, tmp_path, seed
):
    """kill -9 at random moments: in generation, update, evaluation or while saving."""
    folder = Path(recipe_values["output"])
    metrics = folder / "metrics.jsonl"
    generator = random.Random(seed)
    kills, workers = 0, 0
    for _ in range(2):
        process = start(recipe_values, tmp_path, "--resume")
        began = time.time()
        wait_for(lambda: metrics.exists() and metrics.stat().st_mtime > began, process)  # noqa: B023
        children = set(psutil.Process(process.pid).children(recursive=True))
        time.sleep(generator.random() * 0.6)
        children |= set(psutil.Process(process.pid).children(recursive=True))
        workers += len(children)  # none before the pool starts and after it ends
        process.kill()
        kills += process.wait(timeout=30) == -signal.SIGKILL
        assert not psutil.wait_procs(children, timeout=10)[1], "no process outlives a killed run"
    assert kills, "at least one kill must have come before the end"
    assert workers, "the verifier works in a process of its own"
    run_in_process(recipe_values, resume=True)
    assert same_weights(weights(folder), weights(undisturbed))
    assert figures(folder) == figures(undisturbed)
    for path in undisturbed.glob("*/step_*.jsonl"):
        twin = folder / path.relative_to(undisturbed)
        assert path.read_text() == twin.read_text(), path.name


def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(
    recipe_values, undisturbed, tmp_path
):
    values = {**recipe_values, "checkpoint": {"every": 100}, "log": {"track": ["tensorboard"]}}
    process = start(values, tmp_path)
    folder = Path(values["output"])
    wait_for((folder / "completions" / "step_000003.jsonl").exists, process)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert output.strip().splitlines()[-1] == "rlvr: stopped; go on with --resume"
    assert len(list((folder / "checkpoints").iterdir())) == 1
    run_in_process(values, resume=True)
    assert same_weights(weights(folder), weights(undisturbed))
    assert figures(folder) == figures(undisturbed)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_every_signal_saves_and_is_told_by_the_code(
    recipe_values, tmp_path, monkeypatch, number, code
):
    """The command in this process, signalled as it keeps the completions of step 3."""
    keep = RunLog.completions

    def signalled(log, kind, step, rows):
        keep(log, kind, step, rows)
        if (kind, step) == ("completions", 3):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(RunLog, "completions", signalled)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**recipe_values, "checkpoint": {"every": 100}}))
    done = call("train", recipe)
    assert done.returncode == code, done.stderr
    assert done.stderr == "rlvr: stopped; go on with --resume\n"
    assert read_ending(Path(recipe_values["output"])) == ("stopped", "")
    assert len(list(Path(recipe_values["output"]).glob("checkpoints/step_*"))) == 1


def test_adapters_train_resume_and_export_merged(recipe_values):
    overrides = ("model.lora={rank: 2}", "learner.lr=1e-2")
    whole = run_in_process({**recipe_values, "output": recipe_values["output"] + "-a"}, *overrides)
    run_in_process(recipe_values, *overrides, "steps=2")
    resumed = run_in_process(recipe_values, *overrides, resume=True)
    assert same_weights(weights(resumed), weights(whole))
    assert (resumed / "checkpoints" / "step_000006" / "adapter").is_dir()


def test_checkpoints_written_in_the_background_are_those_of_their_step(recipe_values, undisturbed):
    folder = run_in_process(recipe_values, "checkpoint.background=true", "steps=4")
    assert len(list((folder / "checkpoints").glob("step_*"))) == 2
    run_in_process(recipe_values, "checkpoint.background=true", resume=True)
    assert same_weights(weights(folder), weights(undisturbed))


def test_a_damaged_checkpoint_costs_steps_but_not_the_run(recipe_values, undisturbed):
    folder = run_in_process(recipe_values, "steps=4")
    victim = folder / "checkpoints" / "step_000004" / "trainer.safetensors"
    victim.write_bytes(victim.read_bytes()[:100])
    run_in_process(recipe_values, resume=True)
    assert same_weights(weights(folder), weights(undisturbed))


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_reached_again(
    recipe_values, undisturbed
):
    """With one kept, a damaged one that stayed would be all that is left to go on from."""
    from rlvr.learner.checkpoint import latest_checkpoint

    overrides = ["checkpoint={every: 2, keep: 2}"]
    folder = run_in_process(recipe_values, "steps=4", *overrides)
    for victim in (folder / "checkpoints").glob("step_000004/*.safetensors"):
        victim.write_bytes(victim.read_bytes()[:100])
    run_in_process(recipe_values, "steps=4", "checkpoint={every: 2, keep: 1}", resume=True)
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None
    assert newest.name == "step_000004"


def test_a_run_whose_checkpoints_are_all_damaged_keeps_its_records(recipe_values):
    folder = run_in_process(recipe_values, "steps=2")
    (folder / "checkpoints" / "step_000002" / "MANIFEST.json").unlink()
    records = (folder / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged; delete"):
        run_in_process(recipe_values, resume=True)
    assert (folder / "metrics.jsonl").read_text() == records


def test_words_of_data_sets_and_paths_are_not_taken_for_markup(recipe_values, tmp_path):
    """A problem called [/b] would end the run in rich's parser."""
    rows = [{"id": f"[/{n}]", "problem": f"{n}+1=", "answer": str(n + 1)} for n in range(9)]
    rows.append({"id": "[/long]", "problem": "1+" * 30, "answer": "30"})
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "file", "path": str(path)}
    values = {**recipe_values, "output": str(tmp_path / "[/out]"), "steps": 1}
    values["data"] = {**values["data"], "source": source}
    values["evaluation"] = {"sets": {"held.out": {**source, "limit": 2}}}
    folder = run_in_process(values)
    run_in_process({**values, "steps": 2}, resume=True)
    assert read_metrics(folder / "metrics.jsonl")[-1]["step"] == 2


def test_whole_groups_are_kept_as_many_as_the_limit_holds(recipe_values):
    folder = run_in_process(recipe_values, "steps=1", "log.completions_per_step=17")
    kept = (folder / "completions" / "step_000001.jsonl").read_text().splitlines()
    assert [json.loads(row)["group"] for row in kept] == ["1/0"] * 6 + ["1/1"] * 6


def test_the_rate_of_an_update_follows_the_schedule_over_the_whole_run(recipe_values):
    overrides = ["learner.schedule={shape: linear}", "steps=2"]
    folder = run_in_process(recipe_values, *overrides)
    rates = [row["learner/lr"] for row in read_metrics(folder / "metrics.jsonl") if len(row) > 9]
    assert rates == pytest.approx([3e-3 * 3 / 4, 3e-3 * 1 / 4])


def test_bfloat16_runs(recipe_values):
    folder = run_in_process(recipe_values, "model.precision=bfloat16", "steps=2")
    assert all(value.dtype == torch.float32 for value in weights(folder).values())
