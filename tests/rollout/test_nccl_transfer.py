"""Weights that are broadcast to servers that fail; real HTTP servers, a made-up broadcast."""

import threading
import time
from contextlib import suppress

import pytest
import torch

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rollout import nccl_transfer
from rlvr.rollout.arrival import noted
from rlvr.rollout.build import build_engine
from rlvr.rollout.nccl_transfer import NcclSender
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.server import ServerFailedError
from rlvr.rollout.settings import VllmServerEngineSettings
from rlvr.rollout.weight_sync import StaleWeightsError, learner_logprobs, proof_sequence
from rlvr.rollout.weight_transfer import PolicySource
from tests.rollout.fake_server import FakeServer
from tests.rollout.test_vllm_server_faults import assert_complete, requests

SAMPLING = Sampling(max_tokens=6)


class TransferServer(FakeServer):
    """Also takes weights: it joins the broadcast when it is asked for an update, or fails to."""

    def __init__(self, scores, port=0):
        self.joined = threading.Event()
        self.transfer_fault = None  # "500", "hang", "silent", "unconfigured"
        self.headers = {}
        super().__init__(scores, port)

    def answer(self, path, headers, body):
        step = path.removeprefix("/")
        if path == "/get_world_size":
            return 200, {"world_size": 2}
        if not step.endswith(("weight_transfer_engine", "weight_update", "update_weights")):
            return super().answer(path, headers, body)
        self.calls.append(step)
        self.headers = headers
        if self.transfer_fault == "unconfigured":
            return 500, {"error": {"message": "Weight transfer not configured. Please set"}}
        if step == "update_weights":
            return self.update()
        return 200, {"message": "ok"}

    def update(self):
        if self.transfer_fault == "500":
            return 500, {"error": {"message": "no such weight"}}
        if self.transfer_fault == "hang":
            time.sleep(60)
        if self.transfer_fault != "silent":  # silent: it answers, and takes no part
            self.joined.set()
        return 200, {"message": "ok"}


class Trainer:
    """vLLM's sender, whose broadcast waits for the server as NCCL does: for ever."""

    def __init__(self, client, server, source):
        self.client, self.server, self.source = client, server, source
        self.aborted = threading.Event()
        self.fault = None

    def send_weights(self):
        self.client.start_weight_update()
        update = threading.Thread(target=self._update, daemon=True)
        update.start()
        self._broadcast()
        update.join()
        self.client.finish_weight_update()

    def _update(self):
        with suppress(Exception):  # vLLM looks at it after the broadcast
            self.client.update_weights({"names": ["a"]})

    def _broadcast(self):
        if self.fault is not None:
            raise self.fault
        while not self.server.joined.wait(0.01):
            if self.aborted.is_set():
                raise RuntimeError("NCCL error: unhandled system error")
        self.server.joined.clear()
        whole = {name: noted(tensor) for name, tensor in self.source}
        whole.pop(self.server.overlooks, None)
        self.server.noted = whole

    def shutdown(self):
        self.aborted.set()


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return load_policy(ModelSettings(path=str(tiny_folder)))


@pytest.fixture
def servers(policy):
    scores = learner_logprobs(policy, proof_sequence(policy.causal_lm.config.vocab_size, None))
    made = [TransferServer(scores), TransferServer(scores)]
    yield made
    for server in made:
        server.stop()


@pytest.fixture
def trainers(servers, monkeypatch):
    """Senders as they are made."""
    made = []

    def connect(arguments, client, source):
        assert arguments["world_size"] == 3
        client.init_weight_transfer_engine({"world_size": 3})
        (server,) = (s for s in servers if s.address == client.address)
        made.append(Trainer(client, server, source))
        return made[-1]

    monkeypatch.setattr(nccl_transfer, "connect", connect)
    return made


@pytest.fixture
def make(policy, servers, trainers, tmp_path, monkeypatch):
    monkeypatch.setattr("rlvr.rollout.server.expected_version", lambda: "0.32.0")
    monkeypatch.setattr("rlvr.rollout.vllm_server_engine.check_device", lambda *_: None)
    made = []

    def build(used=None, **settings):
        used = servers if used is None else used
        limits = {"start_timeout_s": 20.0, "outage_timeout_s": 20.0, "request_timeout_s": 20.0}
        values = {"weights_folder": tmp_path, "weight_transfer": "nccl", **limits, **settings}
        addresses = tuple(server.address for server in used)
        made.append(
            build_engine(VllmServerEngineSettings(addresses=addresses, **values), policy, [2])
        )
        return made[-1]

    yield build
    for engine in made:
        engine.close()


def trainer_of(server, trainers):
    (first, *_) = (trainer for trainer in trainers if trainer.server is server)
    return first


UPDATE = ["start_weight_update", "update_weights", "finish_weight_update"]


def test_every_server_gets_a_group_once_and_the_weights_each_time(
    policy, servers, trainers, make, monkeypatch
):
    monkeypatch.setenv("VLLM_API_KEY", "a key for both servers")
    engine = make()
    for version in range(2):
        assert engine.sync(policy, version)["engine/servers"] == 2
    assert len(trainers) == 2
    for server in servers:
        around = ("sees_weights", "note_weights", "noted_weights")
        steps = [call for call in server.calls if "weight" in call and call not in around]
        assert steps == ["init_weight_transfer_engine", *UPDATE, *UPDATE]
        assert server.headers["Authorization"] == "Bearer a key for both servers"
    engine.close()
    assert all(trainer.aborted.wait(5) for trainer in trainers)


