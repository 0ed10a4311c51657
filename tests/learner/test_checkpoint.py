"""Checkpoints are whole or absent; damage is found; a full disk loses nothing."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from rlvr.learner.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    _manifest,
    checkpoint_path,
    find_fault,
    latest_checkpoint,
    load_state,
    save_checkpoint,
)
from rlvr.ranks import Ranks


def save(folder, step, keep=3, size=10):
    def write_model(path: Path) -> None:
        (path / "model").mkdir()
        (path / "model" / "weights.bin").write_bytes(os.urandom(size))

    return save_checkpoint(
        folder,
        step,
        write_model=write_model,
        tensors={"exp_avg/a": torch.full((4,), float(step))},
        state={"step": step, "sampler": {"cursor": 3}},
        keep=keep,
    )


def test_saved_state_comes_back_and_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 11):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000010", "step_000011"]
    newest = latest_checkpoint(tmp_path)
    state, tensors = load_state(newest)
    assert state == {"step": 11, "sampler": {"cursor": 3}}
    assert tensors["exp_avg/a"].tolist() == [11.0] * 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, caplog, damage):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    victim = bad / "model" / "weights.bin"
    if damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "flip":
        data = bytearray(victim.read_bytes())
        data[0] ^= 1
        victim.write_bytes(data)
    elif damage == "remove":
        victim.unlink()
    else:
        (bad / "MANIFEST.json").write_text("{")
    assert latest_checkpoint(tmp_path) == good
    assert str(bad) in caplog.text
    assert find_fault(good) is None


MANIFESTS = ["", "[]", "null", "{}", "3", '{"state.json": {}}', '{"state.json": 5}', '{"a": null}']


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_that_is_none_is_damage(tmp_path, caplog, manifest):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    (bad / "MANIFEST.json").write_text(manifest)
    assert latest_checkpoint(tmp_path) == good
    assert f"{bad} is damaged" in caplog.text


@pytest.mark.parametrize("state", ["", "[]", "null", '{"format": 7}', '{"step": "two"}'])
def test_a_state_that_is_none_is_damage_though_its_checksum_holds(tmp_path, caplog, state):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    (bad / "state.json").write_text(state)
    (bad / "MANIFEST.json").unlink()
    (bad / "MANIFEST.json").write_text(json.dumps(_manifest(bad)))
    assert latest_checkpoint(tmp_path) == good
    assert "state.json" in caplog.text


@pytest.mark.parametrize("name", ["step_000004", "step_1000000"])
def test_a_file_in_the_place_of_a_checkpoint_is_passed_over_and_replaced(tmp_path, caplog, name):
    good = save(tmp_path, 1)
    (tmp_path / name).write_text("not a folder")
    (tmp_path / "step_notes.txt").write_text("mine")
    assert latest_checkpoint(tmp_path) == good
    assert "it is no folder" in caplog.text
    written = save(tmp_path, int(name.removeprefix("step_")), keep=1)
    assert latest_checkpoint(tmp_path) == written
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "step_notes.txt"]


def test_the_newest_is_the_one_of_the_highest_step(tmp_path):
    newest = [save(tmp_path, step) for step in (999_999, 1_000_000)][-1]
    assert latest_checkpoint(tmp_path) == newest
    assert checkpoint_path(tmp_path, 1_000_001) == save(tmp_path, 1_000_001, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1000001"]


def test_damaged_checkpoints_of_later_steps_do_not_push_out_the_one_just_written(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 3) / "MANIFEST.json").write_text("{")
    written = save(tmp_path, 2, keep=1)
    assert latest_checkpoint(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]


def test_files_and_folders_are_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    """Without it, a power cut may leave a checkpoint whose name is there and content is not."""
    synced = []
    fsync = os.fsync

    def spy(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    final = save(tmp_path, 1)
    before = [Path(path) for path in synced[:-1]]
    assert Path(synced[-1]) == tmp_path
    written = {path.name for path in final.rglob("*") if path.is_file()}
    assert written <= {path.name for path in before}
    assert all(".partial" in str(path) for path in before)


def test_what_a_kill_leaves_behind_is_not_taken_for_a_checkpoint(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step_000002.99.partial" / "model").mkdir(parents=True)
    assert latest_checkpoint(tmp_path).name == "step_000001"
    save(tmp_path, 3)
    assert not list(tmp_path.glob(".*"))


def test_no_folder_means_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.learner.test_checkpoint import save
from rlvr.learner.checkpoint import CheckpointError
folder = Path(sys.argv[1])
save(folder, 1)
# A file-size limit fails the write itself, inside the writer, as a full disk does.
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(folder, 2, size=200_000)
except CheckpointError as error:
    print(error)
"""


def test_a_write_that_fails_leaves_the_old_checkpoint_intact(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(root)],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
        timeout=120,
    )
    assert "step 2 could not be written" in done.stdout
    assert "step_000001 is intact; free some space" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    assert latest_checkpoint(tmp_path).name == "step_000001"


def test_a_really_full_disk_leaves_the_old_checkpoint_intact(tmp_path):
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        save(tmp_path, 1)
        with pytest.raises(CheckpointError, match=r"No space left.*step_000001 is intact"):
            save(tmp_path, 2, size=400_000)
        assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
        save(tmp_path, 3)
        assert latest_checkpoint(tmp_path).name == "step_000003"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


class Slow:
    """A model whose writing takes as long as the test likes."""

    def __init__(self):
        self.go = threading.Event()

    def write(self, path: Path) -> None:
        assert self.go.wait(30)
        (path / "model").mkdir()
        (path / "model" / "weights.bin").write_bytes(b"weights")


def test_a_background_write_holds_what_was_there_when_it_began(tmp_path):
    writer, model = CheckpointWriter(tmp_path, 2, Ranks(), background=True), Slow()
    moments = torch.ones(4)
    writer.save(1, model.write, {"exp_avg/a": moments}, {"step": 1})
    moments.add_(1)
    assert latest_checkpoint(tmp_path) is None, "it cannot be there yet"
    model.go.set()
    writer.wait()
    state, tensors = load_state(latest_checkpoint(tmp_path))
    assert state == {"step": 1}
    assert tensors["exp_avg/a"].tolist() == [1.0] * 4


def test_a_background_write_that_fails_is_raised_at_the_next_occasion(tmp_path):
    writer = CheckpointWriter(tmp_path / "file", 2, Ranks(), background=True)
    (tmp_path / "file").write_text("not a folder")
    writer.save(1, lambda _: None, {}, {"step": 1})
    with pytest.raises(CheckpointError, match="step 1 could not be written"):
        writer.wait()
    writer.wait()


def test_slices_of_ranks_are_put_together(tmp_path):
    """As ZeRO leaves them: pieces of flattened parameters, in any order, on some of the ranks."""
    from safetensors.torch import save_file

    whole = torch.arange(10.0)
    pieces = [(6, whole[6:]), (0, whole[:6]), None]
    for rank, piece in enumerate(pieces):
        tensors = {"rng/cpu": torch.tensor([rank])}
        if piece is not None:
            tensors |= {"start/a": torch.tensor(piece[0]), "exp_avg/a": piece[1].clone()}
            tensors["step/a"] = torch.tensor(3.0)
        save_file(tensors, tmp_path / f"trainer_{rank}.safetensors")
    (tmp_path / "state.json").write_text('{"ranks": 3}')
    state, found = load_state(tmp_path)
    assert state == {}
    assert set(found) == {"exp_avg/a", "step/a"}
    assert torch.equal(found["exp_avg/a"], whole)
    assert float(found["step/a"]) == 3
