"""The roles on this machine: what is started, that all end together, and signals.

The commands are stand-ins here, started in place of Python's own; tests/launch/test_local_run.py
trains.
"""

import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace

import psutil
import pytest

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
            known = self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
            self.send_response(200 if known else 401); self.end_headers()
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


class Launched:
    """A launch in a fork of this process, which has imported everything already."""

    def __init__(self, job, errors):
        self.errors = errors
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), 2)
                sys.stderr = os.fdopen(2, "w")
                code = LocalRun(job).run()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)

    def wait(self, seconds=60):
        """The exit code; minus the number of the signal that ended it."""
        deadline = time.monotonic() + seconds
        while (found := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.02)
        self.pid = None
        return os.waitstatus_to_exitcode(found[1])

    def send(self, number):
        os.kill(self.pid, number)


@pytest.fixture
def started(make_job, local, tmp_path):
    """The job, begun: two learners and a server."""
    job = replace(make_job(f"output={tmp_path}/run", **local), workdir=str(tmp_path))
    launched, below = Launched(job, tmp_path / "errors"), []
    try:
        wait_for(tmp_path / "learner-0")
        wait_for(tmp_path / "learner-1")
        below = psutil.Process(launched.pid).children(recursive=True)
        assert len(below) == 6
        yield launched
    finally:
        if launched.pid is not None:
            launched.send(signal.SIGKILL)
            launched.wait()
        assert not psutil.wait_procs(below, timeout=20)[1], "something outlived the launch"


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
    assert started.wait() == 0


def test_a_role_that_fails_ends_all_and_is_named(started, tmp_path):
    (tmp_path / "end1").write_text("7")
    assert started.wait() == 7
    said = started.errors.read_text()
    assert "rlvr launch: learner-1 ended with exit code 7, so all others are ended, too" in said
    assert "learner-1.log:\nlearner starts 2,3" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_have_the_learners_save_and_stop(started, number):
    started.send(number)
    assert started.wait() == 128 + number


def test_nothing_outlives_a_launch_that_is_killed(started):
    started.send(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL


def test_a_server_that_does_not_come_up_is_named_with_its_last_words(
    make_job, local, tmp_path, capfd
):
    (tmp_path / "ill").touch()
    job = replace(make_job(**local), workdir=str(tmp_path))
    assert LocalRun(job, tmp_path / "logs").run() == 3
    said = capfd.readouterr().err
    assert "server-0 ended with exit code 3" in said
    assert "no GPU here" in said


@pytest.mark.timed
def test_a_taken_port_is_refused_before_anything_starts(make_job, local):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", local["server_port"]))
        taken.listen()
        began = time.monotonic()
        with pytest.raises(ValueError, match=rf"port {local['server_port']} .* is taken"):
            LocalRun(make_job(**local)).run()
        assert time.monotonic() - began < 5
