"""TRL's own loss code as the oracle: the same value and gradients from the same random tensors.

TRL's ``_compute_loss`` runs unchanged on a stand-in trainer that hands it log-probabilities and
entropies instead of a model's.
"""

import inspect
import math
import re
import textwrap
from types import MethodType, SimpleNamespace

import pytest
import torch

from rlvr.objective.corrections import MaskOutliers, TruncatedImportance
from rlvr.objective.filters.off_policy import OffPolicy
from rlvr.objective.filters.top_entropy import TopEntropy
from rlvr.objective.loss_inputs import LossInputs, Step
from rlvr.objective.objective import Objective
from rlvr.objective.policy_losses.cispo import Cispo
from rlvr.objective.policy_losses.clip import Clip
from rlvr.objective.policy_losses.gspo import Gspo
from rlvr.objective.policy_losses.sapo import Sapo
from rlvr.objective.policy_losses.vespo import Vespo
from rlvr.objective.reducers import ConstantLength, Counts, SequenceMean, TokenMean
from rlvr.objective.regularisers.adaptive_entropy import AdaptiveEntropy
from rlvr.objective.regularisers.entropy import Entropy
from rlvr.objective.regularisers.kl import KL

B, T, WIDTH = 12, 9, 11


@pytest.fixture(scope="module")
def trainer_class():
    return pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer


def random_columns(seed):
    """Columns with ratios from far below to far above 1, advantages of both signs and zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.zeros(B, T, dtype=torch.float64)
    for row, length in enumerate([9, 1, 4, 6, 2, 5, 9, 8, 3, 7, 9, 6]):
        mask[row, :length] = 1
    advantages = normal(B)
    advantages[2] = 0
    old = -normal(B, T).abs() * mask
    return SimpleNamespace(
        mask=mask,
        advantages=advantages,
        logprobs=((old + 0.6 * normal(B, T)) * mask).requires_grad_(),
        old=old,
        reference=-normal(B, T).abs() * mask,
        entropy=(normal(B, T).abs() * mask).requires_grad_(),
    )


DEFAULTS = {
    "delta": None,
    "use_bias_correction_kl": False,
    "steps_per_generation": 1,
    "off_policy_mask_threshold": None,
}
# TRL's own defaults, which are ours
GATES = {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
GATES |= {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}


def trl_loss(trainer_class, columns, *, level="token", beta=0.0, quantile=1.0, bonus=0.0, **config):
    """TRL's loss of one accumulation step that is the whole batch."""
    args = {**DEFAULTS, **GATES, **config}
    trainer = SimpleNamespace(
        args=SimpleNamespace(**args),
        loss_type=config["loss_type"],
        importance_sampling_level=level,
        epsilon_low=config.get("epsilon", 0.2),
        epsilon_high=config.get("epsilon_high", 0.2),
        beta=beta,
        top_entropy_quantile=quantile,
        max_completion_length=WIDTH,
        off_policy_mask_threshold=args["off_policy_mask_threshold"],
        get_off_policy_mask=trainer_class.get_off_policy_mask,
        get_gamma_weights=trainer_class.get_gamma_weights,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=bonus != 0,
        use_adaptive_entropy=False,
        entropy_coef=bonus,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        _metrics={"train": _Anything()},
        accelerator=one_process(),
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            columns.logprobs,
            columns.entropy,
            None,
        ),
    )
    mask_of_high_entropy = trainer_class.get_high_entropy_mask
    trainer.get_high_entropy_mask = MethodType(mask_of_high_entropy, trainer)
    ids = columns.mask.long()
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": columns.mask,
        "advantages": columns.advantages,
        "old_per_token_logps": columns.old,
        "ref_per_token_logps": columns.reference,
        "num_items_in_batch": columns.mask.sum(),
    }
    return trainer_class._compute_loss(trainer, None, inputs)


class _Anything(dict):
    def __missing__(self, name):
        return self.setdefault(name, [])


def one_process():
    return SimpleNamespace(
        num_processes=1,
        sync_gradients=True,
        gather=lambda value: value,
        reduce=lambda value, **_: value,
        pad_across_processes=lambda value, **_: value,
    )


def our_loss(objective, columns):
    terms = LossInputs(
        logprobs_BT=columns.logprobs,
        old_logprobs_BT=columns.old,
        advantages_BT=columns.advantages[:, None] * columns.mask,
        mask_BT=columns.mask,
        entropy_BT=columns.entropy,
        reference_logprobs_BT=columns.reference,
    )
    return objective(terms, Counts.of(columns.mask))[0]