def test_a_tensor_that_a_broadcast_leaves_out_is_named(policy, servers, make):
    engine = make()
    engine.sync(policy, 0)
    servers[1].overlooks = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(StaleWeightsError, match=r"0\.self_attn\.q_proj\.weight did not arrive"):
        engine.sync(policy, 1)


def test_a_server_that_fails_at_an_update_ends_the_broadcast_at_once(
    policy, servers, trainers, make
):
    engine = make()
    engine.sync(policy, 0)
    servers[0].transfer_fault = "500"
    began = time.monotonic()
    metrics = engine.sync(policy, 1)
    assert time.monotonic() - began < 10, "the broadcast itself would never end"
    assert (metrics["engine/servers"], metrics["engine/servers_lost"]) == (1, 1)
    assert trainer_of(servers[0], trainers).aborted.wait(5)
    reason = engine._pool.servers[0].reason
    assert reason.startswith(servers[0].address)
    assert "status 500 at /update_weights" in reason
    assert "no such weight" in reason
    assert_complete(requests(4), engine.generate(requests(4), SAMPLING))


@pytest.mark.parametrize("fault", ["hang", "silent"])
def test_a_broadcast_to_a_server_that_takes_no_part_has_a_time_limit(
    policy, servers, trainers, make, fault
):
    engine = make(request_timeout_s=2.0)
    engine.sync(policy, 0)
    servers[0].transfer_fault = fault
    began = time.monotonic()
    assert engine.sync(policy, 1)["engine/servers"] == 1
    assert 1.9 < time.monotonic() - began < 15
    reason = engine._pool.servers[0].reason
    assert reason.startswith(servers[0].address)
    if fault == "silent":
        assert "the broadcast of weights did not end within 2 s" in reason
        assert "restart that server" in reason
    assert trainer_of(servers[0], trainers).aborted.wait(5)
    # Restarted, it gets a new group, the weights, and work.
    servers[0].transfer_fault = None
    servers[0].calls.clear()
    servers[1].pause_s = 0.1
    engine._pool.limits = engine._pool.limits.__class__(1, 20.0, 20.0, 2.0, 5.0, 8)
    assert_complete(requests(40, 2), engine.generate(requests(40, 2), SAMPLING))
    assert len(trainers) == 3
    assert "init_weight_transfer_engine" in servers[0].calls
    assert servers[0].completed


def test_a_fault_of_nccl_itself_is_a_fault_of_the_server(policy, servers, trainers, make):
    engine = make()
    engine.sync(policy, 0)
    trainer_of(servers[0], trainers).fault = RuntimeError("NCCL error: internal\nerror")
    assert engine.sync(policy, 1)["engine/servers"] == 1
    (failed,) = (server for server in engine._pool.servers if not server.loaded)
    assert failed.reason.startswith(failed.address)
    assert "failed: RuntimeError: NCCL error: internal error" in failed.reason


def test_a_group_that_is_not_formed_in_time_is_a_fault_too(policy, servers, make, monkeypatch):
    monkeypatch.setattr(nccl_transfer, "connect", lambda *_: time.sleep(60))
    engine = make(servers[:1], request_timeout_s=1.0, start_timeout_s=1.5)
    with pytest.raises(ValueError, match="forming a group for weights did not end within 1 s") as e:
        engine.sync(policy, 0)
    assert servers[0].address in str(e.value)


def test_a_server_that_was_not_started_for_it_is_refused_at_once(policy, servers, make):
    servers[1].transfer_fault = "unconfigured"
    began = time.monotonic()
    told = "takes no weights from GPU to GPU.*not configured.*rlvr serve MODEL --port .* --nccl"
    with pytest.raises(ValueError, match=told):
        make().sync(policy, 0)
    assert time.monotonic() - began < 15


def test_a_server_that_is_gone_is_named(policy, servers):
    servers[0].stop()
    source = PolicySource(policy, torch.float32)
    sender = NcclSender(servers[0].address, 1, source, None, 5.0)
    with pytest.raises(ServerFailedError, match=rf"{servers[0].address}: \w+ at /start_weight"):
        sender._client.start_weight_update()


def test_a_fault_of_ours_is_not_taken_for_one_of_the_server(policy, servers, trainers, make):
    engine = make()
    engine.sync(policy, 0)
    trainer_of(servers[0], trainers).fault = KeyError("a name")
    with pytest.raises(KeyError, match="a name"):
        engine.sync(policy, 1)


@pytest.mark.vllm
def test_vllms_sender_is_aborted_in_the_midst_of_a_broadcast(policy, servers, monkeypatch):
    from vllm.distributed.weight_transfer import nccl_engine

    aborted, sent = threading.Event(), []

    class Group:
        def destroy(self):
            aborted.set()

    def broadcast(iterator, group, src, post_iter_func, buffer_size_bytes, num_buffers):
        sent.extend(name for name, _ in iterator)
        assert not aborted.wait(30), "as NCCL does when the group is aborted"
        raise RuntimeError("NCCL error")

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: Group())
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", broadcast)
    servers[0].transfer_fault = "500"
    source = PolicySource(policy, torch.bfloat16)
    sender = NcclSender(servers[0].address, 2, source, None, 20.0)
    with pytest.raises(ServerFailedError, match="status 500 at /update_weights"):
        sender.send_weights()
    assert aborted.wait(5)
    assert sent == list(source.shapes())
    assert servers[0].calls[:2] == ["init_weight_transfer_engine", "start_weight_update"]
