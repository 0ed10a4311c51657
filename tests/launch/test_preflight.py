"""A node is looked at before anything starts, and servers are waited for."""

import http.server
import socket
import subprocess
import sys
import threading
import time

import pytest

from launch import health
from launch.preflight import examine, main, meet, missing_packages
from launch.script import render_script


@pytest.fixture
def taken():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_taken_port_and_a_missing_package_are_named_with_the_node(
    taken, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    arguments = ["--folder", str(tmp_path), "--nodes", "1", "--host", "127.0.0.1"]
    assert main([*arguments, "--ports", str(taken), "--need", "no-such-package"]) == 1
    said = capsys.readouterr().err
    assert f"node node7: port {taken} is taken; end what listens there" in said
    assert "node node7:" in said
    assert "lacks no-such-package; install it there" in said
    assert main([*arguments, "--need", "rlvr", "--need", "nothing|pytest", "--ports"]) == 0


def test_a_port_that_is_free_is_no_fault():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert examine([], [port], "127.0.0.1") == []
    assert missing_packages(["torch", "launch"]) == []


def test_nodes_that_share_the_folder_meet(tmp_path):
    late = threading.Timer(0.5, (tmp_path / "node2").touch)
    late.start()
    (tmp_path / ".nfs01").touch()
    meet(tmp_path, "node1", 2, timeout_s=10)
    assert (tmp_path / "node2").exists()


@pytest.mark.timed
def test_a_folder_that_is_not_shared_is_found_out_in_time(tmp_path):
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"sees 1 of 2 nodes in .* within 1 s \(node1\).*share"):
        meet(tmp_path, "node1", 2, timeout_s=1)
    assert time.monotonic() - began < 5


def run_role(script, tmp_path, *words, path="/usr/bin:/bin", **environment):
    job = tmp_path / "job.sh"
    job.write_text(script)
    return subprocess.run(
        ["bash", str(job), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        env={
            "PATH": path,
            "SLURMD_NODENAME": "node7",
            "SLURM_NODEID": "0",
            "SLURM_NNODES": "1",
            "RLVR_ADDRESSES": "a",
            "RLVR_LOGS": str(tmp_path),
            **environment,
        },
    )


@pytest.mark.parametrize(
    ("python", "part"),
    [
        ("/no/such/python", "node node7 has no /no/such/python; give one that all nodes have"),
        ("/usr/bin/false", "node node7: /usr/bin/false has no rlvr; install it there"),
    ],
)
def test_a_node_without_the_environment_is_named(make_job, tmp_path, python, part):
    script = render_script(make_job(site={"python": python}))
    done = run_role(script.replace("/shared/project", str(tmp_path)), tmp_path, "check")
    assert done.returncode == 1
    assert part in done.stderr


def test_a_node_that_does_not_see_the_script_is_named(make_job, tmp_path):
    """The words that every step begins with, run as srun would run them."""
    script = render_script(make_job(shared_timeout_s=1))
    assignment = script[script.index("readonly enter='") : script.index("exit 1'\n") + 8]
    shell = f'{assignment}\nbash -c "$enter" rlvr /no/such/job.sh check'
    done = subprocess.run(
        ["bash", "-c", shell],
        capture_output=True,
        text=True,
        timeout=20,
        env={"PATH": "/usr/bin:/bin", "SLURMD_NODENAME": "node7"},
    )
    assert done.returncode == 1
    assert (
        "node node7 does not see /no/such/job.sh within 1 s: the folder of the run" in done.stderr
    )


class Health(http.server.BaseHTTPRequestHandler):
    """Healthy from the third time on."""

    asked = 0

    def do_GET(self):
        Health.asked += 1
        self.send_response(200 if Health.asked > 2 and self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_servers_are_waited_for_and_those_that_do_not_come_are_named_with_their_log(
    monkeypatch, capsys
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(health, "_PAUSE_S", 0.05)
    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        health.wait({address: "a.log"}, 20)
        assert Health.asked == 3
        missing = "http://127.0.0.1:9=/logs/server-node3-0.log"
        assert health.main(["--timeout", "0.2", f"{address}=a.log", missing]) == 1
    finally:
        server.shutdown()
        server.server_close()
    said = capsys.readouterr().err
    assert "1 of 2 servers are not healthy after 0.2 s: http://127.0.0.1:9 (log /logs/" in said
    assert "a.log" not in said


class Guarded(http.server.BaseHTTPRequestHandler):
    """Healthy for those who have the key."""

    def do_GET(self):
        known = self.headers.get("Authorization") == "Bearer the key of the job"
        self.send_response(200 if known else 401)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_server_is_asked_with_the_key_and_one_with_another_is_named(monkeypatch, capsys):
    server = http.server.HTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pair = f"http://127.0.0.1:{server.server_port}=a.log"
    try:
        for key, code in (("the key of the job", 0), ("the key of another job", 1), ("", 1)):
            monkeypatch.setenv("VLLM_API_KEY", key)
            assert health.main(["--timeout", "20", pair]) == code
    finally:
        server.shutdown()
        server.server_close()
    said = capsys.readouterr().err
    assert said.count("answers, but not to the key in VLLM_API_KEY") == 2
    assert "the key of" not in said


def test_what_runs_on_nodes_starts_fast():
    """Without torch, which takes seconds to import on every node."""
    code = (
        "import sys, launch.preflight, launch.node, launch.health; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
