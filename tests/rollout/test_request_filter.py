"""What a server lets through, with a stand-in for vLLM's application behind the real middleware.

tests/rollout/test_vllm_server_door.py asks a real server.
"""

import asyncio
import json
import os

import aiohttp
import httpx
import pytest

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rollout import request_rules
from rlvr.rollout.engine import Request
from rlvr.rollout.request_filter import RequestFilter
from rlvr.rollout.request_rules import FOLDER_VARIABLE, NCCL_VARIABLE, rules, rules_of_environment
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.server import Server, ServerFailedError
from rlvr.rollout.server_key import ensure_key, find_key
from rlvr.rollout.settings import VllmServerEngineSettings
from rlvr.rollout.vllm_server_engine import VllmServerEngine
from rlvr.rollout.weight_client import HTTPClient
from rlvr.rollout.weight_sync import WeightFolder, learner_logprobs, proof_sequence
from tests.rollout.fake_server import FakeServer

KEY = "a key of the tests"
BEARER = {"Authorization": f"Bearer {KEY}"}
GENERATE = {
    "token_ids": [1, 2, 3],
    "sampling_params": {"temperature": 1.0, "max_tokens": 4, "seed": 7, "stop_token_ids": [2]},
}


class Application:
    """Answers 200 to everything, and keeps what arrived."""

    def __init__(self):
        self.arrived = []

    async def __call__(self, scope, receive, send):
        message = await receive()
        self.arrived.append((scope, message["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


class Door:
    """The middleware around an application, asked as over HTTP."""

    def __init__(self, folder, nccl=True):
        self.application = Application()
        self.filter = RequestFilter(self.application, KEY, rules([folder], nccl=nccl))

    def ask(self, verb, path, content=None, headers=BEARER):
        if content is not None and not isinstance(content, bytes):
            content = json.dumps(content).encode()

        async def call():
            transport = httpx.ASGITransport(self.filter)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(verb, path, content=content, headers=headers)

        return asyncio.run(call())

    def passes(self, verb, path, content=None):
        before = len(self.application.arrived)
        status = self.ask(verb, path, content).status_code
        assert (status == 200) == (len(self.application.arrived) == before + 1)
        return status == 200


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "weights" / "rlvr-weights-x" / "model").mkdir(parents=True)
    return tmp_path / "weights"


@pytest.fixture
def door(folder):
    return Door(folder)


def rpc(method, **arguments):
    return {"method": method, "kwargs": arguments}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY} "},
        {"Authorization": b"Bearer \xe9"},
        {"X-Api-Key": KEY},
        [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")],
    ],
)
def test_without_the_key_everything_is_401_and_the_body_is_not_looked_at(door, headers):
    for verb, path in [("GET", "/health"), ("POST", "/collective_rpc"), ("GET", "/no/such")]:
        answer = door.ask(verb, path, b"{" * 2**17, headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY not in answer.text
    for verb in ("OPTIONS", "HEAD"):
        assert door.ask(verb, "/v1/models", headers=headers).status_code == 401
    assert not door.application.arrived


def test_the_scheme_is_read_in_any_case(door):
    assert door.ask("GET", "/health", headers={"Authorization": f"bearer {KEY}"}).status_code == 200


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/metrics"),
        ("GET", "/server_info"),
        ("GET", "/health/"),
        ("GET", "/HEALTH"),
        ("GET", "//health"),
        ("GET", "/health?x=1"),
        ("POST", "/health"),
        ("OPTIONS", "/health"),
        ("GET", "/collective_rpc"),
        ("POST", "/reset_prefix_cache?reset_external=true"),
        ("POST", "/sleep"),
        ("POST", "/pause"),
        ("POST", "/v1/completions"),
        ("POST", "/invocations"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/inference/v1/generate/x"),
        ("POST", "/start_profile"),
        ("POST", "/shutdown_weight_transfer_engine"),
        ("POST", "/weight_checker"),
    ],
)
def test_other_requests_are_404(door, verb, path):
    answer = door.ask(verb, path)
    assert answer.status_code == 404
    assert not door.application.arrived


def test_requests_of_nccl_pass_only_where_that_was_agreed(folder):
    for nccl in (False, True):
        door = Door(folder, nccl)
        for path in ("start_weight_update", "finish_weight_update"):
            assert door.passes("POST", f"/{path}") == nccl
        assert door.passes("GET", "/get_world_size") == nccl


