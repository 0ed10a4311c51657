"""Runs of a tiny model, trained once, and a Hub on loopback that the real client talks to."""

import huggingface_hub
import pytest

from tests.hub.runs import rl_values, tiny_model, train
from tests.hub.server import TOKEN, LoopbackHub


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "tiny-base")


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    """All weights trained; checkpoints of steps 2 and 4. Not to be changed."""
    return train(rl_values(tiny, tmp_path_factory.mktemp("runs") / "whole"))


@pytest.fixture(scope="session")
def lora_run(tiny, tmp_path_factory):
    """Adapters trained."""
    values = rl_values(tiny, tmp_path_factory.mktemp("runs") / "lora")
    values["model"]["lora"] = {"rank": 4}
    values["learner"]["lr"] = 3e-3
    return train(values)


@pytest.fixture
def hub(monkeypatch):
    """A Hub on loopback; the client of this process is pointed at it, with a valid token."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with LoopbackHub().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # for processes that are started
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
