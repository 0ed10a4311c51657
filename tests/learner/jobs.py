"""What the learner's tests run in several processes: ``python jobs.py CASES MODEL FOLDER``.

Each case, named with commas between, is a function that every rank runs; the first rank writes what
it found to FOLDER. In one process the same functions give what they are compared with.
"""

import copy
import faulthandler
import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from rlvr.data.examples import Examples
from rlvr.learner.bad_updates import DivergedError
from rlvr.learner.checkpoint import load_state, random_states, save_checkpoint
from rlvr.learner.head_rewards import response_rewards, reward_model_learner
from rlvr.learner.launch import Launch, build_store, join, place_frozen
from rlvr.learner.learner import Learner
from rlvr.learner.methods.critic import CriticHook, CriticSettings
from rlvr.learner.methods.prime import PrimeHook, PrimeSettings
from rlvr.learner.methods.router import RouterHook, RouterSettings
from rlvr.learner.models import LogprobModel, Models
from rlvr.learner.settings import LearnerSettings, OptimizerSettings
from rlvr.objective.advantages.gae import Gae
from rlvr.objective.advantages.rloo import LeaveOneOut
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.ratio import Ratio
from rlvr.objective.proxy import Proxy
from rlvr.objective.reducers import TokenMean
from rlvr.objective.regularisers.kl import KL
from rlvr.objective.regularisers.lp_reg import LpReg
from rlvr.policy.batching import padded_inputs
from rlvr.policy.fingerprint import fingerprint
from rlvr.policy.loading import load_policy
from rlvr.policy.saving import policy_writer
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.policy.value_head import Critic as PolicyCritic
from rlvr.ranks import Ranks
from rlvr.reward_models.head_settings import LayerQueries
from rlvr.reward_models.heads import OutcomeRewardModel
from rlvr.reward_models.items import make_items
from rlvr.reward_models.outcome_losses import BradleyTerry
from rlvr.reward_models.pairs import PairSettings
from tests.learner.batches import (
    make_batch,
    policy_losses,
    reducers,
    regularisers,
    rollouts,
)

STEPS = 20
SETTINGS = {
    "lr": 1e-3,
    "tokens_per_micro_batch": 40,
    "updates_per_rollout": 2,
    "max_grad_norm": 0.5,
    "weight_decay": 0.1,
    "layout": "padded",
}
PLAIN = Objective(Clip(), (), TokenMean())
FULL = Objective(Clip(), (KL(coefficient=0.05),), TokenMean())
REWARDS = [1.0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 0]


class Alone(Ranks):
    """This process as if there were no other."""

    def __init__(self):
        self.rank, self.count, self.local_rank, self._group = 0, 1, 0, None
        self.timeout_s = 60.0


def build(model, launch, objective=FULL, lora=None, **settings):
    torch.manual_seed(0)
    policy = load_policy(ModelSettings(path=model, lora=lora))
    reference = None
    if objective.needs_reference and lora is None:
        reference = load_policy(ModelSettings(path=model)).requires_grad_(False).eval()
    options = LearnerSettings(**{**SETTINGS, **settings})
    return Learner(policy, objective, options, reference=reference, launch=launch)


def weights(learner):
    """All weights, whole, on every rank."""
    found = {}
    for name, parameter in learner.policy.named_parameters():
        with learner.policy.gathered([parameter]):
            found[name] = parameter.detach().cpu().clone()
    return found


def keep(launch, path, tensors):
    if launch.ranks.first:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def log_of(rows):
    names = ("policy/loss", "learner/grad_norm", "policy/entropy", "policy/kl_reference")
    names += ("learner/changed", "learner/skipped_updates", "learner/rows_run")
    return {
        f"log:{name}": torch.tensor([row[name] for row in rows], dtype=torch.float64)
        for name in names
    }


def train(model, folder, launch):
    """Twenty rollouts of two updates each: losses, norms and final weights."""
    learner = build(model, launch)
    rows = [learner.update(batch) for batch in rollouts(STEPS)]
    keep(launch, folder / "train.safetensors", weights(learner) | log_of(rows))


