"""Ranks that shard weights make the same collectives in the same order, counted on each of two."""

from functools import partial

import pytest
import torch

from rlvr.policy import merging
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.ranks import Ranks
from rlvr.rl.recipe import RLRecipe
from rlvr.rollout import null_engine, weight_store, weight_sync
from rlvr.rollout.build import build_engine
from rlvr.rollout.settings import VllmEngineSettings, VllmServerEngineSettings
from rlvr.settings import load_settings
from tests.rollout.test_weight_sync import Sharding


@pytest.fixture
def small_buckets(monkeypatch):
    """Buckets of 20,000 bytes, of which the tiny model has several."""
    small = partial(merging.merged_buckets, most=20_000)
    for module in (weight_sync, null_engine):
        monkeypatch.setattr(
            module, "merged_buckets", lambda policy, dtype, *_, **more: small(policy, dtype, **more)
        )


def collectives(tiny_folder, tmp_path, monkeypatch, rank, settings, model):
    """What one of two ranks gathers and runs while it publishes twice and loads."""
    policy = load_policy(ModelSettings(path=str(tiny_folder), **model))
    sharding = Sharding(policy)
    seen = sharding.gathers

    def forward(_, sequence):  # gathers layer by layer, as often as it runs
        seen.append(f"forward {len(sequence)}")
        return [-1.0] * (len(sequence) - 1)

    for module in (weight_store, null_engine):
        monkeypatch.setattr(module, "learner_logprobs", forward)
    ranks = Ranks()
    ranks.rank, ranks.count = rank, 2
    engine = build_engine(settings(tmp_path / str(rank)), policy, [2], 40, ranks)
    for version in range(2):
        engine.publish(policy, version)
    if isinstance(engine, null_engine.NullEngine):
        engine.load()
    engine.close()
    return seen


def servers(place):
    place.mkdir()
    return VllmServerEngineSettings(weights_folder=place)


def processes(place):
    place.mkdir()
    return VllmEngineSettings(weights_folder=place)


@pytest.mark.parametrize("settings", [servers, processes])
@pytest.mark.parametrize(
    "model",
    [{}, {"precision": "bfloat16"}, {"precision": "bfloat16", "lora": LoraSettings(rank=2)}],
)
def test_two_ranks_publish_in_step(
    tiny_folder, tmp_path, monkeypatch, small_buckets, vllm_found, settings, model
):
    first, second = (
        collectives(tiny_folder, tmp_path, monkeypatch, rank, settings, model) for rank in range(2)
    )
    assert first == second
    assert first.count("forward 39") == 2
    assert len(first) > 6, "several buckets each time"


@pytest.mark.parametrize(
    ("engine", "launch", "message"),
    [
        ({"name": "vllm_server", "weight_transfer": "nccl"}, (2, 3), "'nccl' with ZeRO 3.*folder"),
        ({"name": "vllm", "weight_transfer": "ipc"}, (2, 3), "'ipc' with ZeRO 3.*folder"),
        ({"name": "vllm_server", "weight_transfer": "nccl"}, (2, 2), None),
        ({"name": "vllm", "weight_transfer": "ipc"}, (4, 0), None),
        ({"name": "vllm"}, (2, 3), None),
        ({"name": "vllm_server"}, (2, 3), None),
    ],
)
def test_a_transfer_that_ranks_cannot_make_in_step_is_refused(tmp_path, engine, launch, message):
    values = {
        "output": str(tmp_path / "run"),
        "steps": 1,
        "model": {"path": "x/y"},
        "data": {"source": {"name": "arithmetic"}},
        "rollout": {"engine": engine},
    }
    faults = load_settings(RLRecipe, values).launch_faults(*launch)
    assert len(faults) == (message is not None)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            raise ValueError(faults[0])


def test_ipc_over_several_gpus_is_refused_by_the_settings():
    told = r"'ipc' with tensor_parallel_size = 2.*use folder"
    with pytest.raises(ValueError, match=told):
        VllmEngineSettings(weight_transfer="ipc", tensor_parallel_size=2)


def test_shapes_are_cut_into_the_buckets_of_the_weights(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2)))
    cut = [list(bucket) for bucket in merging.shape_buckets(policy, torch.bfloat16, 20_000)]
    assert cut == [list(b) for b in merging.merged_buckets(policy, torch.bfloat16, 20_000)]
    assert len(cut) > 2
