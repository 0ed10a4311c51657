"""Trackers by name, for real and offline; records that survive a kill."""

import json
import os

import pytest
from rich.console import Console

from rlvr.train.log import RunLog, read_metrics

SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115


def log_two_steps(folder, tracker):
    folder.mkdir(exist_ok=True)
    config = {"steps": 2, "learner": {"lr": 1e-6, "betas": [0.9, 0.999]}}
    with RunLog(folder, 2, trackers=[tracker], config=config, console=SILENT) as log:
        log.step(1, {"reward/mean": 0.25, "learner/updates": 1})
        log.step(2, {"reward/mean": 0.5})


def test_tensorboard_gets_every_figure(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_two_steps(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "run"))
    events.Reload()
    scalars = [(item.step, item.value) for item in events.Scalars("reward/mean")]
    assert scalars == [(1, 0.25), (2, 0.5)]


def test_wandb_runs_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_two_steps(tmp_path / "run", "wandb")
    assert list(tmp_path.rglob("*.wandb"))


def test_lines_of_one_step_add_up_and_a_cut_line_is_left_out(tmp_path):
    with RunLog(tmp_path, 2, console=SILENT) as log:
        log.step(1, {"reward/mean": 0.1})
        assert not log.evaluated(1)
        log.step(1, {"eval/held_out/accuracy": 0.2})
        assert log.evaluated(1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 1]


def test_going_on_drops_what_comes_after_the_checkpoint(tmp_path):
    (tmp_path / "completions").mkdir()
    for step in (1, 2, 3):
        (tmp_path / "completions" / f"step_{step:06d}.jsonl").write_text("{}\n")
    rows = [{"step": step, "reward/mean": 0.1} for step in (0, 1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with RunLog(tmp_path, 4, resumed_step=2, console=SILENT):
        pass
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    names = sorted(path.name for path in (tmp_path / "completions").iterdir())
    assert names == ["step_000001.jsonl", "step_000002.jsonl"]
    with RunLog(tmp_path, 4, resumed_step=0, console=SILENT):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == []
