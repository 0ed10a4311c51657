"""A role on a node: notices reach who handles them, and nothing outlives the role."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]

# As torch's launcher: a child in a session of its own, which the parent waits for.
LAUNCHER = """
import subprocess, sys
sys.exit(subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True).wait())
"""
# As the learner: it begins to handle the notice after a while, counts, and stops.
LEARNER = """
import os, signal, sys, time
time.sleep(0.5)
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
open("ready", "w").write(str(os.getpid()))
while not seen:
    time.sleep(0.02)
time.sleep(1.2)
open("seen", "w").write(str(len(seen)))
sys.exit(138)
"""
SLEEPER = "import time; open('ready', 'w').write('1'); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER


def start(folder, *command, options=(), **more):
    return subprocess.Popen(
        [sys.executable, "-m", "launch.node", *options, "--", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLURMD_NODENAME": "node7"},
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_command(role):
    """Until it has started its command: from then on a notice does not end it."""
    deadline = time.monotonic() + 60
    while not psutil.Process(role.pid).children():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def launcher(source):
    return [sys.executable, "-c", LAUNCHER, source]


@pytest.mark.parametrize("early", [True, False])
def test_a_notice_reaches_the_learner_once_however_early_and_is_a_success(tmp_path, early):
    role = start(tmp_path, *launcher(LEARNER), options=["--stopped", "stopped"])
    if early:
        wait_for_command(role)  # the learner handles nothing yet
    else:
        wait_for(tmp_path / "ready")
    role.send_signal(signal.SIGUSR1)
    assert role.wait(60) == 0
    assert (tmp_path / "seen").read_text() == "1"
    assert (tmp_path / "stopped" / "node7").is_file()


def test_without_a_notice_the_code_is_the_command_s(tmp_path):
    stop = ["--stopped", "stopped"]
    assert start(tmp_path, "bash", "-c", "exit 7", options=stop).wait(60) == 7
    assert start(tmp_path, "bash", "-c", "kill -9 $$", options=stop).wait(60) == 137
    assert not (tmp_path / "stopped").exists()


def test_a_notice_after_which_the_command_ends_well_is_no_stop(tmp_path):
    role = start(tmp_path, "sleep", "2", options=["--stopped", "stopped"])
    wait_for_command(role)
    role.send_signal(signal.SIGUSR1)
    assert role.wait(60) == 0
    assert not (tmp_path / "stopped").exists()


def test_a_role_that_ignores_notices_goes_on_ignoring_them(tmp_path):
    ignore = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        role = start(tmp_path, *launcher(LEARNER))
    finally:
        signal.signal(signal.SIGUSR1, ignore)
    wait_for(tmp_path / "ready")
    role.send_signal(signal.SIGUSR1)
    time.sleep(1.0)
    assert role.poll() is None
    role.terminate()
    assert role.wait(60) == 143
    assert not (tmp_path / "seen").exists()


@pytest.mark.parametrize("source", [SLEEPER, STUBBORN])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_nothing_below_survives_the_end_of_the_role(tmp_path, source, number):
    role = start(tmp_path, *launcher(source), options=["--grace", "1"])
    wait_for(tmp_path / "ready")
    below = psutil.Process(role.pid).children(recursive=True)
    assert len(below) == 2
    role.send_signal(number)
    assert role.wait(60) in (143, 137)
    assert not psutil.wait_procs(below, timeout=5)[1]


def test_orphans_of_a_command_that_ended_are_ended(tmp_path):
    source = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], "
    source += "start_new_session=True); import time\nwhile not __import__('os').path.exists('ready'"
    source += "): time.sleep(0.02)"
    role = start(tmp_path, sys.executable, "-c", source)
    assert role.wait(60) == 0
    left = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(tmp_path)]
    assert not left


def test_a_role_ends_with_its_parent(tmp_path):
    parent = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "launch.node", "--with-parent", "--", *sys.argv[1:]])
time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", parent, *launcher(SLEEPER)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    wait_for(tmp_path / "ready")
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) == 3
    process.kill()
    process.wait()
    assert not psutil.wait_procs(below, timeout=10)[1]


def test_a_command_that_is_not_there_is_named_with_the_node(tmp_path):
    role = start(tmp_path, "no-such-command")
    _, said = role.communicate(timeout=60)
    assert role.returncode == 127
    assert "rlvr launch: node node7: cannot start 'no-such-command': No such file" in said
