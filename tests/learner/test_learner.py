"""The update: the same gradient however a batch is split, and no gradient where there is none."""

import copy
import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from rlvr.learner.learner import Learner
from rlvr.learner.settings import LearnerSettings, Schedule
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.reducers import ConstantLength, Counts, SequenceMean, TokenMean
from rlvr.objective.regularisers.entropy import Entropy
from rlvr.objective.regularisers.kl import KL
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from tests.learner.batches import make_batch
from tests.learner.memory import short_of_memory


def learner_of(policy, objective, **settings):
    model = copy.deepcopy(policy)
    reference = copy.deepcopy(policy).requires_grad_(False)
    with torch.no_grad():
        torch.manual_seed(3)
        for parameter in model.parameters():  # away from the reference, so that the KL is not 0
            parameter.add_(0.01 * torch.randn_like(parameter))
    settings = LearnerSettings(**{"lr": 1e-2, "max_grad_norm": None, **settings})
    return Learner(model, objective, settings, temperature=0.9, reference=reference)


def gradients(learner, batch):
    """The gradient that the optimizer would be given."""
    caught = {}

    def catch(*_):
        caught.update({n: p.grad.clone() for n, p in learner.store.named.items()})
        raise _Caught

    learner.store.step = catch
    with pytest.raises(_Caught):
        learner.update(batch)
    return caught


class _Caught(Exception):
    pass


REWARDS = [1.0, 0, 0, 1, 0, 0, 0, 1]
FULL = Objective(Clip(), (KL(coefficient=0.1), Entropy(coefficient=0.01)), TokenMean())


@pytest.mark.parametrize("objective", [FULL, replace(FULL, reducer=SequenceMean())])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("budget", [1, 16, 30, 60, 10_000])
def test_the_gradient_does_not_depend_on_the_split(exact_policy, objective, layout, budget):
    batch = make_batch(REWARDS)
    whole = gradients(
        learner_of(exact_policy, objective, layout="padded", tokens_per_micro_batch=10_000), batch
    )
    learner = learner_of(
        exact_policy, objective, layout=layout, tokens_per_micro_batch=budget, logits_chunk=3
    )
    for name, value in gradients(learner, batch).items():
        assert torch.allclose(value, whole[name], atol=1e-12, rtol=1e-9), name


