"""TRL's loss of a fine-tuning step and its gradients, which ours are held against."""

import torch
from trl import SFTConfig, SFTTrainer

from rlvr.preference.losses.comp_sum import comp_sum

IGNORED = -100


class _Bent(SFTTrainer):
    """TRL sums -log p of tokens; ignored ones have log p = 0, whose loss is 0 at every tau."""

    tau = 1.0

    def compute_loss(self, model, *arguments, **options):
        def run(**inputs):
            outputs = model(**inputs)
            outputs.log_probs = -comp_sum(outputs.log_probs, self.tau)
            return outputs

        return super().compute_loss(run if self.tau != 1 else model, *arguments, **options)

    def _send_telemetry(self):
        pass


def trl_step(policy, tokenizer, sequences, folder, *, micro=8, learn="response", **options):
    """Loss, gradients by name, and TRL's metrics of one step over all (prompt, completion) ids."""
    from datasets import Dataset

    tau = options.pop("tau", 1.0)
    labels = [
        [*(prompt if learn == "all" else [IGNORED] * len(prompt)), *ids]
        for prompt, ids in sequences
    ]
    ids = [[*prompt, *own] for prompt, own in sequences]
    config = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=len(sequences) // micro,
        max_length=options.pop("max_length", None),
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        **options,
    )
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    trainer = _Bent(policy.model, config, processing_class=tokenizer, train_dataset=data)
    trainer.tau = tau
    loader = iter(trainer.get_train_dataloader())
    batches, count = trainer.get_batch_samples(
        loader, trainer.args.gradient_accumulation_steps, torch.device("cpu")
    )
    policy.model.train()
    policy.model.zero_grad()
    total = 0.0
    for inputs in batches:
        loss = trainer.compute_loss(
            policy.model, trainer._prepare_inputs(inputs), num_items_in_batch=count
        )
        loss.backward()
        total += loss.item()
    gradients = {
        name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None
    }
    return total, gradients, {name: values[0] for name, values in trainer._metrics["train"].items()}