def test_only_five_methods_of_the_workers_can_be_called(door, folder):
    model = str(folder / "rlvr-weights-x" / "model")
    for name in ("note_weights", "noted_weights", "repack_output_heads"):
        assert door.passes("POST", "/collective_rpc", rpc(name))
    assert door.passes("POST", "/collective_rpc", rpc("sees_weights", folder=""))
    assert door.passes("POST", "/collective_rpc", rpc("sees_weights", folder=model))
    assert door.passes("POST", "/collective_rpc", rpc("reload_weights", weights_path=model))
    refused = [
        rpc("save_sharded_state", path="/tmp/x"),
        rpc("save_tensorized_model"),
        rpc("__reduce__"),
        rpc("reload_weights"),
        rpc("reload_weights", weights_path=model, is_checkpoint_format="x"),
        rpc("reload_weights", weights_path=[model]),
        rpc("reload_weights", weights_path=""),
        rpc("sees_weights", folder=None),
        rpc("repack_output_heads", folder=model),
        rpc(["repack_output_heads"]),
        {"method": "repack_output_heads"},
        {"method": "repack_output_heads", "kwargs": {}, "args": ["x"]},
        {"method": "repack_output_heads", "kwargs": {}, "timeout": 1},
        {"method": "repack_output_heads", "kwargs": []},
        [rpc("repack_output_heads")],
        None,
        b"",
        b"\xff",
        b"[" * 10_000,
        b'{"method": "repack_output_heads", "kwargs": {}',
    ]
    for body in refused:
        answer = door.ask("POST", "/collective_rpc", b"null" if body is None else body)
        assert answer.status_code == 400, body
    assert len(door.application.arrived) == 6


def test_weights_come_only_from_the_agreed_folder(door, folder, tmp_path):
    outside = tmp_path / "rlvr-weights-y" / "model"
    outside.mkdir(parents=True)
    (folder / "rlvr-weights-link").symlink_to(outside.parent)
    (folder / "rlvr-weights-x" / "linked").symlink_to(outside)
    deep = folder / "rlvr-weights-x" / "rlvr-weights-z" / "model"
    deep.mkdir(parents=True)
    wrong = [
        outside,
        folder / "rlvr-weights-link" / "model",
        folder / "rlvr-weights-x" / "linked",
        f"{folder}/rlvr-weights-x/model/../../../rlvr-weights-y/model",
        deep,
        folder / "rlvr-weights-x",
        folder / "other" / "model",
        f"{folder}/rlvr-weights-x/model\0",
        f"{folder}/rlvr-weights-{'x' * 5000}/model",
        os.path.relpath(folder / "rlvr-weights-x" / "model"),
        "~/rlvr-weights-x/model",
        "/etc",
    ]
    for path in map(str, wrong):
        for body in (rpc("reload_weights", weights_path=path), rpc("sees_weights", folder=path)):
            assert door.ask("POST", "/collective_rpc", body).status_code == 400, path
    said = door.ask("POST", "/collective_rpc", rpc("sees_weights", folder=str(outside))).text
    assert "rollout.engine.weights_folder" in said
    assert "--weights-folder" in said
    assert not door.application.arrived