def test_eight_times_one_equals_four_times_two_equals_one_times_eight(exact_policy):
    """Equal lengths, so that the budget sets the micro-batch size exactly; any order of rows."""
    batch = make_batch(REWARDS)
    trimmed = tuple(c[:1] * 5 for c in batch.completion_ids)
    mask = torch.ones(8, 5, dtype=torch.float64)
    batch = replace(
        batch,
        prompt_ids=tuple(prompt[:4] for prompt in batch.prompt_ids),
        completion_ids=trimmed,
        mask_BT=mask,
        advantages_BT=batch.advantages_BT[:, :1] * mask,
        rollout_logprobs_BT=mask * 0,
    )
    results = []
    for rows in (1, 2, 4, 8):
        learner = learner_of(exact_policy, FULL, layout="padded", tokens_per_micro_batch=9 * rows)
        plan = learner.micro_batches.plan(
            lambda row: [(batch.prompt_ids[row], batch.completion_ids[row])], range(8)
        )
        assert [len(micro) for micro in plan] == [rows] * (8 // rows)
        results.append(gradients(learner, batch))
        order = random.Random(rows).sample(range(8), 8)
        learner = learner_of(exact_policy, FULL, layout="padded", tokens_per_micro_batch=9 * rows)
        results.append(gradients(learner, batch.select(order)))
    for other in results[1:]:
        for name, value in other.items():
            assert torch.allclose(value, results[0][name], atol=1e-12, rtol=1e-9), name


@pytest.mark.parametrize("skip", [True, False])
def test_a_group_of_equal_rewards_gives_exactly_zero_gradient(exact_policy, skip):
    plain = Objective(Clip(), (), TokenMean())
    learner = learner_of(exact_policy, plain, skip_zero_advantage=skip)
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    metrics = learner.update(make_batch([0.1] * 8))
    if not skip:
        assert metrics["learner/grad_norm"] == 0.0
    for name, value in learner.policy.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_skipping_completions_of_zero_advantage_changes_no_gradient(exact_policy):
    plain = Objective(Clip(), (), TokenMean())
    batch = make_batch([1.0, 0, 0, 1, 1, 1, 1, 1])
    run = gradients(learner_of(exact_policy, plain, skip_zero_advantage=False), batch)
    learner = learner_of(exact_policy, plain, skip_zero_advantage=True)
    assert learner.rows_to_run(batch) == [0, 1, 2, 3]
    for name, value in gradients(learner, batch).items():
        assert torch.allclose(value, run[name], atol=1e-13, rtol=1e-9), name
    assert learner_of(exact_policy, FULL).rows_to_run(batch) == list(range(8))


def test_several_updates_of_one_rollout_move_away_from_the_old_policy(exact_policy):
    plain = Objective(Clip(), (), TokenMean())
    learner = learner_of(exact_policy, plain, updates_per_rollout=2)
    metrics = learner.update(make_batch(REWARDS))
    assert learner.updates == 2
    assert metrics["policy/kl_old"] > 0, "the second update must see a moved policy"
    single = learner_of(exact_policy, plain)
    assert single.update(make_batch(REWARDS))["policy/kl_old"] == 0
    assert single.update(make_batch(REWARDS))["policy/ratio_max"] == 1.0


def test_gradients_that_are_not_finite_are_skipped_and_counted(exact_policy):
    plain = Objective(Clip(), (), TokenMean())
    learner = learner_of(exact_policy, plain)
    before = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    batch = make_batch(REWARDS)
    poisoned = replace(batch, advantages_BT=batch.advantages_BT * float("inf"))
    metrics = learner.update(poisoned)
    assert metrics["learner/skipped_updates"] == 1
    for name, value in learner.policy.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert learner.update(batch)["learner/skipped_updates"] == 1
    changed = [
        name
        for name, value in learner.policy.state_dict().items()
        if not torch.equal(value, before[name])
    ]
    assert changed


def test_clipping_scales_the_gradient_to_the_limit(exact_policy):
    plain = Objective(Clip(), (), TokenMean())
    learner = learner_of(exact_policy, plain, max_grad_norm=1e-3)
    norms = []
    step = learner.store.optimizer.step

    def measure():
        step()  # which scales them
        total = sum(float(p.grad.square().sum()) for p in learner.store.named.values())
        norms.append(total**0.5)

    learner.store.optimizer.step = measure
    assert learner.update(make_batch(REWARDS))["learner/grad_norm"] > 1e-3
    assert norms == pytest.approx([1e-3], rel=1e-2)


def test_norms_and_biases_do_not_decay(exact_policy):
    learner = learner_of(exact_policy, FULL, weight_decay=0.1)
    matrices, vectors = learner.store.optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() >= 2 for p in matrices["params"])
    assert all(p.dim() < 2 for p in vectors["params"])


