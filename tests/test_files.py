"""Files are there whole or not at all; locks have one holder and die with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr.files import (
    InUseError,
    LinePosition,
    append_line,
    is_locked,
    locked,
    read_lines,
    read_new_lines,
    remove_leftovers,
    replacing,
    replacing_folder,
    write_atomically,
)

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from rlvr.files import locked
with locked(Path(sys.argv[1]), "output"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_lock_names_its_holder_and_dies_with_it_though_its_child_lives(tmp_path):
    path = tmp_path / "new" / "run.lock"
    root = Path(__file__).parents[1]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    child = int(holder.stdout.readline())
    try:
        with (
            pytest.raises(InUseError, match=rf"output is in use by process {holder.pid} on .*20"),
            locked(path, "output", patience_s=0),
        ):
            pass
        holder.kill()
        holder.wait(timeout=10)
        with locked(path, "output"):
            assert path.is_file()
        assert not path.exists()
    finally:
        holder.kill()
        subprocess.run(["kill", str(child)], check=False)
        holder.stdout.close()


def test_one_process_does_not_hold_a_lock_twice(tmp_path):
    path = tmp_path / "lock"
    with locked(path, "it"):
        with pytest.raises(InUseError), locked(path, "it", patience_s=0):
            pass
        with pytest.raises(InUseError), locked(path, "it", patience_s=0):
            pass
    with locked(path, "it", patience_s=0):
        pass


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "one")
    with pytest.raises(TypeError), replacing(path) as temporary:
        temporary.write_text(2)
    assert path.read_text() == "one"
    with replacing(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    child = subprocess.Popen(["true"])
    child.wait(timeout=30)
    (tmp_path / f".a.txt.{child.pid}").write_text("half")
    kept = [tmp_path / f".a.txt.{os.getpid()}", tmp_path / ".mine", tmp_path / f"a.{child.pid}"]
    for path in kept:
        path.write_text("whole")
    remove_leftovers(tmp_path, tmp_path / "none")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_folder_is_replaced_whole_or_stays_as_it_was(tmp_path):
    folder = tmp_path / "f"
    for text in ("one", "two"):
        with replacing_folder(folder) as partial:
            (partial / f"{text}.txt").write_text(text)
    assert [path.name for path in folder.iterdir()] == ["two.txt"]
    with pytest.raises(TypeError), replacing_folder(folder) as partial:
        (partial / "three.txt").write_text(3)
    assert [path.name for path in folder.iterdir()] == ["two.txt"]
    assert list(tmp_path.iterdir()) == [folder]


def test_appended_lines_are_read_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"a": 1}, {"b": "é\n"}]
    for row in rows:
        append_line(path, row, sync=row is rows[0])
    assert list(read_lines(path).objects) == rows


def test_whether_a_lock_is_held_is_told_without_taking_it(tmp_path):
    path = tmp_path / "run.lock"
    assert is_locked(path) is False
    with locked(path, "output"):
        assert is_locked(path) is True
    path.write_text("left by a process that was killed")
    assert is_locked(path) is False
    with locked(path, "output", patience_s=0):
        pass


def test_new_lines_are_read_once_and_only_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_new_lines(path, LinePosition()).objects == ()
    path.write_text('{"a": 1}\nno object\n{"a": 2}\n{"a"')
    first = read_new_lines(path, LinePosition())
    assert first.objects == ({"a": 1}, {"a": 2})
    assert read_new_lines(path, first.position).objects == ()
    with path.open("a") as file:
        file.write(": 3}\n")
    second = read_new_lines(path, first.position)
    assert (second.objects, second.restarted) == (({"a": 3},), False)
    write_atomically(path, '{"a": 4}\n')
    third = read_new_lines(path, second.position)
    assert (third.objects, third.restarted) == (({"a": 4},), True)
    path.unlink()
    assert read_new_lines(path, third.position).restarted


def test_long_files_of_new_lines_are_read_in_pieces(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"a": {i}}}\n' for i in range(9)) + f'{{"a": "{"x" * 200}"}}\n')
    found, position = [], LinePosition()
    for _ in range(9):
        new = read_new_lines(path, position, most=20)
        found, position = [*found, *new.objects], new.position
    assert [row["a"] for row in found] == [*range(9), "x" * 200]
