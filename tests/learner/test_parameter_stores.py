"""One recipe, whatever holds the parameters: the same losses, gradients and weights.

The jobs (tests/learner/jobs.py) run in this process, and as two processes under every file of
launch/accelerate that a CPU can carry. All is float32, so what is compared differs by the order of
sums: after 40 updates weights agree to 1e-6 (they are of order 0.1, and moved by up to 0.04).
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from rlvr.learner.checkpoint import load_state, written_by
from rlvr.learner.launch import Launch
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from tests.learner import jobs
from tests.learner.launching import run_job

CASES = (
    "train",
    "poisoned",
    "diverged",
    "auxiliary",
    "ppo",
    "lp_reg_full",
    "lp_reg_sampled",
    "prime",
)
CASES += ("outcome", "adapters", "resume", "gradients")
CONFIGS = ("multi_cpu", "zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def alone(tiny_folder, tmp_path_factory):
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    for case in CASES:
        jobs.run_case(case, tiny_folder, folder, Launch(jobs.Alone()))
    return folder


@pytest.fixture(scope="module", params=CONFIGS)
def together(request, tiny_folder, tmp_path_factory):
    """What two processes find."""
    folder = tmp_path_factory.mktemp(request.param)
    run_job(request.param, ",".join(CASES), tiny_folder, folder)
    return folder


def furthest(one, two, prefix=""):
    """Largest difference between equally named tensors."""
    assert set(one) == set(two)
    names = [name for name in one if name.startswith(prefix)]
    assert names
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in names)


def both(alone, together, case):
    return [load_file(folder / f"{case}.safetensors") for folder in (alone, together)]


def test_one_process_learns_something_in_these_jobs(alone, tiny_folder):
    """Or nothing below could fail."""
    found = load_file(alone / "train.safetensors")
    start = load_policy(ModelSettings(path=str(tiny_folder))).state_dict()
    assert float((found["model.model.norm.weight"] - start["model.model.norm.weight"]).abs().max())
    assert float(found["log:policy/kl_reference"][-1]) > 1e-4
    assert (found["log:learner/changed"] > 0.9).sum() >= 19
    assert 0.3 < float(found["log:learner/rows_run"].min()) <= 1.0


@pytest.mark.deepspeed
@pytest.mark.timeout(600)
class TestTwoProcesses:
    """Against one."""

    def test_twenty_rollouts_end_at_the_same_weights_with_the_same_losses(self, alone, together):
        one, two = both(alone, together, "train")
        assert furthest(one, two, "model.") < 1e-6
        assert furthest(one, two, "log:policy/") < 1e-5
        assert furthest(one, two, "log:learner/grad_norm") < 1e-5
        assert furthest(one, two, "log:learner/changed") < 1e-3

    def test_the_gradient_of_every_loss_is_that_of_one_process(self, together):
        """In float64 where the engine takes it (data parallel), to the rounding of float32 else."""
        found = json.loads((together / "gradients.json").read_text())
        exact = together.name.startswith("multi_cpu")
        assert found["compared"] >= 20
        assert found["worst"] < (1e-12 if exact else 1e-5)

    def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(self, alone, together):
        one, two = both(alone, together, "poisoned")
        assert (int(two["poisoned/skipped"]), int(two["last/skipped"])) == (1, 1)
        assert furthest(one, two) < 1e-6
        for name in two:
            if name.startswith("first/model"):
                assert torch.equal(two[name], two[name.replace("first", "poisoned")]), name

    def test_every_rank_ends_at_the_same_update_and_names_the_same_tensor(self, alone, together):
        one, two = (json.loads((f / "diverged.json").read_text()) for f in (alone, together))
        assert two == one
        assert "2 updates in a row" in two["gradient"][0]
        assert "'model.model.embed_tokens.weight'" in two["gradient"][0]
        assert two["gradient"][1] == [{"policy": 1}]
        assert "first 'model.model." in two["weights"][0]

    def test_a_critic_beside_the_policy_has_its_own_rate_decay_and_clip(self, alone, together):
        one, two = both(alone, together, "auxiliary")
        assert furthest(one, two) < 2e-5

    def test_ppo_with_a_critic_takes_the_same_steps(self, alone, together):
        one, two = both(alone, together, "ppo")
        assert furthest(one, two) < 1e-5
        assert float(one["log:critic/loss"][0]) > 10 * 1e-5

    @pytest.mark.parametrize("kl", ["full", "sampled"])
    def test_lp_reg_takes_its_percentile_and_proxy_over_all_ranks(self, alone, together, kl):
        """Each rank reads the proxy of its rows; the percentile is over the tokens of all."""
        one, two = both(alone, together, f"lp_reg_{kl}")
        assert furthest(one, two) < 1e-5
        assert int((one["log:lp_reg/regularised"] > 0.01).sum()) >= 4, "the term acts"

    @pytest.mark.parametrize("update", ["after", "before", "reverse"])
    def test_a_reward_model_learns_beside_policy_and_reference_alike(self, alone, together, update):
        one, two = both(alone, together, "prime")
        assert furthest(one, two, f"{update}/log") < 1e-4
        assert furthest(one, two, f"{update}/prm") < 1e-5
        assert furthest(one, two, f"{update}/policy") < 1e-5
        assert float(one[f"{update}/log/prm/drift"][-1]) > 0.05
        for model in ("prm", "learner"):  # a share of each model's own weights
            assert furthest(one, two, f"{update}/share/{model}") < 0.01
            assert float(one[f"{update}/share/{model}/changed"].min()) > 0.9

    def test_an_explicit_reward_model_learns_alike_and_every_rank_has_all_rewards(
        self, alone, together
    ):
        one, two = both(alone, together, "outcome")
        assert furthest(one, two, "weights.") < 1e-5
        assert furthest(one, two, "log:rm/") < 1e-5
        assert furthest(one, two, "rewards") < 1e-4
        assert len(one["rewards"].unique()) == len(one["rewards"])

    def test_adapters_train_alike_over_an_unchanged_base(self, alone, together, tiny_folder):
        one, two = both(alone, together, "adapters")
        assert furthest(one, two) < 1e-5
        base = load_policy(ModelSettings(path=str(tiny_folder))).causal_lm.state_dict()
        frozen = [name for name in two if name.startswith("model.") and "lora" not in name]
        assert len(frozen) > 5
        for name in frozen:
            plain = name.removeprefix("model.base_model.model.").replace(".base_layer", "")
            assert torch.equal(two[name], base[plain]), name

    def test_the_reference_of_adapters_is_the_base(self, together, tiny_folder):
        found = load_file(together / "adapters.safetensors")
        launch = Launch(jobs.Alone())
        base = jobs.build(str(tiny_folder), launch, jobs.PLAIN)
        batch = jobs.make_batch(jobs.REWARDS, dtype=torch.float32)
        assert torch.allclose(found["reference"], base.logprobs(batch), atol=1e-5)
        assert not torch.allclose(found["logprobs"], found["reference"], atol=1e-3)

    def test_the_saved_adapter_merged_is_the_model_that_was_trained(
        self, together, tiny_folder, tmp_path
    ):
        from rlvr.policy.saving import export_policy

        found = load_file(together / "adapters.safetensors")
        model = ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2))
        policy = load_policy(model, saved=together)
        export_policy(policy, tmp_path)
        merged = jobs.build(str(tmp_path), Launch(jobs.Alone()), jobs.PLAIN)
        batch = jobs.make_batch(jobs.REWARDS, dtype=torch.float32)
        assert torch.allclose(merged.logprobs(batch), found["logprobs"], atol=1e-5)

    def test_resumed_it_ends_where_it_would_have_ended(self, together):
        """Bit for bit: the same ranks sum in the same order."""
        one, two = (load_file(together / f"{n}.safetensors") for n in ("undisturbed", "resumed"))
        assert furthest(one, two) == 0.0

    def test_one_process_takes_up_what_two_wrote(self, together, tiny_folder):
        checkpoint = together / "checkpoints" / "step_000003"
        assert written_by(checkpoint) == 2
        assert not [name for name in load_state(checkpoint, jobs.Alone())[1] if "rng" in name]
        learner = jobs.continued(str(tiny_folder), checkpoint, Launch(jobs.Alone()))
        for batch in list(jobs.rollouts(6))[3:]:
            learner.update(batch)
        expected = load_file(together / "undisturbed.safetensors")
        assert furthest(jobs.weights(learner), expected) < 1e-6


@pytest.mark.deepspeed
@pytest.mark.timeout(600)
def test_no_rank_of_zero_3_is_given_the_whole_model_on_its_device(tiny_folder, tmp_path):
    """The weights come one by one, and a rank keeps its part of each."""
    run_job("zero3", "sharding", tiny_folder, tmp_path)
    for rank in json.loads((tmp_path / "sharding.json").read_text()):
        assert "Models" not in rank["moved"]
        assert "Policy" not in rank["moved"]
        assert rank["held"] <= 0.51 * rank["whole"]
        assert rank["reference"] <= 0.51 * rank["whole"]


@pytest.mark.deepspeed
@pytest.mark.timeout(600)
def test_moments_and_weights_in_host_memory_change_nothing(alone, tiny_folder, tmp_path):
    run_job("zero3_offload", "train", tiny_folder, tmp_path)
    one, two = both(alone, tmp_path, "train")
    assert furthest(one, two, "model.") < 1e-6


@pytest.mark.deepspeed
@pytest.mark.parametrize("config", CONFIGS)
def test_every_rank_has_the_fingerprints_of_one_process(config, tiny_folder, tmp_path):
    jobs.run_case("fingerprints", tiny_folder, tmp_path, Launch(jobs.Alone()))
    (alone,) = json.loads((tmp_path / "fingerprints.json").read_text())
    assert len(set(alone)) == 4, "weights, no frozen ones, adapters, base"
    run_job(config, "fingerprints", tiny_folder, tmp_path)
    assert json.loads((tmp_path / "fingerprints.json").read_text()) == [alone, alone]