def test_adapters_get_the_same_gradient_packed_or_padded(tiny_folder):
    from rlvr.policy.settings import LoraSettings

    torch.manual_seed(0)
    policy = load_policy(ModelSettings(path=str(tiny_folder), lora=LoraSettings(rank=2)))
    objective = Objective(Clip(), (KL(coefficient=0.1),), TokenMean())
    results = []
    for layout in ("padded", "packed"):
        settings = LearnerSettings(layout=layout, max_grad_norm=None)
        learner = Learner(copy.deepcopy(policy), objective, settings)
        results.append(gradients(learner, make_batch(REWARDS)))
    assert any(float(value.abs().max()) > 0 for value in results[0].values())
    for name, value in results[1].items():
        assert torch.allclose(value, results[0][name], atol=1e-6), name


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_schedules_warm_up_and_end_where_they_say(shape):
    schedule = Schedule(shape=shape, warmup_updates=4, final_fraction=0.1)
    rates = [schedule.fraction(update, 20) for update in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[20] == pytest.approx(1.0 if shape == "constant" else 0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


@pytest.mark.parametrize("lora", [True, False])
def test_recomputing_activations_changes_no_gradient(tiny_folder, lora):
    from rlvr.policy.loading import load_policy
    from rlvr.policy.settings import LoraSettings, ModelSettings

    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        settings = ModelSettings(
            path=str(tiny_folder),
            lora=LoraSettings(rank=2) if lora else None,
            gradient_checkpointing=recompute,
        )
        policy = load_policy(settings)
        learner = Learner(policy, Objective(Clip(), (), TokenMean()), LearnerSettings())
        results.append(gradients(learner, make_batch(REWARDS)))
    assert any(float(value.abs().max()) > 0 for value in results[0].values())
    for name, value in results[1].items():
        assert torch.allclose(value, results[0][name], atol=1e-7), name


def test_packing_that_would_give_other_numbers_is_refused(tiny_folder):
    """Eager attention adds a block mask of booleans to the scores instead of applying it."""
    policy = load_policy(ModelSettings(path=str(tiny_folder), attention="eager"))
    with pytest.raises(ValueError, match="use auto or padded"):
        Learner(policy, FULL, LearnerSettings(layout="packed"))
    assert not Learner(policy, FULL, LearnerSettings(layout="auto")).micro_batches.packed


def test_the_optimizer_steps_at_the_rate_of_the_schedule(tiny_folder):
    """AdamW's first step moves every weight by the rate, whatever the gradient."""
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    settings = LearnerSettings(lr=1e-3, schedule=Schedule(warmup_updates=3))
    learner = Learner(policy, Objective(Clip(), (), TokenMean()), settings)
    weight = policy.causal_lm.model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    assert learner.update(make_batch(REWARDS))["learner/lr"] == 1e-3 / 4
    assert (weight - before).abs().max().item() == pytest.approx(1e-3 / 4, rel=0.01)


def k3_by_hand(policy, reference, batch, temperature):
    """The mean of e^d - d - 1 over tokens, one row at a time, from plain log-softmax."""
    values = []
    for prompt, completion in zip(batch.prompt_ids, batch.completion_ids, strict=True):
        ids = torch.tensor([[*prompt, *completion]])
        taken = []
        for model in (reference, policy):
            with torch.no_grad():
                logits = model.causal_lm(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            logp = (logits / temperature).log_softmax(-1)
            taken.append(logp.gather(-1, torch.tensor(completion)[:, None])[:, 0])
        d = taken[0] - taken[1]
        values.append(d.exp() - d - 1)
    return float(torch.cat(values).mean())


def test_the_logged_divergence_is_from_the_reference_model(exact_policy):
    objective, batch = Objective(Clip(), (KL(coefficient=0.1),), TokenMean()), make_batch(REWARDS)
    learner = learner_of(exact_policy, objective)
    expected = k3_by_hand(learner.policy, learner.reference, batch, 0.9)
    assert expected > 1e-3
    assert learner.update(batch)["policy/kl_reference"] == pytest.approx(expected, rel=1e-6)


def test_with_adapters_the_reference_is_the_base_without_them(tiny_folder):
    from rlvr.policy.settings import LoraSettings

    model = ModelSettings(path=str(tiny_folder))
    policy = load_policy(model.model_copy(update={"lora": LoraSettings(rank=2)}))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    objective, batch = Objective(Clip(), (KL(coefficient=0.1),), TokenMean()), make_batch(REWARDS)
    expected = k3_by_hand(policy, load_policy(model), batch, 1.0)
    assert expected > 1e-3
    metrics = Learner(policy, objective, LearnerSettings()).update(batch)
    assert metrics["policy/kl_reference"] == pytest.approx(expected, rel=1e-3)


def test_dropout_acts_in_the_update_and_not_in_reference_log_probabilities(tiny_folder):
    policy = load_policy(ModelSettings(path=str(tiny_folder)))
    norm = policy.causal_lm.model.norm
    policy.causal_lm.model.norm = torch.nn.Sequential(norm, torch.nn.Dropout(0.5))
    batch = make_batch(REWARDS)
    learner = Learner(policy, Objective(Clip(), (), TokenMean()), LearnerSettings())
    policy.train()
    assert torch.equal(learner.logprobs(batch), learner.logprobs(batch))
    assert policy.training
    before = gradients(learner, batch)
    assert any(not torch.equal(before[n], g) for n, g in gradients(learner, batch).items())


def test_policy_metrics_are_means_over_the_tokens_that_were_run(exact_policy):
    """Half of the groups have no variance: they are skipped, and do not water the entropy down."""
    plain = Objective(Clip(), (), TokenMean())
    batch = make_batch([1, 0, 0, 1, 1, 1, 1, 1])
    part = batch.select(range(4))
    metrics = learner_of(exact_policy, plain).update(batch)
    assert metrics["learner/rows_run"] == 0.5
    expected = learner_of(exact_policy, plain).update(part)["policy/entropy"]
    assert metrics["policy/entropy"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "reducer", [TokenMean(), SequenceMean(), ConstantLength(denominator=5)], ids=lambda r: r.name
)
def test_reducers_give_padding_no_weight(reducer):
    mask = make_batch(REWARDS).mask_BT
    weights = reducer.weights(mask, Counts.of(mask))
    assert bool((weights[mask == 0] == 0).all())
    assert bool((weights[mask == 1] > 0).all())


def test_ratios_against_the_engine_use_its_log_probabilities_and_cost_no_pass(exact_policy):
    plain, wide = Objective(Clip(), (), TokenMean()), Clip(low=1.0, high=100.0)
    batch = make_batch(REWARDS)
    own = learner_of(exact_policy, plain).logprobs(batch)
    expected = gradients(learner_of(exact_policy, plain), batch)
    learner = learner_of(
        exact_policy, replace(plain, policy_loss=wide), old_logprobs_from="rollout"
    )
    passes = []
    learner.policy.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    # An engine that gave every token half the learner's probability: every ratio is 2.
    halved = replace(batch, rollout_logprobs_BT=(own - math.log(2)) * batch.mask_BT)
    for name, value in gradients(learner, halved).items():
        assert torch.allclose(value, 2 * expected[name], atol=1e-12, rtol=1e-9), name
    assert passes
    assert all(passes)
    learner = learner_of(exact_policy, plain, old_logprobs_from="rollout")
    metrics = learner.update(halved)
    assert metrics["policy/ratio_max"] == pytest.approx(2.0)
    assert metrics["mismatch/difference"] == pytest.approx(math.log(2))


def test_out_of_memory_halves_the_budget_once_and_the_step_is_the_same(exact_policy):
    batch = make_batch(REWARDS)
    whole = learner_of(exact_policy, FULL, tokens_per_micro_batch=40)
    assert whole.update(batch)["learner/out_of_memory"] == 0
    learner = learner_of(exact_policy, FULL, tokens_per_micro_batch=40)
    short_of_memory(learner, times=1)
    assert learner.update(batch)["learner/out_of_memory"] == 1
    assert learner.budget.tokens == 20
    for (name, one), two in zip(
        whole.policy.named_parameters(), learner.policy.parameters(), strict=True
    ):
        assert torch.allclose(one, two, atol=1e-9, rtol=0), name


def test_out_of_memory_again_is_an_error_that_names_the_setting(exact_policy):
    learner = learner_of(exact_policy, FULL, tokens_per_micro_batch=40)
    short_of_memory(learner, times=2)
    with pytest.raises(ValueError, match=r"lower learner\.tokens_per_micro_batch"):
        learner.update(make_batch(REWARDS))


def test_other_errors_are_not_taken_for_want_of_memory(exact_policy):
    learner = learner_of(exact_policy, FULL, tokens_per_micro_batch=40)
    short_of_memory(learner, times=1, message="shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        learner.update(make_batch(REWARDS))


def test_the_share_of_weights_that_an_update_moved_is_measured(tiny_folder):
    """A rate that moves float32 weights is lost in the rounding of most bfloat16 ones."""
    shares = []
    for precision, lr in (("float32", 1e-5), ("bfloat16", 1e-5), ("bfloat16", 1e-1)):
        policy = load_policy(ModelSettings(path=str(tiny_folder), precision=precision))
        learner = Learner(policy, Objective(Clip(), (), TokenMean()), LearnerSettings(lr=lr))
        before = [p.detach().clone() for p in policy.parameters()]
        metrics = learner.update(make_batch(REWARDS, dtype=torch.float32))
        moved = sum(int((p != b).sum()) for p, b in zip(policy.parameters(), before, strict=True))
        total = sum(b.numel() for b in before)
        assert metrics["learner/changed"] == pytest.approx(moved / total)
        shares.append((metrics["learner/changed"], metrics["learner/changed_compute"]))
    assert shares[0][0] == shares[0][1] > 0.5
    assert shares[1][1] < 0.5 * shares[1][0]
    assert shares[2][1] > 0.5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_model_gives_the_same_gradient(tiny_folder):
    results = []
    for compiled in (False, True):
        policy = load_policy(ModelSettings(path=str(tiny_folder), compile=compiled))
        assert ("_orig_mod" in str(list(policy.state_dict()))) is False
        learner = Learner(policy, Objective(Clip(), (), TokenMean()), LearnerSettings())
        results.append(gradients(learner, make_batch(REWARDS, dtype=torch.float32)))
    assert any(float(value.abs().max()) > 0 for value in results[0].values())
    for name, value in results[1].items():
        assert torch.allclose(value, results[0][name], atol=1e-6), name


def test_fused_kernels_without_a_gpu_are_refused(tiny_folder):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"model\.liger needs a GPU; set it to false"):
        load_policy(ModelSettings(path=str(tiny_folder), liger=True))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fused_kernels_give_the_same_gradient(tiny_folder, precision):
    pytest.importorskip("liger_kernel")
    results = []
    for liger in (False, True):
        settings = ModelSettings(path=str(tiny_folder), liger=liger, precision=precision)
        learner = Learner(
            load_policy(settings), Objective(Clip(), (), TokenMean()), LearnerSettings()
        )
        results.append(gradients(learner, make_batch(REWARDS, dtype=torch.float32)))
    scale = max(float(value.abs().max()) for value in results[0].values())
    tolerance = 1e-4 if precision == "float32" else 3e-2
    for name, value in results[1].items():
        assert float((value - results[0][name]).abs().max()) < tolerance * scale, name
