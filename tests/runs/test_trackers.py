"""Each tracker gets a run's figures, in a process that nothing else has prepared."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from rich.console import Console

from rlvr.runs.log import RunLog, read_metrics
from rlvr.runs.tracker_settings import TrackSettings
from rlvr.settings import load_settings
from tests.command import call, refused
from tests.learner.launching import command
from tests.runs.tracked import wandb_runs
from tests.training import small_recipe

ROOT = Path(__file__).parents[2]
LOG = """
import sys, json
from pathlib import Path
from rlvr.runs.log import RunLog
from rlvr.runs.tracker_settings import TrackSettings
from rlvr.settings import load_settings

config = {"steps": 2, "learner": {"lr": 1e-6, "betas": [0.9, 0.999]}}
first, settings = int(sys.argv[1]), load_settings(TrackSettings, json.loads(sys.argv[2]))
ROWS = [{"step": first, "problem_id": "a", "prompt": "1+1=", "response": "**2**", "answer": "2",
         "correct": True, "reward": 1.0, "tokens": ["2"]}] * 3
def open_log():
    return RunLog(Path("run"), 4, resumed_step=first - 1, track=settings, config=config)
"""
TWO_STEPS = """
with open_log() as log:
    log.step(first, {"reward/mean": first / 4, "learner/updates": 1})
    log.completions("completions", first, ROWS)
    log.step(first + 1, {"reward/mean": first / 4 + 0.25})
    log.step(first + 1, {"eval/held_out/accuracy": 0.5})
    log.step(first, {"late": 1.0})
"""
NAMED = {"project": "sums", "run_name": "run #1", "group": "night", "tags": ["tiny"]}


def environment(tmp_path, **more):
    """Of a user without an account, network or earlier runs."""
    bare = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    offline = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    named = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    return {**bare, **offline, **named, **more}


@pytest.fixture
def record(tmp_path):
    """What a process leaves that sends trackers two steps, from ``first`` on."""

    def record(tracker, first=1, script=TWO_STEPS, code=0, **settings):
        (tmp_path / "run").mkdir(exist_ok=True)
        words = [str(first), json.dumps({"track": [tracker], **settings})]
        done = subprocess.run(
            [sys.executable, "-c", LOG + script, *words],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, done.stdout + done.stderr
        record.output = done.stdout + done.stderr
        return tmp_path

    return record


def test_wandb_gets_the_run_offline_and_goes_on_with_the_same_run(record):
    settings = {"entity": "me", "tracked_completions": 2, **NAMED}
    record("wandb", **settings)
    folder = record("wandb", first=3, **settings)
    one, two = wandb_runs(folder)
    assert one["id"] == two["id"], "the same run"
    assert one["id"].startswith("run--1-"), "without what wandb's ids cannot hold"
    names = [one[name] for name in ("project", "name", "group", "tags", "entity")]
    assert names == ["sums", "run #1", "night", ["tiny"], "me"]
    assert one["config"]["learner"] == {"lr": 1e-6, "betas": [0.9, 0.999]}, "numbers, nested"
    assert ("*", "step") in one["steps_by"], "no step is dropped because a later one was there"
    assert [row["step"] for row in one["rows"]] == [1, 1, 2, 2, 1]
    assert [row["step"] for row in two["rows"]] == [3, 3, 4, 4, 3]
    assert one["rows"][3]["eval/held_out/accuracy"] == 0.5
    assert one["exit_code"] == two["exit_code"] == 0
    table = wandb_table(folder, one["rows"])
    assert len(table) == 2
    row = {"step": 1, "problem_id": "a", "prompt": "1+1=", "response": "**2**", "answer": "2"}
    assert table[0] == {**row, "correct": True, "reward": 1.0}, "its tokens are in the run folder"


def wandb_table(folder, rows):
    """The one table of completions, row by row."""
    (table,) = [row["completions"] for row in rows if "completions" in row]
    (path,) = folder.rglob(f"files/{table['path']}")
    kept = json.loads(path.read_text())
    return [dict(zip(kept["columns"], cells, strict=True)) for cells in kept["data"]]


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("ValueError('no')", 1),
        pytest.param("Stopped(15)", 143, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_wandb_knows_a_run_that_failed(record, raised, code):
    script = f"""
from rlvr.runs.interrupt import Stopped
with open_log() as log:
    log.step(1, {{"reward/mean": 0.5}})
    raise {raised}
"""
    (one,) = wandb_runs(record("wandb", script=script, code=1))
    assert one["exit_code"] == code
    assert one["rows"][0]["reward/mean"] == 0.5


@pytest.mark.slow
def test_wandb_s_end_is_not_the_run_s(record):
    """Its service is killed, as by a machine that runs out of memory."""
    script = """
