"""Two real vLLM servers: the samples of the ``vllm`` engine, weights that are proven, and faults.

The servers take half a minute or more to start, so all tests share them.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.serve import serve_command, serve_environment
from rlvr.rollout.server import Server, ServerRefusedError
from rlvr.rollout.settings import VllmEngineSettings, VllmServerEngineSettings
from rlvr.rollout.vllm_engine import VllmEngine
from rlvr.rollout.vllm_server_engine import VllmServerEngine
from rlvr.rollout.weight_sync import StaleWeightsError
from rlvr.runs.log import read_metrics
from rlvr.threads import EventLoop
from tests.rollout.test_vllm_engine import (
    GREEDY,
    LONG,
    SAMPLING,
    STOP_IDS,
    learner_values,
    long_requests,
    perturb,
    requests,
    values,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
KEY = "a key of the tests"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = tmp_path_factory.mktemp("tiny") / "model"
    shape = TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1)
    write_tiny_model(folder, 0, shape)
    return folder


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Served:
    """A server process in a group of its own."""

    def __init__(self, model_folder, log, weights, drop=()):
        self.port = free_port()
        self.drop, self.model_folder, self.log, self.weights = drop, model_folder, log, weights
        self.start()

    def start(self):
        command = serve_command(str(self.model_folder), port=self.port, max_model_len=128, cpu=True)
        for name, count in self.drop:
            at = command.index(name)
            del command[at : at + count]
        environment = {**os.environ, **serve_environment(1, self.weights), "VLLM_API_KEY": KEY}
        environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def send(self, number):
        """To all of its processes."""
        os.killpg(self.process.pid, number)

    def end(self):
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folder of which the servers were told."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def servers(model_folder, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    made = [Served(model_folder, folder / f"{number}.log", weights) for number in range(2)]
    yield made
    for server in made:
        server.end()


@pytest.fixture(scope="module")
def policy(model_folder):
    return load_policy(ModelSettings(path=str(model_folder)), device=torch.device("cpu"))


def build(policy, servers, place, **settings):
    chosen = VllmServerEngineSettings(
        addresses=tuple(server.address for server in servers), weights_folder=place, **settings
    )
    return VllmServerEngine(policy, STOP_IDS, chosen, longest=128)


@pytest.fixture
def engine(policy, servers, model_folder, weights, monkeypatch):
    """Over both servers, with the weights as they were loaded."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    fresh = load_policy(ModelSettings(path=str(model_folder)), device=torch.device("cpu"))
    policy.load_state_dict(fresh.state_dict())
    engine = build(policy, servers, weights, silence_timeout_s=10.0)
    assert engine.sync(policy, 0)["engine/servers"] == 2
    yield engine
    engine.close()
    assert not list(weights.iterdir())


def tokens(outputs):
    return [sample.token_ids for output in outputs for sample in output]


def test_samples_are_those_of_the_engine_in_a_process(engine, policy, tmp_path):
    asked = requests(10)
    place = tmp_path / "other"
    place.mkdir()
    settings = VllmEngineSettings(threads=1, kv_cache_gib=0.25, weights_folder=place)
    other = VllmEngine(policy, STOP_IDS, settings, longest=128)
    try:
        other.sync(policy, 0)
        for sampling in (GREEDY, SAMPLING):
            ours, theirs = engine.generate(asked, sampling), other.generate(asked, sampling)
            assert tokens(ours) == tokens(theirs)
            assert torch.allclose(values(ours), values(theirs), atol=1e-5)
            finish = [[s.finish_reason for s in o] for o in ours]
            assert finish == [[s.finish_reason for s in o] for o in theirs]
    finally:
        other.close()


def test_log_probabilities_are_the_learners_before_and_after_new_weights(engine, policy):
    asked = requests(8, seed=2)
    before = engine.generate(asked, SAMPLING)
    perturb(policy, 0.3)
    metrics = engine.sync(policy, 1)
    assert metrics["sync/difference_max"] < 1e-5
    after = engine.generate(asked, SAMPLING)
    assert tokens(after) != tokens(before)
    expected = learner_values(policy, asked, after, SAMPLING.temperature)
    assert torch.allclose(values(after), expected, atol=1e-5)


