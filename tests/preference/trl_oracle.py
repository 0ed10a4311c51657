"""TRL's own loss code, run on given token log-probabilities or logits instead of a model's.

The trainers are made without their constructors and get just what their loss method reads, so
what is compared is the installed code and no copied formula.
"""

import os
from types import SimpleNamespace

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer


class Accelerator:
    """One process on the CPU."""

    device = torch.device("cpu")

    def gather(self, value):
        return value

    gather_for_metrics = gather


class FakeModel(torch.nn.Module):
    """Answers forward passes with prepared outputs, in turn."""

    is_gradient_checkpointing = False

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.calls = list(answers), 0

    def forward(self, *_args, **_kwargs):
        self.calls += 1
        return self.answers[(self.calls - 1) % len(self.answers)]


def outputs(logprobs_BT, log_square_mass_BT=None):
    zeros = torch.zeros_like(logprobs_BT.detach())
    return SimpleNamespace(
        log_probs=logprobs_BT,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
        log_sum_sq_probs=zeros if log_square_mass_BT is None else log_square_mass_BT,
    )


class Metrics(dict):
    def __missing__(self, key):
        self[key] = []
        return self[key]


def bare(trainer_class, **attributes):
    trainer = object.__new__(trainer_class)
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def dpo_loss(
    policy_BT, reference_BT, mask_BT, losses, weights=None, *, beta=0.1, label_smoothing=0.0,
    divergence="reverse_kl", alpha=0.5, ld_alpha=None, log_square_mass_BT=None, tau=0.05,
):  # fmt: skip
    """DPOTrainer._compute_loss; rows are all chosen, then all rejected completions."""
    # A model's outputs are zero where there is no label.
    model = FakeModel(outputs(policy_BT * mask_BT, log_square_mass_BT))
    reference = FakeModel(outputs(reference_BT))
    trainer = bare(
        DPOTrainer,
        accelerator=Accelerator(),
        model=model,
        ref_model=reference,
        aux_loss_enabled=False,
        ld_alpha=ld_alpha,
        precompute_ref_logps=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=tau),
        f_divergence_type=divergence,
        f_alpha_divergence_coef=alpha,
        loss_types=losses,
        loss_weights=weights or [1.0] * len(losses),
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=log_square_mass_BT is not None,
        _metrics={"train": Metrics(), "eval": Metrics()},
        _total_train_tokens=0,
        _tp_size=1,
    )
    completion_mask = torch.cat([torch.zeros_like(mask_BT[:, :1]), mask_BT], 1)
    inputs = {
        "input_ids": torch.ones_like(completion_mask, dtype=torch.long),
        "attention_mask": torch.ones_like(completion_mask, dtype=torch.long),
        "completion_mask": completion_mask.long(),
    }
    return trainer._compute_loss(model, inputs, False)


def kto_loss(
    policy_BT, reference_BT, mismatched_BT, mismatched_reference_BT, mask_BT, label_B, loss, *,
    beta=0.1, desirable_weight=1.0, undesirable_weight=1.0,
):  # fmt: skip
    """KTOTrainer._compute_loss; the mismatched completions' log-probabilities are given."""
    answers = [outputs(policy_BT * mask_BT)]
    reference = [outputs(reference_BT)]
    if loss == "kto":  # the first forward of both models is the one of mismatched completions
        answers.insert(0, outputs(mismatched_BT))
        reference.insert(0, outputs(mismatched_reference_BT))
    model = FakeModel(*answers)
    trainer = bare(
        KTOTrainer,
        accelerator=Accelerator(),
        model=model,
        ref_model=FakeModel(*reference),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        calculate_KL=loss == "kto",
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        loss_type=loss,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        _metrics={"train": Metrics(), "eval": Metrics()},
        _total_train_tokens=0,
        _tp_size=1,
    )
    mask = torch.cat([torch.zeros_like(mask_BT[:, :1]), mask_BT], 1).long()
    ids = torch.ones_like(mask)
    inputs = {
        "input_ids": ids, "attention_mask": ids, "completion_mask": mask, "label": label_B,
        "KL_input_ids": ids, "KL_attention_mask": ids, "KL_completion_mask": mask,
    }  # fmt: skip
    return trainer._compute_loss(model, inputs, False)


def contrastive_loss(kind, logits_BLV, ids_BL, prompt_lengths_B, **settings):
    """CPO's or ORPO's get_batch_loss_metrics; the first half of the rows are the chosen ones."""
    model = FakeModel(SimpleNamespace(logits=logits_BLV))
    common = {
        "accelerator": Accelerator(),
        "is_encoder_decoder": False,
        "pad_token_id": 0,
        "padding_value": 0,
        "aux_loss_enabled": False,
    }
    trainer = bare({"cpo": CPOTrainer, "orpo": ORPOTrainer}[kind], **common, **settings)
    labels = ids_BL.clone()
    for row, length in enumerate(prompt_lengths_B):
        labels[row, :length] = -100
    labels[ids_BL == 0] = -100
    attention = (ids_BL != 0).long()
    half = len(ids_BL) // 2
    batch = {
        f"{side}_{name}": value[rows]
        for side, rows in (("chosen", slice(0, half)), ("rejected", slice(half, None)))
        for name, value in (
            ("input_ids", ids_BL),
            ("labels", labels),
            ("attention_mask", attention),
        )
    }
    return trainer.get_batch_loss_metrics(model, batch)[0]
