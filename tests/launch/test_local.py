"""The roles on this machine: what is started, that all end together, and signals.

The commands are stand-ins here, started in place of Python's own; tests/launch/test_local_run.py
trains.
"""

import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import yaml

from launch.local import LocalRun, describe_roles
from tests.launch.cluster import free_ports
from tests.launch.conftest import ROOT
from tests.launch.test_node import wait_for

# Started as Python by the job: does what the role's words say. A server answers health checks;
# a learner runs until FOLDER/end holds its exit code, or stops upon a notice.
STAND_IN = """#!{python}
import http.server, os, signal, sys, threading, time
words = sys.argv[1:]
if "launch.node" in words:
    os.execv("{python}", ["{python}", *words])
folder = "{folder}"
name = "server" if "serve" in words else "learner"
print(name, "starts", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if name == "server" and os.path.exists(folder + "/ill"):
    print("no GPU here"); sys.exit(3)
if name == "server":
    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers()
        def log_message(self, *_):
            pass
    port = int(words[words.index("--port") + 1])
    http.server.HTTPServer(("127.0.0.1", port), Healthy).serve_forever()
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))
rank = words[words.index("--machine_rank") + 1]
open(folder + "/learner-" + rank, "w").write(" ".join(words))
while not os.path.exists(folder + "/end" + rank):
    time.sleep(0.05)
sys.exit(int(open(folder + "/end" + rank).read()))
"""


@pytest.fixture
def local(make_job, tmp_path):
    """Arguments of a local job of two learner "nodes" and one server, with stand-ins."""
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, folder=tmp_path))
    python.chmod(0o755)
    ports = free_ports(2)
    return {
        "nodes": 3,
        "rollout_nodes": 1,
        "gpus_per_node": 2,
        "tensor_parallel": 2,
        "main_port": ports[0],
        "server_port": ports[1],
        "start_timeout_s": 30,
        "site": {"python": str(python), "environment": {"PYTHONPATH": str(ROOT)}},
    }


@pytest.fixture
def started(local, tmp_path):
    """``rlvr launch --local`` of it, as a process."""
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump(local["site"]))
    line = [sys.executable, "-m", "rlvr", "launch", str(ROOT / "recipes/smollm2_arithmetic.yaml")]
    line += [f"output={tmp_path}/run", "--local", "--site", str(site)]
    for name, value in local.items():
        if name not in ("site", "start_timeout_s"):
            line += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "learner-0")
    wait_for(tmp_path / "learner-1")
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) == 6
    yield process
    if process.poll() is None:
        process.kill()
    assert not psutil.wait_procs(below, timeout=10)[1], "something outlived the launch"


def test_commands_are_those_of_the_cluster(make_job, local):
    text = describe_roles(make_job(**local))
    server, *learners = text.splitlines()
    port = local["server_port"]
    assert server.startswith("server 0: ")
    assert (
        f"rlvr serve HuggingFaceTB/SmolLM2-135M-Instruct --host 127.0.0.1 --port {port}" in server
    )
    for rank, line in enumerate(learners):
        assert f"--num_machines 2 --num_processes 4 --machine_rank {rank}" in line
        assert f"'rollout.engine.addresses=[http://127.0.0.1:{port}]'" in line


def test_the_learners_end_is_everyone_s(started, tmp_path):
    assert "--machine_rank 1" in (tmp_path / "learner-1").read_text()
    log = next((tmp_path / "run" / "launch").glob("local-*/server-0.log"))
    assert "server starts 4,5" in log.read_text()
    for rank in (0, 1):
        (tmp_path / f"end{rank}").write_text("0")
    assert started.wait(30) == 0


def test_a_role_that_fails_ends_all_and_is_named(started, tmp_path):
    (tmp_path / "end1").write_text("7")
    _, said = started.communicate(timeout=30)
    assert started.returncode == 7
    assert "rlvr launch: learner-1 ended with exit code 7, so all others are ended, too" in said
    assert "learner-1.log:\nlearner starts 2,3" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_have_the_learners_save_and_stop(started, number):
    started.send_signal(number)
    assert started.wait(30) == 128 + number


def test_nothing_outlives_a_launch_that_is_killed(started):
    started.kill()
    assert started.wait(30) == -signal.SIGKILL


def test_a_server_that_does_not_come_up_is_named_with_its_last_words(
    make_job, local, tmp_path, capfd
):
    (tmp_path / "ill").touch()
    job = replace(make_job(**local), workdir=str(tmp_path))
    assert LocalRun(job, tmp_path / "logs").run() == 3
    said = capfd.readouterr().err
    assert "server-0 ended with exit code 3" in said
    assert "no GPU here" in said


def test_a_taken_port_is_refused_before_anything_starts(make_job, local):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", local["server_port"]))
        taken.listen()
        began = time.monotonic()
        with pytest.raises(ValueError, match=rf"port {local['server_port']} .* is taken"):
            LocalRun(make_job(**local)).run()
        assert time.monotonic() - began < 5
