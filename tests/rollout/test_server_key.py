"""Where the servers' key comes from, and what is refused about it."""

import stat
import subprocess
import sys
import threading

import pytest

from rlvr.rollout.serve import serve_command, serve_environment, shell_line
from rlvr.rollout.server_key import ensure_key, find_key, key_file


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_the_first_server_makes_a_key_that_only_its_owner_reads(home):
    assert find_key() is None
    assert ensure_key()
    key = find_key()
    assert len(key) == 64
    assert key_file() == home / "config" / "rlvr" / "server_key"
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file().parent.stat().st_mode) == 0o700
    assert not ensure_key()
    assert find_key() == key
    assert [path.name for path in key_file().parent.iterdir()] == ["server_key"]


def test_servers_that_start_together_agree_on_one_key(home):
    found, gate = [], threading.Barrier(8)

    def start():
        gate.wait()
        made = ensure_key()
        found.append((made, find_key()))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({key for _, key in found}) == 1
    assert sum(made for made, _ in found) == 1


def test_the_environment_comes_first_and_writes_nothing(monkeypatch):
    ensure_key()
    monkeypatch.setenv("OTHER", "the key of the other variable")
    assert find_key("OTHER") == "the key of the other variable"
    key_file().unlink()
    monkeypatch.setenv("VLLM_API_KEY", "a key of the tests")
    assert find_key() == "a key of the tests"
    assert not ensure_key()
    assert not key_file().exists()


@pytest.mark.parametrize("key", ["short", "x" * 15, "x" * 20 + "\n", "\xe9" * 20, " " * 20])
def test_an_unfit_key_is_refused_without_being_shown(monkeypatch, key):
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(ValueError, match=r"variable VLLM_API_KEY must have at least 16 ") as error:
        ensure_key()
    assert key not in str(error.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_read_or_change_is_refused(mode):
    ensure_key()
    key = find_key()
    key_file().chmod(mode)
    with pytest.raises(
        ValueError, match=rf"others than you .*mode {mode:o}\).*makes a new key"
    ) as error:
        find_key()
    assert key not in str(error.value)


def test_a_key_that_cannot_be_written_is_named_with_its_remedy(home):
    (home / "config").write_text("a file")
    with pytest.raises(
        ValueError, match=r"cannot be written to .*server_key: .*; set VLLM_API_KEY"
    ):
        ensure_key()


def test_the_command_has_no_key_and_the_middleware(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "a key of the tests")
    line = shell_line(serve_command("m", cpu=True), serve_environment(1))
    assert "a key of the tests" not in line
    assert "--middleware rlvr.rollout.request_filter.RequestFilter" in line
    assert "VLLM_USE_RUST_FRONTEND=0" in line


def test_processes_of_a_server_on_loopback_meet_there(monkeypatch):
    for name in ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    met = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    for host in ("127.0.0.1", "localhost"):
        assert met.items() <= serve_environment(host=host).items()
    assert not met.keys() & serve_environment(host="10.0.0.3").keys()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert "GLOO_SOCKET_IFNAME" not in serve_environment()


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--api-key", "x"], "--api-key"),
        (["--api_key=x"], "--api-key"),
        (["--api-k", "x"], "--api-k"),
        (["--seed", "1", "--middleware", "a.b"], "--middleware"),
        (["--grpc"], "--grpc"),
        (["--config=f"], "--config"),
        (["--root-path", "/x"], "--root-path"),
    ],
)
def test_options_that_lead_around_the_key_are_refused(extra, named):
    with pytest.raises(ValueError, match=f"does not pass {named} on to vLLM: ") as error:
        serve_command("m", extra=extra)
    assert " x" not in str(error.value)


def test_other_options_pass():
    extra = ["--tensor-parallel-size", "2", "--api-server-count=2", "-O0", "--", "--seed", "3"]
    assert serve_command("m", extra=extra)[-len(extra) :] == extra


def test_the_middleware_needs_no_torch():
    """vLLM imports it in every process of its front end."""
    code = "import sys, rlvr.rollout.request_filter; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