def poisoned(model, folder, launch):
    """A gradient that is not finite, on one rank's rows alone, between two sound ones."""
    learner = build(model, launch, PLAIN, updates_per_rollout=1)
    found = {}
    for name, factor in (("first", 1.0), ("poisoned", float("inf")), ("last", 1.0)):
        batch = make_batch(REWARDS, dtype=torch.float32)
        batch.advantages_BT[0] *= factor
        metrics = learner.update(batch)
        found |= {f"{name}/{key}": value for key, value in weights(learner).items()}
        found[f"{name}/skipped"] = torch.tensor(metrics["learner/skipped_updates"])
    keep(launch, folder / "poisoned.safetensors", found)


def diverged(model, folder, launch):
    """What is said where training cannot go on: of gradients on one rank's rows, and of weights."""
    said = {}
    batch = make_batch(REWARDS, dtype=torch.float32)
    batch.advantages_BT[0] *= float("inf")
    for name, settings in (("gradient", {"max_bad_updates": 2}), ("weights", {"lr": 1e38})):
        learner = build(model, launch, PLAIN, updates_per_rollout=1, **settings)
        rows = batch if name == "gradient" else make_batch(REWARDS, dtype=torch.float32)
        counts = []
        try:
            for _ in range(4):
                learner.update(rows)
                counts.append(learner.bad_updates.state())
        except DivergedError as error:
            said[name] = [str(error), counts]
    everyone = launch.ranks.gather(said)
    if launch.ranks.first:
        assert all(other == everyone[0] for other in everyone)
        (folder / "diverged.json").write_text(json.dumps(said))


def auxiliary(model, folder, launch):
    """A policy and a critic in one store, each with its own rate, decay and clip."""
    torch.manual_seed(0)
    policy = load_policy(ModelSettings(path=model))
    critic = Critic(copy.deepcopy(policy.causal_lm))
    models = Models(policy, {"critic": critic})
    rates = {
        "policy": OptimizerSettings(lr=1e-3, max_grad_norm=1e-3),
        "critic": OptimizerSettings(lr=1e-2, weight_decay=0.5, max_grad_norm=None),
    }
    engine = build_store(models, rates, launch)
    norms = []
    for step in range(4):
        batch = make_batch(REWARDS, seed=step, dtype=torch.float32)
        rows = launch.ranks.share(len(batch))
        inputs = padded_inputs(batch.prompt_ids, batch.completion_ids, rows)
        outputs = engine.forward(inputs, run=("policy", "critic"))
        loss = (outputs.auxiliary["critic"] - 1).square().sum() - outputs.stats.logprobs_N.sum()
        engine.backward(loss / 50, last=True)
        result = engine.step(1.0)
        norms.append([result.grad_norms["policy"], result.grad_norms["critic"]])
    found = {"norms": torch.tensor(norms)}
    for name, parameter in models.named_parameters():
        with policy.gathered([parameter]):
            found[name] = parameter.detach().clone()
    keep(launch, folder / "auxiliary.safetensors", found)


class Critic(torch.nn.Module):
    """A backbone with one number for every completion token."""

    def __init__(self, causal_lm):
        super().__init__()
        self.backbone = causal_lm.model
        torch.manual_seed(1)
        self.value = torch.nn.Linear(causal_lm.config.hidden_size, 1)

    def forward(self, inputs):
        hidden = self.backbone(
            input_ids=inputs.input_ids_RL,
            attention_mask=inputs.attention_mask,
            position_ids=inputs.position_ids_RL,
            use_cache=False,
        ).last_hidden_state
        return self.value(hidden.flatten(0, 1)[inputs.predict_N])[:, 0]


