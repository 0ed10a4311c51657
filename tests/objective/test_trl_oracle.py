"""TRL's own loss code as the oracle: the same value and gradients from the same random tensors.

TRL's ``_compute_loss`` runs unchanged on a stand-in trainer that hands it log-probabilities and
entropies instead of a model's.
"""

from types import MethodType, SimpleNamespace

import pytest
import torch

from rlvr.objective import (
    KL,
    AdaptiveEntropy,
    Cispo,
    Clip,
    ConstantLength,
    Counts,
    Entropy,
    Gspo,
    Objective,
    SequenceMean,
    Step,
    Terms,
    TokenMean,
    TopEntropy,
)

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


def trl_loss(trainer_class, columns, *, level="token", beta=0.0, quantile=1.0, bonus=0.0, **config):
    """TRL's loss of one accumulation step that is the whole batch."""
    args = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1, **config}
    trainer = SimpleNamespace(
        args=SimpleNamespace(**args),
        loss_type=config["loss_type"],
        importance_sampling_level=level,
        epsilon_low=config.get("epsilon", 0.2),
        epsilon_high=config.get("epsilon_high", 0.2),
        beta=beta,
        top_entropy_quantile=quantile,
        max_completion_length=WIDTH,
        off_policy_mask_threshold=None,
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
    terms = Terms(
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
        terms = Terms(
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
