"""A real server of ``rlvr serve``: the engine gets in, and nobody and nothing else does."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import torch

from launch import health
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.rollout.request_rules import rules
from rlvr.rollout.server_key import find_key
from rlvr.rollout.settings import VllmServerEngineSettings
from rlvr.rollout.vllm_server_engine import VllmServerEngine
from tests.rollout.test_vllm_engine import SAMPLING, STOP_IDS, learner_values, requests, values

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
# Of vLLM's server in development mode, with what each would take.
ENDPOINTS = [
    *[("GET", path) for path in ("/", "/docs", "/openapi.json", "/metrics", "/server_info")],
    *[("GET", path) for path in ("/ping", "/load", "/is_sleeping", "/is_paused", "/weight_info")],
    *[("POST", path) for path in ("/sleep", "/wake_up", "/pause", "/resume", "/abort_requests")],
    *[("POST", path) for path in ("/reset_mm_cache", "/tokenize", "/detokenize", "/invocations")],
    *[("POST", path) for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")],
    *[("POST", path) for path in ("/inference/v1/abort_requests", "/weight_checker")],
    *[("POST", path) for path in ("/init_weight_transfer_engine", "/update_weights")],
    *[("POST", path) for path in ("/scale_elastic_ep", "/is_scaling_elastic_ep")],
]
OURS = [
    *[("GET", path) for path in ("/health", "/version", "/v1/models")],
    *[("POST", path) for path in ("/collective_rpc", "/reset_prefix_cache")],
    ("POST", "/inference/v1/generate"),
]


class Served:
    """A server started as users do, with a key that it makes itself."""

    def __init__(self, model, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.weights, self.config = folder / "weights", folder / "config"
        self.weights.mkdir()
        command = [sys.executable, "-m", "rlvr", "serve", str(model), "--port", str(self.port)]
        command += ["--threads", "1", "--max-model-len", "128"]
        command += ["--weights-folder", str(self.weights)]
        environment = {**os.environ, "XDG_CONFIG_HOME": str(self.config), "HF_HUB_OFFLINE": "1"}
        environment.pop("VLLM_API_KEY", None)
        self.log = folder / "log"
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def ask(self, verb, path, body=None, key=None):
        """(status, text); the key is the server's if None, and none at all if empty."""
        key = self.key if key is None else key
        found = {"Authorization": f"Bearer {key}"} if key else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = json.dumps(body) if isinstance(body, dict) else body
            connection.request(verb, path, data, found)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def tree(self):
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = tmp_path_factory.mktemp("door")
    shape = TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1)
    write_tiny_model(folder / "model", 0, shape)
    server = Served(folder / "model", folder)
    server.model = folder / "model"
    try:
        deadline = time.monotonic() + 600
        key = None
        while key is None or not health.healthy(server.address, key):
            assert server.process.poll() is None, server.log.read_text()[-3000:]
            assert time.monotonic() < deadline, server.log.read_text()[-3000:]
            file = server.config / "rlvr" / "server_key"
            key = file.read_text().strip() if file.exists() else None
            time.sleep(0.5)
        server.key = key
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(timeout=30)


def test_without_the_key_everything_is_401(served):
    for verb, path in [*OURS, *ENDPOINTS, ("OPTIONS", "/collective_rpc"), ("GET", "/no/such")]:
        for key in ("", "another key than that one", served.key[:-1]):
            assert served.ask(verb, path, key=key)[0] == 401, (verb, path, key)


def test_with_the_key_what_the_engine_does_not_need_is_404(served):
    for verb, path in [*ENDPOINTS, ("GET", "/no/such"), ("POST", "/start_weight_update")]:
        assert served.ask(verb, path)[0] == 404, (verb, path)


def test_no_way_of_writing_the_path_leads_around(served):
    for path in ("/health/../collective_rpc", "/%2563ollective_rpc", "//collective_rpc"):
        assert served.ask("POST", path, b"{}")[0] == 404
    for path in ("/%63ollective_rpc", f"{served.address}/collective_rpc"):
        assert served.ask("POST", path, b"{}")[0] == 400
        assert served.ask("POST", path, b"{}", key="")[0] == 401


def test_a_worker_writes_no_file(served, tmp_path):
    """``save_sharded_state`` is a method of vLLM's workers."""
    target = tmp_path / "written"
    target.mkdir()
    for method in ("save_sharded_state", "model_runner.save_tensorized_model"):
        body = {"method": method, "kwargs": {"path": str(target)}}
        for arguments in (body, {"method": method, "args": [str(target)]}):
            status, said = served.ask("POST", "/collective_rpc", arguments)
            assert status == 400
            assert "no attribute" not in said  # the workers were not asked
    assert not list(target.iterdir())