def ppo(model, folder, launch):
    """A critic's values, returns with a price on the reference, its warm-up, then both models."""
    torch.manual_seed(0)
    critic = PolicyCritic(load_policy(ModelSettings(path=model)))
    torch.nn.init.normal_(critic.head.weight, std=0.1)
    rates = CriticSettings(lr=1e-3, max_grad_norm=0.5, warmup_rollouts=1)
    hook = CriticHook(critic, rates, Gae(gamma=0.95, lam=0.9, kl_in_reward=0.05))
    reference = load_policy(ModelSettings(path=model)).requires_grad_(False).eval()
    learner = Learner(
        load_policy(ModelSettings(path=model)),
        PLAIN,
        LearnerSettings(**SETTINGS),
        reference=reference,
        launch=launch,
        hooks=[hook],
    )
    keep_run(learner, launch, folder / "ppo.safetensors", ("critic/loss", "critic/return"))


def lp_reg_full(model, folder, launch):
    """The proxy's rows over the vocabulary, read before the first of two updates."""
    lp_reg("full", model, folder, launch)


def lp_reg_sampled(model, folder, launch):
    """The proxy at the sampled tokens."""
    lp_reg("sampled", model, folder, launch)


def lp_reg(kl, model, folder, launch):
    term = LpReg(kl=kl, rho=0.7, proxy=Proxy(kappa=0.45))
    learner = build(model, launch, Objective(Ratio(cap=10.0), (term,), TokenMean()))
    names = ("threshold", "low", "passed", "regularised", "kl")
    path = folder / f"lp_reg_{kl}.safetensors"
    keep_run(learner, launch, path, tuple(f"lp_reg/{name}" for name in names))


def keep_run(learner, launch, path, names):
    """Six rollouts (one has no gradient): metrics of each, and all models' weights after them."""
    rows = [learner.update(batch) for batch in rollouts(6)]
    found = {f"log:{name}": torch.tensor([row.get(name, 0.0) for row in rows]) for name in names}
    for name, parameter in learner.store.named.items():
        with learner.policy.gathered([parameter]):
            found[name] = parameter.detach().cpu().clone()
    keep(launch, path, found)


def prime(model, folder, launch):
    """Policy, reference and a reward model that learns beside it, in every order."""
    found = {}
    for update in ("after", "before", "reverse"):
        torch.manual_seed(0)
        frozen = [load_policy(ModelSettings(path=model)).requires_grad_(False).eval() for _ in "ab"]
        hook = PrimeHook(
            LogprobModel(load_policy(ModelSettings(path=model))),
            frozen[0],
            PrimeSettings(lr=3e-3, update=update, epsilon=1e-4),
            LeaveOneOut(),
        )
        learner = Learner(
            load_policy(ModelSettings(path=model)),
            FULL,
            LearnerSettings(**{**SETTINGS, "epsilon": 1e-4}),
            reference=frozen[1],
            hooks=[hook],
            launch=launch,
        )
        rows = []
        for batch in rollouts(6):
            rows.append(learner.update(batch.with_columns(labels=batch.rewards_B)))
        own = {f"policy/{name}": value for name, value in weights(learner).items()}
        for name, parameter in hook.reward_model.named_parameters():
            with learner.policy.gathered([parameter]):
                own[f"prm/{name}"] = parameter.detach().cpu().clone()
        names = ("prm/loss", "prm/grad_norm", "prm/drift", "policy/loss", "learner/grad_norm")
        for name in (*names, "prm/accuracy_before"):
            own[f"log/{name}"] = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        for name in ("prm/changed", "learner/changed"):
            own[f"share/{name}"] = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        found |= {f"{update}/{name}": value for name, value in own.items()}
    keep(launch, folder / "prime.safetensors", found)