def test_a_head_left_stale_on_the_servers_fails_the_proof(
    engine, policy, servers, weights, monkeypatch
):
    """What a reload alone leaves behind with tied embeddings."""
    perturb(policy, 0.1)
    monkeypatch.setattr(VllmServerEngine, "_repair", False)
    stale = build(policy, servers, weights)
    with pytest.raises(StaleWeightsError, match=r"after the sync of version 3 .*above the 0\.001"):
        stale.sync(policy, 3)
    stale.close()
    assert engine.sync(policy, 3)["sync/difference_max"] < 1e-5


def test_a_server_that_answers_with_another_model_fails_the_proof(engine, policy, monkeypatch):
    """As behind an address that leads to several: one loads the weights, another one answers."""
    generate = Server._generate
    first, second = engine._pool.servers

    def elsewhere(server, prompt, fields):
        return generate(second if server is first else server, prompt, fields)

    perturb(policy, 0.1)
    monkeypatch.setattr(Server, "_generate", elsewhere)
    kept, second.loaded = second.loaded, engine._weights.serial + 1  # it has no part in this sync
    with pytest.raises(StaleWeightsError, match=r"version 4 .*it answers as the weights that it"):
        engine.sync(policy, 4)
    monkeypatch.setattr(Server, "_generate", generate)
    second.loaded = kept
    assert engine.sync(policy, 5)["sync/difference_max"] < 1e-5


def test_a_prefix_cache_that_the_servers_keep_fails_the_proof(engine, policy, monkeypatch):
    async def nothing(server):
        pass

    drop_cache = Server.drop_cache
    perturb(policy, 0.1)
    monkeypatch.setattr(Server, "drop_cache", nothing)
    with pytest.raises(StaleWeightsError, match=r"prefix cache still holds .* \(32 left\)"):
        engine.sync(policy, 6)
    monkeypatch.setattr(Server, "drop_cache", drop_cache)
    assert engine.sync(policy, 7)["sync/difference_max"] < 1e-5


def test_a_tensor_that_the_servers_were_not_given_is_named(engine, policy, monkeypatch):
    name = "model.layers.1.mlp.down_proj.weight"
    reload = Server.reload

    def without(server, folder):
        path = Path(folder) / "model.safetensors"
        save_file({n: t for n, t in load_file(path).items() if n != name}, path)
        return reload(server, folder)

    perturb(policy, 0.1)
    monkeypatch.setattr(Server, "reload", without)
    with pytest.raises(StaleWeightsError, match=f"{name} was not written"):
        engine.sync(policy, 8)
    monkeypatch.setattr(Server, "reload", reload)
    assert engine.sync(policy, 9)["sync/difference_max"] < 1e-5


def test_a_wrong_key_is_refused(engine, policy, servers, weights, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "not that one but long")
    wrong = build(policy, servers, weights)
    with pytest.raises(ValueError, match=r"rejects the API key in .*VLLM_API_KEY") as error:
        wrong.sync(policy, 0)
    assert "not that one but long" not in str(error.value)
    wrong.close()


def test_a_hung_server_loses_its_work_and_is_used_again_when_it_goes_on(engine, servers):
    asked = long_requests(seed=8)
    expected = engine.generate(asked, LONG)
    struck = []

    def strike(done, _total):
        if done >= 5 and not struck:
            servers[0].send(signal.SIGSTOP)
            struck.append(time.monotonic())
            threading.Timer(25.0, servers[0].send, [signal.SIGCONT]).start()

    outputs = engine.generate(asked, LONG, strike)
    assert tokens(outputs) == tokens(expected)
    assert torch.allclose(values(outputs), values(expected), atol=1e-4)
    time.sleep(max(0.0, 26.0 - (time.monotonic() - struck[0])))
    metrics = engine.load()
    assert metrics["engine/servers"] == 2
    assert metrics["engine/retries"] > 0
    assert metrics["engine/servers_lost"] == 1


