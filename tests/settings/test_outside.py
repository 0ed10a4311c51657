"""Code of the user's own is found by its place, and shadows nothing of ours."""

import subprocess
import sys

import pytest

import reward
from rlvr.settings.outside import load_outside


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory whose modules have the names of ours too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_rewards.py").write_text("def half(item):\n    return 0.5\n")
    for name in ("reward", "eval", "launch"):
        (tmp_path / f"{name}.py").write_text("def half(item):\n    return 0.25\n")
    yield tmp_path
    sys.modules.pop("own_rewards", None)


def test_a_module_of_the_working_directory_is_found(folder):
    assert load_outside("own_rewards:half")(None) == 0.5


@pytest.mark.parametrize("name", ["reward", "eval", "launch"])
def test_a_file_may_have_the_name_of_a_package_of_ours(folder, name):
    assert load_outside(f"{name}.py:half")(None) == 0.25
    assert sys.modules["reward"] is reward


def test_a_file_that_was_edited_is_read_again(folder):
    first = load_outside("own_rewards.py:half")
    assert load_outside("own_rewards.py:half") is first
    (folder / "own_rewards.py").write_text("def half(item):\n    return 0.75\n")
    assert load_outside("own_rewards.py:half")(None) == 0.75
    assert first(None) == 0.5


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nothing_here:f", "package.module:Name of a module that Python finds"),
        ("own_rewards:third", "has no 'third'; it defines half"),
        ("nothing.py:f", "there is no file 'nothing.py'"),
    ],
)
def test_what_is_not_there_is_named(folder, place, said):
    with pytest.raises(ValueError, match=said):
        load_outside(place)


def test_the_module_form_of_the_command_takes_our_packages(folder):
    (folder / "reward.py").write_text("raise SystemExit('shadowed')\n")
    words = ["-m", "rlvr", "grade", "--explain", "1/2", "0.5"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shadowed" not in done.stdout + done.stderr