def test_weights_come_from_the_agreed_folder_alone(served, tmp_path):
    stolen = tmp_path / "rlvr-weights-stolen"
    stolen.mkdir()
    (stolen / "model").symlink_to(served.model)
    (served.weights / "rlvr-weights-link").symlink_to(stolen)
    paths = [
        str(served.model),
        str(stolen / "model"),
        str(served.weights / "rlvr-weights-link" / "model"),
        f"{served.weights}/rlvr-weights-a/../../../{stolen.name}/model",
    ]
    try:
        for path in paths:
            body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
            assert served.ask("POST", "/collective_rpc", body)[0] == 400
            body = {"method": "sees_weights", "kwargs": {"folder": path}}
            assert served.ask("POST", "/collective_rpc", body)[0] == 400
    finally:
        (served.weights / "rlvr-weights-link").unlink()


def test_bodies_have_a_limit(served):
    assert served.ask("POST", "/collective_rpc", b" " * 2**20)[0] == 413
    pieces = iter([b" " * 2**10] * 2**10)
    with suppress(BrokenPipeError, ConnectionResetError):  # it may close before all has been sent
        assert served.ask("POST", "/collective_rpc", pieces)[0] == 413


def test_the_engine_finds_the_key_and_samples_with_new_weights(served, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(served.config))
    assert find_key() == served.key
    policy = load_policy(ModelSettings(path=str(served.model)), device=torch.device("cpu"))
    settings = VllmServerEngineSettings(addresses=(served.address,), weights_folder=served.weights)
    engine = VllmServerEngine(policy, STOP_IDS, settings, longest=128)
    try:
        for version in range(2):
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.mul_(1.05)
            assert engine.sync(policy, version)["sync/difference_max"] < 1e-4
        asked = requests(4)
        outputs = engine.generate(asked, SAMPLING)
        expected = learner_values(policy, asked, outputs, SAMPLING.temperature)
        assert torch.allclose(values(outputs), expected, atol=1e-4)
    finally:
        engine.close()


def test_a_folder_that_the_server_was_not_told_is_named_with_its_remedy(
    served, tmp_path, monkeypatch
):
    monkeypatch.setenv("VLLM_API_KEY", served.key)
    policy = load_policy(ModelSettings(path=str(served.model)), device=torch.device("cpu"))
    settings = VllmServerEngineSettings(addresses=(served.address,), weights_folder=tmp_path)
    engine = VllmServerEngine(policy, STOP_IDS, settings, longest=128)
    try:
        with pytest.raises(ValueError, match=r"start the server with --weights-folder FOLDER"):
            engine.sync(policy, 0)
    finally:
        engine.close()


def test_the_key_is_in_no_command_and_no_log(served):
    lines = [" ".join(process.cmdline()) for process in served.tree()]
    assert any("RequestFilter" in line for line in lines)
    assert not any(served.key in line for line in lines)
    assert served.key not in served.log.read_text()
    mode = (served.config / "rlvr" / "server_key").stat().st_mode
    assert mode & 0o777 == 0o600


def test_nothing_else_of_the_server_listens_for_requests(served):
    """vLLM's processes may open sockets among themselves; none of these speaks HTTP."""
    addresses = [
        connection.laddr
        for process in served.tree()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in addresses} == {"127.0.0.1"}
    listening = {address.port for address in addresses}
    assert served.port in listening
    for port in listening - {served.port}:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        with pytest.raises((OSError, http.client.HTTPException)):
            connection.getresponse()


def test_what_vllm_sends_before_weights_go_from_gpu_to_gpu_has_the_form_that_passes(tmp_path):
    from vllm.distributed.weight_transfer.nccl_common import (
        NCCLWeightTransferInitInfo,
        worker_init_payload,
    )
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

    meeting = {"master_address": "127.0.0.1", "master_port": 29600}
    init = NCCLWeightTransferInitInfo(**meeting, rank_offset=1, world_size=2, packed=True)
    update = NCCLWeightTransferUpdateInfo(["a"], ["bfloat16"], [[2, 3]])
    known = rules([tmp_path], nccl=True)
    for path, body in [
        ("/init_weight_transfer_engine", {"init_info": worker_init_payload(init)}),
        ("/update_weights", {"update_info": asdict(update)}),
    ]:
        text = json.dumps(body).encode()
        assert known["POST", path].checked(text) == text