def test_a_killed_server_loses_its_work_and_comes_back_with_the_newest_weights(
    engine, policy, servers
):
    """Its supervisor starts it anew, with the weights of its command line."""
    perturb(policy, 0.2)
    engine.sync(policy, 2)
    asked = long_requests(seed=9)
    expected = engine.generate(asked, LONG)
    struck = []

    def strike(done, _total):
        if done >= 5 and not struck:
            servers[1].send(signal.SIGKILL)
            struck.append(done)

    outputs = engine.generate(asked, LONG, strike)
    assert tokens(outputs) == tokens(expected)
    assert torch.allclose(values(outputs), values(expected), atol=1e-4)
    servers[1].end()
    servers[1].start()
    deadline = time.monotonic() + 300
    while engine.load()["engine/servers"] < 2:
        assert time.monotonic() < deadline, servers[1].log.read_text()[-2000:]
        time.sleep(1.0)
    assert tokens(engine.generate(asked, LONG)) == tokens(expected)
    assert engine.load()["engine/servers_lost"] == 1


def test_raw_log_probabilities_are_found_out(model_folder, policy, tmp_path):
    server = Served(model_folder, tmp_path / "raw.log", tmp_path, [("--logprobs-mode", 2)])

    async def examine():
        async with aiohttp.ClientSession() as session:
            it = Server(server.address, session, KEY, "VLLM_API_KEY", 60.0)
            while True:
                try:
                    await it.health(5.0)
                    break
                except RuntimeError:
                    assert server.process.poll() is None
            await it.examine()

    loop = EventLoop("examination")
    try:
        with pytest.raises(ServerRefusedError, match=r"processed_logprobs is missing.*rlvr serve"):
            loop.run(examine())
    finally:
        loop.close()
        server.end()


def recipe(model_folder, servers, weights, tmp_path, steps):
    source = {"name": "arithmetic", "digits": 1, "size": 40}
    chosen = {
        "output": str(tmp_path / "run"),
        "steps": steps,
        "model": {"path": str(model_folder)},
        "data": {"source": source, "template": "plain", "max_prompt_tokens": 16},
        "rollout": {
            "engine": {
                "name": "vllm_server",
                "addresses": [server.address for server in servers],
                "weights_folder": str(weights),
            },
            "prompts_per_step": 4,
            "samples_per_prompt": 4,
            "sampling": {"max_tokens": 8},
        },
        "regularisers": [{"name": "entropy", "coefficient": -1.0}],
        "learner": {"lr": 0.03},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(chosen))
    return path


def train(path):
    return subprocess.Popen(
        [sys.executable, "-m", "rlvr", "train", str(path)],
        cwd=ROOT,
        env={**os.environ, "VLLM_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_trains_and_proves_every_sync(model_folder, servers, weights, tmp_path):
    process = train(recipe(model_folder, servers, weights, tmp_path, 3))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps = [row for row in rows if "reward/mean" in row]
    assert len(steps) == 3
    assert all(row["sync/difference_max"] < 1e-4 for row in steps)
    assert all(row["engine/servers"] == 2 for row in steps)
    assert KEY not in output + (tmp_path / "run" / "metrics.jsonl").read_text()
    assert not list(weights.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_the_servers_and_no_weights(
    model_folder, servers, weights, tmp_path, number, code
):
    process = train(recipe(model_folder, servers, weights, tmp_path, 100000))
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and process.poll() is None:
        assert time.monotonic() < deadline, "the run did not get to its first record in time"
        time.sleep(0.1)
    time.sleep(1.0)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    _, living = psutil.wait_procs(children, timeout=10)
    assert not living
    assert not list(weights.iterdir())
    assert all(server.process.poll() is None for server in servers)


def test_the_engine_asks_for_no_more_than_one_prompt_of_room(engine):
    with pytest.raises(ValueError, match=r"a prompt of 110 tokens with max_tokens 24 exceeds"):
        engine.generate([Request((5,) * 110, (1,))], Sampling(max_tokens=24))