def outcome(model, folder, launch):
    """Six steps of an explicit reward model on pairs, and the rewards of all responses."""
    loss = BradleyTerry(pointwise_weight=0.2)
    policy = load_policy(ModelSettings(path=model))
    torch.manual_seed(0)
    head = OutcomeRewardModel(policy, LayerQueries(heads=4), bias=True)
    own = {"lr": 1e-3, "epsilon": 1e-4, "weight_decay": 0.0, "max_grad_norm": 1.0}
    settings = LearnerSettings(**{**SETTINGS, "tokens_per_micro_batch": 60, **own})
    rates = OptimizerSettings(lr=5e-3, epsilon=1e-4)
    learner = reward_model_learner(head, loss, settings, rates, total_updates=6, launch=launch)
    batch = make_batch(REWARDS, seed=0, dtype=torch.float32)
    groups = tuple(map(str, batch.group_index_B.tolist()))
    columns = {"label": torch.tensor(REWARDS), "target": torch.tensor(REWARDS)}
    data = Examples.of_one(batch.prompt_ids, batch.completion_ids, columns, groups)
    items = make_items(data, loss, PairSettings(within=0.5, ties=0.5, size=8), 0)
    rows = [learner.update(items.select(range(step % 3, len(items)))) for step in range(6)]
    found = {"rewards": response_rewards(learner, data)}
    for name in ("rm/loss", "rm/head_grad_norm", "learner/grad_norm"):
        found[f"log:{name}"] = torch.tensor([row[name] for row in rows], dtype=torch.float64)
    for name, parameter in learner.store.named.items():
        with policy.gathered([parameter]):
            found[f"weights.{name}"] = parameter.detach().clone()
    keep(launch, folder / "outcome.safetensors", found)


def adapters(model, folder, launch):
    """LoRA: trained weights, reference log-probabilities, and the adapter as it is saved."""
    learner = build(model, launch, lora=LoraSettings(rank=2), lr=3e-3, epsilon=1e-4)
    rows = [learner.update(batch) for batch in rollouts(6)]
    batch = make_batch(REWARDS, dtype=torch.float32)
    with learner.policy.reference():
        reference_BT = learner.logprobs(batch)
    found = {"reference": reference_BT, "logprobs": learner.logprobs(batch)}
    write = policy_writer(learner.policy, keep=launch.ranks.first)
    if launch.ranks.first:
        write(folder)
    keep(launch, folder / "adapters.safetensors", found | weights(learner) | log_of(rows))


def resume(model, folder, launch):
    """Save after three rollouts, go on from it, and see that nothing was lost."""
    learner = build(model, launch)
    batches = list(rollouts(6))
    for batch in batches[:3]:
        learner.update(batch)
    path = save(learner, folder, launch, 3)
    for batch in batches[3:]:
        learner.update(batch)
    keep(launch, folder / "undisturbed.safetensors", weights(learner))
    again = continued(model, path, launch)
    for batch in batches[3:]:
        again.update(batch)
    keep(launch, folder / "resumed.safetensors", weights(again))


def save(learner, folder, launch, step):
    return save_checkpoint(
        folder / "checkpoints",
        step,
        write_model=policy_writer(learner.policy, keep=launch.ranks.first),
        tensors={**learner.store.state(), **random_states()},
        state={"updates": learner.updates},
        keep=3,
        ranks=launch.ranks,
    )


def continued(model, path, launch):
    """A learner from a checkpoint, whoever wrote it."""
    state, tensors = load_state(path, launch.ranks)
    policy = load_policy(ModelSettings(path=model), saved=path)
    reference = load_policy(ModelSettings(path=model)).requires_grad_(False).eval()
    learner = Learner(policy, FULL, LearnerSettings(**SETTINGS), reference=reference, launch=launch)
    learner.store.load_state({k: v for k, v in tensors.items() if not k.startswith("rng/")})
    learner.updates = state["updates"]
    return learner


def gradients_of(learner, batch):
    """The whole gradient of one optimizer step, on every rank."""
    found = {}

    def catch(*_):
        if hasattr(learner.store, "zero"):
            from deepspeed.utils import safe_get_full_grad as whole
        else:
            learner.store._sum_gradients()

            def whole(parameter):
                return parameter.grad

        for name, parameter in learner.store.named.items():
            found[name] = whole(parameter).clone()
        raise Caught

    learner.store.step = catch
    try:
        learner.update(batch)
    except Caught:
        return found
    raise AssertionError("no step was taken")


class Caught(Exception):
    pass


def objectives():
    """Every policy loss, regulariser and reducer, each at least once."""
    losses, terms, means = policy_losses(), regularisers(), reducers()
    for index in range(max(len(losses), len(means))):
        loss, mean = losses[index % len(losses)], means[index % len(means)]
        alone = index % 2 == 0 and loss.name != "none"
        yield Objective(loss, () if alone else tuple(terms), mean)