def test_what_is_passed_on_is_the_real_path(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    door = Door(tmp_path / "alias")
    named = str(tmp_path / "alias" / "rlvr-weights-x" / "." / "model")
    assert door.passes("POST", "/collective_rpc", rpc("reload_weights", weights_path=named))
    body = json.loads(door.application.arrived[0][1])
    assert body["kwargs"] == {"weights_path": str(folder / "rlvr-weights-x" / "model")}


def test_a_folder_of_another_user_is_refused_where_everybody_may_write(door, folder, monkeypatch):
    body = rpc("sees_weights", folder=str(folder / "rlvr-weights-x" / "model"))
    monkeypatch.setattr(request_rules.os, "geteuid", lambda: os.getuid() + 1)
    assert door.passes("POST", "/collective_rpc", body)
    folder.chmod(0o1777)
    assert not door.passes("POST", "/collective_rpc", body)
    absent = rpc("sees_weights", folder=str(folder / "rlvr-weights-none" / "model"))
    assert door.passes("POST", "/collective_rpc", absent)  # the worker says that it is not there


@pytest.mark.parametrize(
    "changed",
    [
        {"features": {}},
        {"stream": True},
        {"token_ids": ["a"]},
        {"token_ids": [True]},
        {"token_ids": "12"},
        {"sampling_params": None},
        {"sampling_params": {"logprobs": -1}},
        {"sampling_params": {"logprobs": False}},
        {"sampling_params": {"prompt_logprobs": 20}},
        {"sampling_params": {"n": 1000}},
        {"sampling_params": {"temperature": "1"}},
        {"sampling_params": {"extra_args": {}}},
        {"sampling_params": {"stop_token_ids": [2.5]}},
        {"sampling_params": {"structured_outputs": {"regex": "(a+)+"}}},
    ],
)
def test_a_completion_is_asked_for_as_the_engine_does(door, changed):
    assert door.passes("POST", "/inference/v1/generate", GENERATE)
    assert not door.passes("POST", "/inference/v1/generate", {**GENERATE, **changed})


def test_a_number_that_json_does_not_have_is_refused(door):
    body = json.dumps(GENERATE).replace("1.0", "NaN").encode()
    assert door.ask("POST", "/inference/v1/generate", body).status_code == 400


INIT = {
    **{"master_address": "127.0.0.1", "master_port": 29600, "rank_offset": 1, "world_size": 2},
    **{"packed": True, "packed_buffer_size_bytes": 2**28, "packed_num_buffers": 2},
}
UPDATE = {"names": ["a"], "dtype_names": ["float32"], "shapes": [[2, 3]]}


def test_weights_from_gpu_to_gpu_are_announced_in_their_form(door):
    init, update = "/init_weight_transfer_engine", "/update_weights"
    assert door.passes("POST", init, {"init_info": INIT})
    assert door.passes("POST", update, {"update_info": UPDATE})
    assert not door.passes("POST", init, {"init_info": {**INIT, "master_port": "29600"}})
    assert not door.passes("POST", init, {"init_info": {**INIT, "backend": "ipc"}})
    for wrong in (
        {**UPDATE, "ipc_handles_pickled": "gASV"},
        {**UPDATE, "names": [{}]},
        {**UPDATE, "shapes": ["ab"]},
        {"names": ["a"]},
        [UPDATE],
    ):
        assert not door.passes("POST", update, {"update_info": wrong})


def test_a_body_that_is_too_large_is_413_and_is_not_kept(door):
    for path, most in [("/collective_rpc", 2**14), ("/reset_prefix_cache", 0), ("/health", 0)]:
        verb = "GET" if path == "/health" else "POST"
        assert door.ask(verb, path, b" " * (most + 1)).status_code == 413
    held = []

    async def receive():
        held.append(1)
        return {"type": "http.request", "body": b" " * 2**12, "more_body": True}

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/collective_rpc", "query_string": b""}
    scope["headers"] = [(b"authorization", f"Bearer {KEY}".encode())]  # no length: in chunks
    asyncio.run(door.filter(scope, receive, send))
    assert sent[0]["status"] == 413
    assert len(held) == 5
    assert not door.application.arrived


def test_headers_and_names_that_occur_twice_reach_nobody(door):
    body = b'{"method": "save_sharded_state", "method": "repack_output_heads", "kwargs": {}}'
    headers = {**BEARER, "X-Amzn-SageMaker-Adapter-Identifier": "x", "Content-Encoding": "gzip"}
    assert door.ask("POST", "/collective_rpc", body, headers).status_code == 200
    scope, arrived = door.application.arrived[0]
    assert arrived == b'{"method": "repack_output_heads", "kwargs": {}}'
    names = [name for name, _ in scope["headers"]]
    assert sorted(names) == [b"authorization", b"content-length", b"content-type", b"host"]
    assert dict(scope["headers"])[b"content-length"] == str(len(arrived)).encode()


def test_a_websocket_is_closed_and_the_life_of_the_server_passes(door):
    sent, seen = [], []

    async def send(message):
        sent.append(message)

    async def application(scope, _receive, _send):
        seen.append(scope["type"])

    asyncio.run(door.filter({"type": "websocket", "path": "/v1/realtime"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    asyncio.run(RequestFilter(application, KEY, {})({"type": "lifespan"}, None, send))
    assert seen == ["lifespan"]


def test_a_client_that_leaves_is_seen_by_the_application(folder):
    """By which vLLM cancels a completion."""
    messages = [
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.disconnect"},
    ]
    seen = []

    async def application(_scope, receive, _send):
        seen.extend([await receive(), await receive()])

    async def receive():
        return messages.pop(0)

    scope = {"type": "http", "method": "GET", "path": "/health", "query_string": b""}
    scope["headers"] = [(b"authorization", f"Bearer {KEY}".encode())]
    asyncio.run(RequestFilter(application, KEY, rules([folder]))(scope, receive, None))
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]


def test_a_server_without_a_key_does_not_start(monkeypatch, tmp_path):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"no key for the server: set VLLM_API_KEY"):
        RequestFilter(Application())


def test_what_was_agreed_comes_from_the_environment(monkeypatch, folder):
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    monkeypatch.delenv(NCCL_VARIABLE, raising=False)
    found = rules_of_environment()
    assert ("POST", "/update_weights") not in found
    body = json.dumps(rpc("sees_weights", folder=f"{folder}/rlvr-weights-x/model")).encode()
    assert found["POST", "/collective_rpc"].checked(body) == body
    monkeypatch.setenv(NCCL_VARIABLE, "1")
    monkeypatch.delenv(FOLDER_VARIABLE)
    found = rules_of_environment()
    assert ("POST", "/update_weights") in found
    default = WeightFolder(1)  # where a learner puts its weights if nothing is set
    try:
        body = json.dumps(rpc("sees_weights", folder=str(default.model))).encode()
        assert found["POST", "/collective_rpc"].checked(body) == body
    finally:
        default.remove()


class Recorder(FakeServer):
    """Writes down what it is asked for."""

    asked = ()

    def answer(self, path, headers, body):
        bare = ("/reset_prefix_cache", "/start_weight_update", "/finish_weight_update")
        verb = "POST" if body is not None or path in bare else "GET"
        self.asked = [*self.asked, (verb, path, body, headers.get("Authorization"))]
        steps = path.endswith(("weight_update", "_weights", "_engine"))
        return (200, {}) if steps else super().answer(path, headers, body)


def test_what_the_engine_sends_passes(tiny_folder, folder, monkeypatch):
    monkeypatch.setattr("rlvr.rollout.server.expected_version", lambda: "0.32.0")
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    vocabulary = policy.causal_lm.config.vocab_size
    server = Recorder(learner_logprobs(policy, proof_sequence(vocabulary, None)))
    server.key = KEY
    settings = VllmServerEngineSettings(addresses=(server.address,), weights_folder=folder)
    engine = VllmServerEngine(policy, [2], settings)
    try:
        engine.sync(policy, 0)
        engine.generate([Request((1, 2, 3), (4, 5))], Sampling(max_tokens=3, top_p=0.9, top_k=4))
        client = HTTPClient(server.address, KEY, 10.0)
        client.init_weight_transfer_engine(INIT)
        client.start_weight_update()
        client.update_weights(UPDATE)
        client.finish_weight_update()
        with pytest.raises(ServerFailedError, match=r"status 401 at /v1/no"):
            HTTPClient(server.address, "another key of them", 10.0)._post("v1/no")
        server.asked.pop()
    finally:
        engine.close()
        server.stop()
    paths = {path for _, path, _, _ in server.asked}
    assert paths >= {"/health", "/version", "/v1/models", "/inference/v1/generate"}
    assert paths >= {"/collective_rpc", "/reset_prefix_cache", "/update_weights"}
    door = Door(folder)
    for verb, path, body, authorization in server.asked:
        assert authorization == f"Bearer {KEY}"
        assert door.passes(verb, path, body), (path, body)
        assert body is None or json.loads(door.application.arrived[-1][1]) == body


def test_a_key_that_is_made_after_the_engine_began_is_found(monkeypatch, tmp_path):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    served = FakeServer([])

    async def ask():
        async with aiohttp.ClientSession() as session:
            server = Server(served.address, session, find_key(), "VLLM_API_KEY", 10.0)
            assert server.look_for_key() is None
            ensure_key()
            served.key = find_key()
            assert server.look_for_key() == served.key
            assert await server._call("GET", "/v1/models", timeout_s=10.0)

    try:
        asyncio.run(ask())
    finally:
        served.stop()
