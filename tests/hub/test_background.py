"""Checkpoints go to the Hub beside the training, which nothing of it can stop or change."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load, load_file

from rlvr.hub import background, upload_worker
from rlvr.hub.background import UploadOutcome, UploadQueue, uploading
from rlvr.rl.recipe import RLRecipe
from rlvr.rl.train import train
from rlvr.runs.hub_settings import HubSettings
from rlvr.runs.log import read_metrics
from rlvr.settings import load_settings
from tests.hub.runs import ROOT, environment, rl_values
from tests.hub.server import OWNER, TOKEN, Fault

REPO = f"{OWNER}/live"
QUICK = {"repo": REPO, "attempts": 3, "first_wait_s": 0.2}


def values_of(tiny, tmp_path, **hub):
    return rl_values(tiny, tmp_path / "run", hub={**QUICK, **hub})


def run_of(values, resume=False):
    """Train; the folder and what was said."""
    text = io.StringIO()
    console = Console(file=text, width=400)
    folder = train(
        load_settings(RLRecipe, values), resume=resume, console=console, uploading=uploading
    )
    return folder, text.getvalue()


@pytest.fixture
def in_this_process(monkeypatch):
    """Attempts without a process each, which costs seconds; other tests start it."""

    def attempt(self, upload):
        return background._outcome(upload_worker.attempt(self.run, upload.path), "")

    monkeypatch.setattr(UploadQueue, "_attempt", attempt)


def attempts(folder):
    return [(row["revision"], row["ok"]) for row in read_metrics(folder / "uploads.jsonl")]


def sent(hub, branch):
    return load(hub.files(REPO, branch)["model.safetensors"])


def same(one, two):
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_every_checkpoint_is_a_revision_and_the_last_is_main(tiny, hub, tmp_path):
    folder, said = run_of(values_of(tiny, tmp_path, private=True))
    assert set(hub.repos[REPO].branches) == {"main", "step_000002", "step_000004"}
    assert hub.repos[REPO].private
    for step in (2, 4):
        saved = folder / "checkpoints" / f"step_{step:06d}" / "model" / "model.safetensors"
        assert same(sent(hub, f"step_{step:06d}"), load_file(saved))
    assert same(sent(hub, "main"), load_file(folder / "model" / "model.safetensors"))
    assert "after 2 of 4 steps" in hub.files(REPO, "step_000002")["README.md"].decode()
    assert f"hub: step 2 is at {hub.url}/{REPO}/tree/step_000002" in said
    assert attempts(folder) == [("step_000002", True), ("step_000004", True), (None, True)]
    assert list((folder / "uploads").iterdir()) == []
    for path in folder.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.usefixtures("in_this_process")
def test_adapters_are_merged_or_sent_as_they_are(tiny, hub, tmp_path):
    values = values_of(tiny, tmp_path, every_checkpoint=False)
    values["model"]["lora"] = {"rank": 2}
    folder, _ = run_of(values)
    assert set(hub.repos[REPO].branches) == {"main"}
    assert same(sent(hub, "main"), load_file(folder / "model" / "model.safetensors"))
    values["hub"]["adapter_only"] = True
    run_of(values, resume=True)
    assert "adapter_model.safetensors" in hub.files(REPO)
    assert "model.safetensors" not in hub.files(REPO)


@pytest.mark.usefixtures("in_this_process")
def test_what_fails_in_passing_is_tried_again(tiny, hub, tmp_path):
    hub.faults.append(Fault("whoami", status=503, times=3))  # an attempt asks twice
    folder, said = run_of(values_of(tiny, tmp_path, every_checkpoint=False))
    assert attempts(folder) == [(None, False), (None, True)]
    assert "answers 503 to whoami" in said
    assert "trying again in 0 s" in said
    assert set(hub.repos[REPO].branches) == {"main"}


@pytest.mark.parametrize("fault", ["refused", "unreachable", "broken"])
def test_whatever_fails_the_run_is_the_same(fault, tiny, run, hub, tmp_path, monkeypatch, request):
    if fault == "refused":
        hub.authorised.clear()
        request.getfixturevalue("in_this_process")
    elif fault == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        nowhere = SimpleNamespace(executable="/nowhere/python")
        monkeypatch.setattr("rlvr.hub.background.sys", nowhere)
    folder, said = run_of(values_of(tiny, tmp_path, attempts=2, every_checkpoint=False))
    one, two = (load_file(f / "model" / "model.safetensors") for f in (folder, run))
    assert same(one, two)
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [
        row["step"] for row in read_metrics(run / "metrics.jsonl")
    ]
    assert not any(ok for _, ok in attempts(folder))
    # What cannot pass is not tried again.
    assert len(attempts(folder)) == (1 if fault == "refused" else 2)
    assert said.count("abandoned") == 1
    words = {
        "refused": "403: You don't have the rights",
        "unreachable": "http://127.0.0.1:9 cannot be reached",
        "broken": "No such file or directory: '/nowhere/python'",
    }
    assert words[fault] in said
    assert list((folder / "uploads").iterdir()) == [], "nothing keeps its place on the disk"


def test_without_a_token_nothing_begins(tiny, hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="set HF_TOKEN"):
        run_of(values_of(tiny, tmp_path))
    assert not (tmp_path / "run").exists()


def test_an_impossible_repository_is_refused_with_the_recipe(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"'hub.repo' = 'live': 'live' is not the id"):
        load_settings(RLRecipe, rl_values(tiny, tmp_path / "run", hub={"repo": "live"}))


def test_a_run_killed_while_it_sends_sends_the_rest_when_it_goes_on(tiny, hub, tmp_path, request):
    hub.pace = 20_000  # bytes a second: the weights of a checkpoint take many
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values_of(tiny, tmp_path)))
    process = subprocess.Popen(
        [sys.executable, "-m", "rlvr", "train", str(recipe)],
        env=environment(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not hub.received or not (tmp_path / "run" / "model").is_dir():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    senders = [child for child in children if "rlvr.hub.upload_worker" in " ".join(child.cmdline())]
    assert len(senders) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    _, alive = psutil.wait_procs(senders, timeout=20)
    assert not alive, "the process that sends ends with the run"
    waiting = [path.name for path in (tmp_path / "run" / "uploads").iterdir()]
    assert "step_000002" in waiting
    hub.pace = 0
    request.getfixturevalue("in_this_process")
    folder, said = run_of(values_of(tiny, tmp_path), resume=True)
    assert "step 2" in said.partition("was not sent before the run was interrupted")[0]
    assert set(hub.repos[REPO].branches) == {"main", "step_000002", "step_000004"}
    assert same(sent(hub, "main"), load_file(folder / "model" / "model.safetensors"))


class TestQueue:
    """The queue alone, with attempts that end when the test says so."""

    @pytest.fixture
    def checkpoints(self, run, tmp_path):
        """Seven checkpoints of equal weights."""
        made = []
        for step in range(1, 8):
            path = tmp_path / "checkpoints" / f"step_{step:06d}"
            (path / "model").mkdir(parents=True)
            (path / "model" / "weights").write_text(str(step))
            (path / "trainer.safetensors").write_text("moments")
            (path / "MANIFEST.json").write_text("{}")
            made.append(path)
        return made

    @pytest.fixture
    def uploads(self, tmp_path, monkeypatch):
        found = []

        def make(answer, **settings):
            monkeypatch.setattr(UploadQueue, "_attempt", lambda self, upload: answer(upload))
            said: list[str] = []
            made = UploadQueue(tmp_path, HubSettings(repo=REPO, **settings), said.append)
            found.append(made)
            return made, said

        yield make
        for made in found:
            made.stop()

    def test_the_oldest_is_given_up_where_uploads_are_too_slow(
        self, uploads, checkpoints, tmp_path
    ):
        go, done = threading.Event(), []

        def answer(upload):
            go.wait(30)
            done.append(upload.step)
            return UploadOutcome(True, "there")

        queue, said = uploads(answer, most_waiting=2)
        for path in checkpoints[:6]:
            queue.checkpoint(path)
            time.sleep(0.05)  # the first is taken up before the others come
        held = {path.name for path in (tmp_path / "uploads").iterdir()}
        assert held == {"step_000001", "step_000005", "step_000006"}
        assert [line.split(" is ")[0] for line in said] == [f"hub: step {n}" for n in (2, 3, 4)]
        go.set()
        queue.finish(checkpoints[6])
        assert done == [1, 5, 6, 7]
        assert not list((tmp_path / "uploads").iterdir())

    def test_weights_survive_pruning_and_moments_are_not_kept(self, uploads, checkpoints, tmp_path):
        import shutil

        go, found = threading.Event(), []

        def answer(upload):
            go.wait(30)
            found.append((upload.path / "checkpoint" / "model" / "weights").read_text())
            assert not (upload.path / "checkpoint" / "trainer.safetensors").exists()
            return UploadOutcome(True, "there")

        queue, _ = uploads(answer)
        queue.checkpoint(checkpoints[2])
        shutil.rmtree(checkpoints[2])
        go.set()
        queue.finish(checkpoints[6])
        assert found == ["3", "7"]

    @pytest.mark.timed
    def test_it_waits_longer_each_time_and_stops_at_once(self, uploads, checkpoints, tmp_path):
        tried = []

        def answer(upload):
            tried.append(time.monotonic())
            return UploadOutcome(False, "no")

        queue, _said = uploads(answer, first_wait_s=0.2, attempts=9)
        queue.checkpoint(checkpoints[0])
        while len(tried) < 4:
            time.sleep(0.01)
        waits = [later - earlier for earlier, later in itertools.pairwise(tried)]
        assert waits[1] > 1.5 * waits[0]
        assert waits[2] > 1.5 * waits[1]
        began = time.monotonic()
        queue.stop()
        assert time.monotonic() - began < 1
        assert (tmp_path / "uploads" / "step_000001" / "upload.json").is_file(), "kept for a resume"
        rows = [json.loads(line) for line in (tmp_path / "uploads.jsonl").read_text().splitlines()]
        assert [row["attempt"] for row in rows] == [1, 2, 3, 4]

    def test_a_finished_run_does_not_wait_for_ever(self, uploads, checkpoints):
        block = threading.Event()

        def answer(upload):
            block.wait(30)
            return UploadOutcome(False, "no")

        queue, said = uploads(answer, final_wait_s=0.5)
        queue.finish(checkpoints[6])
        block.set()
        assert len(said) == 1
        assert f"rlvr export {queue.run} --step 7 --push-to-hub {REPO}" in said[0]

    def test_a_signal_ends_the_wait(self, uploads, checkpoints):
        class Stop(BaseException):
            pass

        def check():
            raise Stop

        queue, _ = uploads(lambda upload: UploadOutcome(False, "no"), first_wait_s=30)
        with pytest.raises(Stop):
            queue.finish(checkpoints[6], check)

    def test_a_full_disk_is_said_and_nothing_else(self, uploads, checkpoints, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        queue, said = uploads(lambda upload: UploadOutcome(True, "there"))
        monkeypatch.setattr("rlvr.hub.background._put_aside", full)
        queue.checkpoint(checkpoints[0])
        assert "step 1 cannot be staged for the upload" in said[0]
