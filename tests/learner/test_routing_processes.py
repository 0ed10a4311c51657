"""A mixture's routers in several processes, against one."""

import pytest
import torch
from safetensors.torch import load_file

from rlvr.learner.launch import Launch
from tests.learner import jobs
from tests.learner.launching import run_job


@pytest.fixture(scope="module")
def alone(mixture_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    jobs.run_case("mixture", mixture_folder, folder, Launch(jobs.Alone()))
    return load_file(folder / "mixture.safetensors")


def test_the_losses_act_in_this_job(alone):
    assert bool((alone["log:router/balance"] > 1).all())
    assert float(alone["log:router/z"][-1]) < float(alone["log:router/z"][0])


@pytest.mark.deepspeed
@pytest.mark.timeout(600)
@pytest.mark.parametrize("config", ["multi_cpu", "zero2", "zero3"])
def test_two_processes_balance_and_replay_as_one(alone, config, mixture_folder, tmp_path):
    """Rows that another rank routed in the old pass are replayed here."""
    run_job(config, "mixture", mixture_folder, tmp_path)
    together = load_file(tmp_path / "mixture.safetensors")
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        far = float((value.double() - together[name].double()).abs().max())
        assert far < (0.02 if name == "log:router/changed" else 1e-4), (name, far)
    assert torch.equal(alone["log:router/load_max"], together["log:router/load_max"])