import psutil
with open_log() as log:
    log.step(1, {"reward/mean": 0.25})
    for child in psutil.Process().children(recursive=True):
        child.kill()
        child.wait()
    for step in (2, 3, 4):
        log.step(step, {"reward/mean": 0.5})
"""
    folder = record("wandb", script=script)
    rows = read_metrics(folder / "run" / "metrics.jsonl")
    assert [row["reward/mean"] for row in rows] == [0.25, 0.5, 0.5, 0.5]
    assert [row.get("log/tracker_failures") for row in rows] == [None, None, 1, 2]
    assert record.output.count("wandb failed (") == 1


def test_trackio_keeps_the_run_in_one_piece(record):
    record("trackio", **NAMED)
    folder = record("trackio", first=3, **NAMED)
    (path,) = (folder / "trackio").rglob("*.db")
    assert path.stem == "sums"
    read = """
import json, sys
import trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = trackio.Api().runs("sums")
print(json.dumps([run.name, run.config, SQLiteStorage.get_logs("sums", run.name)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", read], env=environment(folder), capture_output=True, check=True
    )
    name, config, rows = json.loads(done.stdout.splitlines()[-1])
    assert name.startswith("run--1-")
    assert config["learner"] == {"lr": 1e-6, "betas": [0.9, 0.999]}
    assert config["tags"] == ["tiny"]
    assert config["_Group"] == "night"
    means = [(row["step"], row["reward/mean"]) for row in rows if "reward/mean" in row]
    assert means == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    scores = [(row["step"], 0.5) for row in rows if "eval/held_out/accuracy" in row]
    assert scores == [(2, 0.5), (4, 0.5)]
    tables = [row["completions"] for row in rows if "completions" in row]
    assert [table["_value"][0]["prompt"] for table in tables] == ["1+1=", "1+1="]


def test_tensorboard_gets_every_figure(record):
    folder = record("tensorboard", script=f"{TWO_STEPS}\nfirst = 2{TWO_STEPS}")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run" / "tensorboard" / "run"))
    events.Reload()
    scalars = [(item.step, item.value) for item in events.Scalars("reward/mean")]
    assert scalars == [(1, 0.25), (2, 0.5), (3, 0.75)], "a repeated step is there once"
    (text, *_) = events.Tensors("completions/text_summary")
    assert b"    **2**" in text.tensor_proto.string_val[0]
    (recipe, *_) = events.Tensors("recipe/text_summary")
    assert b"lr: 1.0e-06" in recipe.tensor_proto.string_val[0]


def write(tmp_path, model, **log):
    """The recipe of a short run, in a file."""
    recipe = small_recipe(model, tmp_path / "run")
    recipe |= {"steps": 2, "log": log}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.deepspeed
def test_two_processes_are_one_run_at_every_tracker(tmp_path, tiny_folder):
    recipe = write(tmp_path, tiny_folder, track=["wandb", "trackio", "tensorboard"])
    done = subprocess.run(
        command("multi_cpu", "-m", "rlvr", "train", recipe),
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (one,) = wandb_runs(tmp_path)
    logged = read_metrics(tmp_path / "run" / "metrics.jsonl")
    names = {"reward/mean", "eval/held_out/accuracy", "memory/rss_gib"}
    assert all(any(name in row for row in one["rows"]) for name in names)
    sent = [row["step"] for row in one["rows"] if not {"completions", "evaluations"} & set(row)]
    assert sent == [row["step"] for row in logged]
    assert one["config"]["learner"]["lr"] == 3e-3
    assert one["exit_code"] == 0
    assert len(list((tmp_path / "trackio").rglob("*.db"))) == 1
    assert len(list((tmp_path / "run" / "tensorboard").rglob("events*"))) == 2, "and its settings"


@pytest.mark.slow
def test_a_run_through_the_command_line_is_tracked(tmp_path, tiny_folder):
    recipe = write(tmp_path, tiny_folder, track=["wandb"])
    line = [sys.executable, "-m", "rlvr", "train", str(recipe)]
    subprocess.run(line, cwd=tmp_path, env=environment(tmp_path), check=True, timeout=600)
    (one,) = wandb_runs(tmp_path / "run")
    assert one["project"] == "rlvr"
    assert one["name"] == "run"
    assert {"completions", "evaluations"} <= {name for row in one["rows"] for name in row}
    assert not (tmp_path / "wandb").exists(), "everything is in the run folder"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, ("no API key", "wandb login", "WANDB_API_KEY", "WANDB_MODE=offline")),
        pytest.param(
            {"WANDB_API_KEY": "short"},
            ("cannot log in", "WANDB_API_KEY", "WANDB_MODE=offline"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"WANDB_API_KEY": "k" * 40},
            ("cannot log in", "WANDB_MODE=offline"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_wandb_that_cannot_send_is_refused_before_there_is_a_folder(
    tmp_path, tiny_folder, more, words
):
    """No prompt, no traceback; a key that cannot be tried counts as one that is refused."""
    recipe = write(tmp_path, tiny_folder, track=["wandb"])
    online = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", **more}
    done = subprocess.run(
        [sys.executable, "-m", "rlvr", "train", str(recipe)],
        cwd=tmp_path,
        env=environment(tmp_path, **online),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(word in done.stderr.splitlines()[-1] for word in words), done.stderr
    assert "k" * 40 not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


class Away:
    """A tracker whose server has gone, and is back now and then."""

    def __init__(self):
        self.calls = 0

    def log(self, values, step):
        self.calls += 1
        if self.calls != 2:
            raise ConnectionError("the server\nis away")

    def finish(self):
        raise ConnectionError("still away")


def tracked_run(folder, monkeypatch, start, **options):
    """Two steps, and what was printed."""
    monkeypatch.setattr("rlvr.runs.trackers._start", start)
    console = Console(file=io.StringIO(), width=300)
    settings = TrackSettings(track=("trackio",))
    with RunLog(folder, 4, track=settings, console=console, **options) as log:
        for step in (2, 3, 4):
            log.step(step, {"reward/mean": 0.5})
    failures = [row.get("log/tracker_failures") for row in read_metrics(folder / "metrics.jsonl")]
    return failures, console.file.getvalue()


def test_failures_are_told_once_and_counted(tmp_path, monkeypatch):
    failures, said = tracked_run(tmp_path, monkeypatch, lambda *_: Away())
    assert failures == [None, 1, 1]
    assert said.count("trackio failed (the server is away); the run goes on") == 1


def refuse(*_):
    raise ConnectionError("no\nway")


def test_a_tracker_that_cannot_start_ends_a_new_run_but_not_one_that_goes_on(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"trackio cannot start \(no way\)"):
        tracked_run(tmp_path, monkeypatch, refuse)
    failures, said = tracked_run(tmp_path, monkeypatch, refuse, resumed_step=1)
    assert failures == [1, 1, 1]
    assert said.count("trackio failed (no way)") == 1


def test_a_new_run_whose_tracker_cannot_start_leaves_no_folder(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setattr("rlvr.runs.trackers._start", refuse)
    recipe = write(tmp_path, tiny_folder, track=["trackio"])
    assert "log.track: trackio cannot start (no way)" in refused("train", recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["wandb", "trackio", "tensorboard"])
def test_how_a_run_ended_early_is_told(kind):
    from rlvr.runs.interrupt import Stopped
    from rlvr.runs.trackers import _finish

    for error, code, why in ((ValueError("no"), 1, "no"), (Stopped(15), 143, "signal 15")):
        tracker = mock.MagicMock()
        _finish(kind, tracker, error)
        said = str(tracker.tracker.mock_calls)
        assert (f"exit_code={code}" if kind == "wandb" else why) in said


def test_what_a_tracker_does_not_take_is_refused_before_there_is_a_folder(tmp_path, tiny_folder):
    recipe = write(tmp_path, tiny_folder, track=["trackio"])
    said = refused("train", recipe, "log.tracker_init.trackio={'space': 'me/x'}")
    assert "'space'" in said
    assert "space_id" in said
    said = refused("train", recipe, "log.project=registry-mine")
    assert "registry-mine" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"trackio": {"server_url": "http://h/?write_token=VERY"}},
        {"trackio": {"webhook_url": "http://h/VERY"}},
        {"wandb": {"settings": {"api_key": "VERY"}}},
    ],
)
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(given):
    with pytest.raises(ValueError, match="looks like a secret") as refusal:
        load_settings(TrackSettings, {"tracker_init": given})
    assert "VERY" not in str(refusal.value)


def test_a_tracker_that_is_mistyped_is_named(tmp_path, tiny_folder):
    recipe = write(tmp_path, tiny_folder, track=["wandb"])
    said = refused("train", recipe, "log.track=[wandbb]")
    assert "wandbb" in said
    assert "wandb" in said
    assert call("train", recipe, "log.track=[]", "--dry-run").returncode == 0