def gradients(model, folder, launch):
    """The gradient of every loss here against that of one process, at several budgets."""
    worst, compared = 0.0, 0
    sharded = launch.zero is not None
    dtype = torch.float32 if sharded else torch.float64
    budgets = (30,) if sharded else (1, 30, 10_000)
    for objective, budget in itertools.product(objectives(), budgets):
        batch = make_batch(REWARDS, dtype=dtype)
        batch = replace(batch, rollout_logprobs_BT=batch.mask_BT * -4.0)
        settings = {"updates_per_rollout": 1, "tokens_per_micro_batch": budget}
        settings["old_logprobs_from"] = "rollout"
        pair = []
        for how in (Launch(Alone()), launch):
            # A copy each: an objective may remember earlier steps.
            learner = build(model, how, copy.deepcopy(objective), **settings)
            if not sharded:
                learner.policy.double()
            if learner.reference is not None:
                learner.reference.to(dtype)
            pair.append(gradients_of(learner, batch))
        scale = max(float(value.abs().max()) for value in pair[0].values())
        assert scale > 0
        for name, value in pair[0].items():
            worst = max(worst, float((pair[1][name] - value).abs().max()) / scale)
            compared += 1
    if launch.ranks.first:
        text = json.dumps({"worst": worst, "compared": compared})
        (folder / "gradients.json").write_text(text)


def sharding(model, folder, launch):
    """What is moved whole on the way to ZeRO 3, and the bytes of weights that a rank then holds."""
    moved, original = [], torch.nn.Module.to

    def recording(module, *arguments, **options):
        moved.append(type(module).__name__)
        return original(module, *arguments, **options)

    def held(parameters):
        here = [part for p in parameters for part in (p, p.ds_tensor)]
        return sum(part.numel() * part.element_size() for part in here)

    learner = build(model, Launch(Alone()), FULL)
    whole = sum(p.numel() * p.element_size() for p in learner.policy.parameters())
    torch.nn.Module.to = recording
    try:
        store = build_store(Models(learner.policy), {"policy": LearnerSettings()}, launch)
        place_frozen(learner.reference, launch)
    finally:
        torch.nn.Module.to = original
    found = {"moved": moved, "whole": whole, "held": held(store.models.parameters())}
    found["reference"] = held(learner.reference.parameters())
    everyone = launch.ranks.gather(found)
    if launch.ranks.first:
        (folder / "sharding.json").write_text(json.dumps(everyone))


def fingerprints(model, folder, launch):
    """The fingerprints of all weights and of adapters and their base, on every rank."""
    found = []
    for lora in (None, LoraSettings(rank=2)):
        policy = build(model, launch, PLAIN, lora).policy
        found += [fingerprint(policy, trained=kind, most=2**12) for kind in (True, False)]
    everyone = launch.ranks.gather(found)
    if launch.ranks.first:
        (folder / "fingerprints.json").write_text(json.dumps(everyone))


def mixture(model, folder, launch):
    """Router losses over all ranks, and choices replayed by whichever rank runs a row."""
    policy = load_policy(ModelSettings(path=model))
    router = RouterSettings(balance=0.5, z=0.1, against="old", replay=True)
    options = LearnerSettings(**{**SETTINGS, "lr": 3e-4})
    learner = Learner(policy, PLAIN, options, launch=launch, hooks=[RouterHook(policy, router)])
    names = ("router/balance", "router/z", "router/load_max", "router/changed", "policy/loss")
    rows = [learner.update(batch) for batch in rollouts(6)]
    logged = {
        f"log:{name}": torch.tensor([row[name] for row in rows], dtype=torch.float64)
        for name in names
    }
    keep(launch, folder / "mixture.safetensors", weights(learner) | logged)


def run_case(case, model, folder, launch):
    globals()[case](str(model), Path(folder), launch)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(float(os.environ.get("JOB_TIMEOUT_S", 400)), exit=True)
    job = join(timeout_s=60)
    for case in sys.argv[1].split(","):
        run_case(case, sys.argv[2], sys.argv[3], job)