CONSTANT = ConstantLength(denominator=WIDTH)
CASES = {
    "grpo": ({"loss_type": "grpo"}, Objective(Clip(), (), SequenceMean())),
    "bnpo": ({"loss_type": "bnpo"}, Objective(Clip(), (), TokenMean())),
    "dapo, higher": (
        {"loss_type": "dapo", "epsilon_high": 0.28},
        Objective(Clip(high=0.28), (), TokenMean()),
    ),
    "dr_grpo": ({"loss_type": "dr_grpo"}, Objective(Clip(), (), CONSTANT)),
    "two-sided": (
        {"loss_type": "dapo", "delta": 1.5},
        Objective(Clip(dual=1.5), (), TokenMean()),
    ),
    "with a reference": (
        {"loss_type": "grpo", "beta": 0.3},
        Objective(Clip(), (KL(coefficient=0.3),), SequenceMean()),
    ),
    "gspo": (
        {"loss_type": "grpo", "level": "sequence", "epsilon": 0.1, "epsilon_high": 0.3},
        Objective(Gspo(low=0.1, high=0.3), (), SequenceMean()),
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.4},  # TRL's bound is the weight itself
        Objective(Cispo(high=0.4), (), TokenMean()),
    ),
    # TRL holds its 1.05 in float32.
    "sapo": (
        {"loss_type": "sapo"},
        Objective(Sapo(negative=float(torch.tensor(1.05))), (), SequenceMean()),
    ),
    "sapo, other gates": (
        {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 0.5},
        Objective(Sapo(positive=2.0, negative=0.5), (), SequenceMean()),
    ),
    "luspo": (
        {"loss_type": "luspo", "level": "sequence", "epsilon": 0.1, "epsilon_high": 0.3},
        Objective(Gspo(low=0.1, high=0.3), (), ConstantLength(denominator=1)),
    ),
    "vespo": ({"loss_type": "vespo"}, Objective(Vespo(), (), TokenMean())),
    "vespo, other weights": (
        {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_neg": 0.5},
        Objective(Vespo(k_positive=1.0, lam_negative=0.5), (), TokenMean()),
    ),
    "off-policy sequences left out": (
        {"loss_type": "dapo", "off_policy_mask_threshold": 0.1},
        Objective(Clip(), (), TokenMean(), filters=(OffPolicy(limit=0.1),)),
    ),
    "with a reference, weighted": (
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True},
        Objective(Clip(), (KL(coefficient=0.3, weighted=True),), SequenceMean()),
    ),
    "top entropy": (
        {"loss_type": "dapo", "quantile": 0.2},
        Objective(
            Clip(), (), TokenMean(), filters=(TopEntropy(pool="micro_batch", rescale=False),)
        ),
    ),
    "entropy bonus": (
        {"loss_type": "dapo", "bonus": 0.05},
        Objective(Clip(), (Entropy(coefficient=0.05),), TokenMean()),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradients_equal_trls(trainer_class, case, seed):
    config, objective = CASES[case]
    columns = random_columns(seed)
    results = []
    for loss in (trl_loss(trainer_class, columns, **config), our_loss(objective, columns)):
        leaves = (columns.logprobs, columns.entropy)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
        results.append((loss.item(), *gradients))
    (theirs, their_slope, their_pull), (ours, our_slope, our_pull) = results
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert int((their_slope != 0).sum()) >= 3
    assert torch.allclose(our_slope * columns.mask, their_slope, atol=1e-14)
    if "bonus" in config:
        assert torch.allclose(our_pull, their_pull, atol=1e-14)


def test_the_oracle_cases_differ_from_each_other(trainer_class):
    """A stand-in that ignored its settings would agree with everything."""
    losses = {
        name: trl_loss(trainer_class, random_columns(0), **config).item()
        for name, (config, _) in CASES.items()
        if name != "bnpo"  # one batch: the same as dapo with its clip
    }
    assert len({round(value, 9) for value in losses.values()}) == len(losses)


def test_every_loss_type_of_trl_has_a_case():
    config = pytest.importorskip("trl").GRPOConfig
    documented = re.findall(r'"`(\w+)`"|`"(\w+)"`', section(config.__doc__, "loss_type"))
    names = {name for pair in documented for name in pair if name}
    assert {"grpo", "dapo", "vespo"} <= names, names
    assert names == {settings["loss_type"] for settings, _ in CASES.values()}


def section(text, setting):
    """A setting's part of a class's docstring."""
    return re.search(rf"^ +{setting} \(.*?(?=^ +\w+ \(`)", text, re.S | re.M)[0]


def test_the_adaptive_weight_follows_trls(trainer_class):
    """Several steps: the weight in force and the weight after, as TRL's controller has them."""
    args = SimpleNamespace(
        entropy_target=0.8,
        entropy_coef_delta=0.02,
        entropy_coef_max=0.05,
        entropy_coef_min=0.0,
        delta=None,
        steps_per_generation=1,
    )
    trainer = SimpleNamespace(
        args=args,
        loss_type="dapo",
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.2,
        beta=0.0,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=True,
        use_adaptive_entropy=True,
        entropy_coef=0.0,
        _last_world_entropy=float("inf"),
        _entropy_window_stats=None,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        _metrics={"train": _Anything()},
        accelerator=one_process(),
    )
    term = AdaptiveEntropy(target=0.8, step=0.02, limit=0.05)
    objective = Objective(Clip(), (term,), TokenMean())
    weights = []
    for seed in range(12):
        columns = random_columns(seed)
        trainer._get_per_token_logps_and_entropies = lambda *_, c=columns, **__: (
            c.logprobs,
            c.entropy,
            None,
        )
        ids = columns.mask.long()
        theirs = trainer_class._compute_loss(
            trainer,
            None,
            {
                "prompt_ids": ids[:, :1],
                "prompt_mask": ids[:, :1],
                "completion_ids": ids,
                "completion_mask": columns.mask,
                "advantages": columns.advantages,
                "old_per_token_logps": columns.old,
                "num_items_in_batch": columns.mask.sum(),
            },
        )
        advantages = columns.advantages[:, None] * columns.mask
        step = Step(columns.old, advantages, columns.mask)
        terms = LossInputs(
            columns.logprobs,
            columns.old,
            advantages,
            columns.mask,
            columns.entropy,
            prepared=objective.prepare(step),
        )
        ours, metrics = objective(terms, Counts.of(columns.mask))
        objective.finish(metrics)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
        assert objective.memory["adaptive_entropy"]["coefficient"] == trainer.entropy_coef
        weights.append(trainer.entropy_coef)
    assert min(weights) < max(weights) == 0.05, weights


@pytest.fixture(scope="module")
def trl_weights(trainer_class):
    """TRL's weights for the engine's tokens: the lines that compute them, as they stand there."""
    source = inspect.getsource(trainer_class._generate_and_score_completions)
    first = source.index(" mask = completion_mask if tool_mask is None") + 1
    last = source.index("# Compute the per-token log probabilities for the reference model")
    lines = textwrap.dedent(" " * 16 + source[first:last].rstrip())
    ratio = "vllm_importance_sampling_ratio"

    def weights(old, sampled, mask, mode, low, high):
        settings = {"mode": mode, "clip_min": low, "clip_max": high}
        trainer = SimpleNamespace(
            **{f"vllm_importance_sampling_{name}": value for name, value in settings.items()}
        )
        names = {
            "self": trainer,
            "completion_mask": mask,
            "tool_mask": None,
            "old_per_token_logps": old,
            "sampling_per_token_logps": sampled,
            "torch": torch,
            "math": math,
        }
        exec(lines, names)
        return names[ratio].expand_as(mask) * mask

    return weights


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("low", "high"), [(0.5, 5.0), (0.8, 1.3)])
def test_weights_for_the_engines_tokens_are_trls(trl_weights, seed, level, low, high):
    columns = random_columns(seed)
    old, sampled, mask = columns.old, columns.logprobs.detach(), columns.mask
    ours = MaskOutliers(level=level, low=low, high=high).weights(old - sampled, mask) * mask
    theirs = trl_weights(old, sampled, mask, f"{level}_mask", low, high)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    assert 0 < int((theirs == 0).sum() - (mask == 0).sum()) < int(mask.sum())
    ours = TruncatedImportance(level=level, cap=high).weights(old - sampled, mask) * mask
    theirs = trl_weights(old, sampled, mask, f"{level}_truncate", None, high)
    assert torch.allclose(ours, theirs, rtol=1e-12)
