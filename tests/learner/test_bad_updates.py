"""No gradient and no weight that is not a number gets anywhere; training then ends."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlvr.learner.bad_updates import BadUpdates, DivergedError
from rlvr.learner.checkpoint import last_sound, save_checkpoint
from rlvr.learner.learner import Learner
from rlvr.learner.parameter_store import StepResult
from rlvr.learner.settings import LearnerSettings
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import TokenMean
from rlvr.policy.finite import NonFiniteWeightsError, check_loaded, first_bad, is_finite
from rlvr.policy.loading import load_policy
from rlvr.policy.saving import save_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.policy.value_head import load_critic
from rlvr.ranks import Ranks
from rlvr.rollout.weight_sync import export_model
from tests.learner.batches import make_batch

REWARDS = [1.0, 0, 0, 1, 0, 0, 0, 1]
PLAIN = Objective(Clip(), (), TokenMean())


def learner_of(folder, **settings):
    return Learner(load_policy(ModelSettings(path=str(folder))), PLAIN, LearnerSettings(**settings))


def batches():
    sound = make_batch(REWARDS, dtype=torch.float32)
    return sound, replace(sound, advantages_BT=sound.advantages_BT * float("nan"))


def test_bad_updates_in_a_row_end_training_and_a_good_one_between_them_does_not(tiny_folder):
    sound, poisoned = batches()
    learner = learner_of(tiny_folder, max_bad_updates=2)
    for batch in (poisoned, sound, poisoned, sound, poisoned):
        learner.update(batch)
    assert learner.bad_updates.skipped == 3
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    with pytest.raises(DivergedError, match=r"2 updates in a row .* 'model.model.embed_tokens"):
        learner.update(poisoned)
    for name, value in learner.policy.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_count_goes_on_after_a_checkpoint(tiny_folder):
    _, poisoned = batches()
    first, second = (learner_of(tiny_folder, max_bad_updates=3) for _ in range(2))
    first.update(poisoned)
    first.update(poisoned)
    second.bad_updates.load_state(first.bad_updates.state())
    with pytest.raises(DivergedError, match="3 updates in a row"):
        second.update(poisoned)


def test_each_model_is_counted_by_itself():
    """Steps of an auxiliary model between the policy's must not hide that these are all bad."""
    good, bad = (StepResult({}, skipped, {}, {}, name) for skipped, name in ((0, None), (1, "w")))
    counted = BadUpdates(3)
    for _ in range(2):
        counted.count(bad, ["policy"])
        counted.count(good, ["prm"])
    with pytest.raises(DivergedError, match="3 updates in a row"):
        counted.count(bad, ["policy"])


def test_a_finite_gradient_that_makes_weights_infinite_ends_training_at_once(tiny_folder):
    learner = learner_of(tiny_folder, lr=1e38)
    with pytest.raises(DivergedError, match=r"made weights infinite or NaN, first 'model\.model\."):
        learner.update(batches()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_finite_is_seen_in_one_pass_whatever_the_dtype(dtype):
    values = torch.ones(5, 3).to(dtype)
    assert is_finite(values)
    values[2, 1] = float("nan")
    assert not is_finite(values)
    assert is_finite(torch.zeros(0))
    assert is_finite(torch.tensor([3]))
    assert not is_finite(torch.tensor([1.0, -float("inf")]))
    assert is_finite(torch.tensor([3e38, -3e38]))
    assert first_bad([("a", torch.ones(1)), ("b", values), ("c", values)]) == "b"


def poison(policy):
    name, parameter = [p for p in policy.named_parameters() if p[1].requires_grad][3]
    with torch.no_grad():
        parameter.view(-1)[1] = float("inf")
    return name


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_weights_that_are_not_finite_are_written_nowhere(tiny_folder, tmp_path, lora):
    policy = load_policy(ModelSettings(path=str(tiny_folder), lora=lora))
    state = {"bad_updates": {"policy": 0}}
    for step in (1, 2):
        save_checkpoint(
            tmp_path,
            step,
            write_model=lambda folder: save_policy(policy, folder),
            tensors={},
            state=state,
            keep=1,
        )
    poison(policy)
    with pytest.raises(NonFiniteWeightsError, match="not finite and were not written"):
        save_checkpoint(
            tmp_path,
            3,
            write_model=lambda folder: save_policy(policy, folder),
            tensors={},
            state=state,
            keep=1,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]
    with pytest.raises(NonFiniteWeightsError, match="not finite and were not written"):
        export_model(policy, None, tmp_path / "model", Ranks())
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002"]


def test_a_merge_that_overflows_is_not_exported(tiny_folder, tmp_path):
    policy = load_policy(ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2)))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.fill_(1e25)
    with pytest.raises(NonFiniteWeightsError):
        export_model(policy, None, tmp_path / "model", Ranks())
    assert not list(tmp_path.iterdir())


def test_the_last_checkpoint_from_before_bad_updates_is_not_rotated_away(tmp_path):
    def save(step, bad):
        state = {"step": step, "bad_updates": {"policy": bad}}
        write = lambda folder: (folder / "weights").write_text(str(step))  # noqa: E731
        save_checkpoint(tmp_path, step, write_model=write, tensors={}, state=state, keep=2)

    for step, bad in enumerate([0, 0, 0, 1, 2, 3], start=1):
        save(step, bad)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step_000003", "step_000005", "step_000006"]
    assert last_sound(tmp_path) == tmp_path / "step_000003"
    save(7, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000006", "step_000007"]
    assert last_sound(tmp_path) == tmp_path / "step_000007"


def poisoned_copy(source, target, file, name=None):
    """A folder's copy of which one tensor of one file holds a NaN; the tensor's name."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(target / file)
    name = name or sorted(tensors)[2]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, target / file, metadata={"format": "pt"})
    return name


def test_a_loaded_model_with_a_nan_is_named_with_its_tensor_and_file(tiny_folder, tmp_path):
    name = poisoned_copy(tiny_folder, tmp_path / "bad", "model.safetensors")
    with pytest.raises(NonFiniteWeightsError) as caught:
        load_policy(ModelSettings(path=str(tmp_path / "bad")))
    assert repr(name) in str(caught.value)
    assert str(tmp_path / "bad" / "model.safetensors") in str(caught.value)
    assert "cap" not in str(caught.value)


def test_loaded_adapters_and_critics_are_looked_at_too(tiny_folder, tmp_path):
    settings = ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2))
    save_policy(load_policy(settings), tmp_path)
    poisoned_copy(tmp_path / "adapter", tmp_path / "other", "adapter_model.safetensors")
    (tmp_path / "adapter").rename(tmp_path / "sound")
    (tmp_path / "other").rename(tmp_path / "adapter")
    with pytest.raises(NonFiniteWeightsError, match=r"lora_.*adapter_model\.safetensors"):
        load_policy(settings, saved=tmp_path)
    critic = load_critic(ModelSettings(path=str(tiny_folder)))
    values = {name: value.clone() for name, value in critic.state_dict().items()}
    values["head.bias"][0] = float("nan")
    save_file(values, tmp_path / "critic.safetensors")
    with pytest.raises(NonFiniteWeightsError, match=r"'head\.bias' in .*critic\.safetensors"):
        load_critic(ModelSettings(path=str(tiny_folder)), saved=tmp_path)


def test_an_infinite_mask_among_the_buffers_is_no_fault():
    module = torch.nn.Linear(2, 2)
    module.register_buffer("mask", torch.full((2,), -float("inf")))
    check_loaded(module, "somewhere")
    module.mask[0] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match="'mask'"):
        check_loaded(module, ".")
