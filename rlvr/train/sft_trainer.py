"""TRL's SFTTrainer as this project runs it. Importing TRL takes seconds: import this late.

What is TRL's (and transformers'): batching, packing, the loss, the optimizer step, data
parallelism, checkpoints and their way back. What is changed:

- nothing is sent anywhere, and no card is written beside the checkpoints;
- the learning rate follows the project's schedule (``rlvr/learner/settings.py``);
- a checkpoint holds the model as all of this project's do, in safetensors;
- it exists once its files have a manifest and its folder the project's name
  (``rlvr/learner/checkpoint.py``), and only then are older ones dropped: transformers writes file
  by file into a folder that looks finished from the first, so a kill would leave half of one there.

The loss of a step is  L = -(1/N) sum_i log p(y_i | prompt, y_<i)  over the N response tokens of all
its micro-batches and processes; prompt tokens have label -100 and no gradient of their own. With
``tau`` another comp-sum loss takes the place of -log p (``rlvr/preference/losses/comp_sum.py``).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rlvr.learner import adopt_checkpoint
from rlvr.policy import Policy, evaluating, save_policy
from rlvr.preference.losses import comp_sum
from rlvr.ranks import Ranks
from rlvr.train.sft_recipe import SftRecipe

PREFIX = "checkpoint-"  # what transformers calls a folder that it writes


class Trainer(SFTTrainer):
    """See the module.

    Args:
        recipe: What is trained, for how many steps.
        policy: The model; where the run goes on, with the checkpoint's weights.
        tokenizer: Its tokenizer.
        ranks: The processes that train together.
        data: Columns input_ids and labels.
    """

    def __init__(
        self,
        recipe: SftRecipe,
        policy: Policy,
        tokenizer: Any,  # noqa: ANN401
        ranks: Ranks,
        data: Any,  # noqa: ANN401
    ) -> None:
        assert recipe.steps is not None, "the run counts its epochs"
        self.recipe, self.policy, self.ranks = recipe, policy, ranks
        self.total: int = recipe.steps
        self.target_tokens = 0
        super().__init__(
            model=policy.model,
            args=_config(recipe, ranks),
            processing_class=tokenizer,
            train_dataset=data,
        )
        kind = str(self.accelerator.distributed_type)
        # Ranks that do not add up their gradients would each train a model of their own.
        assert ranks.count == 1 or not kind.endswith("NO"), kind
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)

    def compute_loss(self, model: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        """TRL's loss, of log-probabilities that tau has bent.

        TRL sums -log p of the tokens as the model gives them; ignored ones have log p = 0, whose
        loss is 0 at every tau.
        """
        tau = self.recipe.tau
        return super().compute_loss(model if tau == 1 else _bent(model, tau), *arguments, **options)

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def create_model_card(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Nothing is written."""

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:  # noqa: ANN401
        """The project's schedule."""
        if getattr(self, "lr_scheduler", None) is None:
            schedule, total = self.recipe.learner.schedule, self.total
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda update: schedule.fraction(update, total)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(self, *arguments: Any) -> Any:  # noqa: ANN401
        """A step's micro-batches; keeps how many tokens are learnt from, over all processes."""
        samples, count = super().get_batch_samples(*arguments)
        self.target_tokens = int(count) if count is not None else 0
        return samples, count

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write ``output_dir/model`` or ``output_dir/adapter``, as every task does."""
        folder = Path(output_dir or self.args.output_dir)
        if self.ranks.first:
            save_policy(self.policy, folder)
            if not self.policy.has_adapters:
                self.processing_class.save_pretrained(folder / "model")

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """The policy was loaded with the checkpoint's weights."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ANN401
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        step = self.state.global_step
        if self.ranks.first:
            built = Path(self.args.output_dir) / f"{PREFIX}{step}"
            adopt_checkpoint(built, step, self.recipe.checkpoint.keep, self.ranks)
        self.accelerator.wait_for_everyone()


def _bent(model: Any, tau: float) -> Callable[..., Any]:  # noqa: ANN401
    """The model with the negative of each token's loss as its log-probability."""

    def run(**inputs: Any) -> Any:  # noqa: ANN401
        outputs = model(**inputs)
        outputs.log_probs = -comp_sum(outputs.log_probs, tau)
        return outputs

    return run


def _config(recipe: SftRecipe, ranks: Ranks) -> SFTConfig:
    """TRL's settings of a recipe.

    Raises:
        ValueError: The processes do not divide a step.
    """
    learner, own = recipe.learner, recipe.learner.rows_per_micro_batch * ranks.count
    if recipe.data.per_step % own:
        raise ValueError(
            f"data.per_step = {recipe.data.per_step} cannot be dealt to {ranks.count} processes in "
            f"micro-batches of learner.rows_per_micro_batch = {learner.rows_per_micro_batch}; make "
            f"it a multiple of {own}"
        )
    return SFTConfig(
        output_dir=str(recipe.output / "checkpoints"),
        seed=recipe.seed,
        data_seed=recipe.seed,
        max_steps=recipe.steps,
        per_device_train_batch_size=learner.rows_per_micro_batch,
        gradient_accumulation_steps=recipe.data.per_step // own,
        train_sampling_strategy="random" if recipe.data.shuffle else "sequential",
        learning_rate=learner.lr,
        adam_beta1=learner.betas[0],
        adam_beta2=learner.betas[1],
        adam_epsilon=learner.epsilon,
        weight_decay=learner.weight_decay,
        max_grad_norm=learner.max_grad_norm or 0.0,
        optim="adamw_torch",
        bf16=recipe.model.precision == "bfloat16",
        gradient_checkpointing=recipe.model.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        # Sequences of more tokens were left out: nothing is ever cut.
        max_length=recipe.data.max_tokens if recipe.data.packing else None,
        packing=recipe.data.packing,
        eval_packing=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=recipe.checkpoint.every,
        save_total_limit=None,  # older ones go when the new one is sealed
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if ranks.count > 1 and not torch.cuda.is_available() else None,
        ddp_find_unused_parameters=False if ranks.count > 1 else None,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def check_packing(policy: Policy) -> None:
    """See that sequences packed as TRL packs them give what they give alone.

    Raises:
        ValueError: They see each other.
    """
    words = policy.causal_lm.config.get_text_config().vocab_size
    rows = [[token % words for token in row] for row in ([1, 2, 3, 4], [2, 5, 1], [4, 4, 2, 3, 1])]
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    inputs = collate([{"input_ids": row} for row in rows])
    inputs = {
        key: value.to(policy.device) if isinstance(value, torch.Tensor) else value
        for key, value in inputs.items()
        if key != "labels"
    }
    with torch.no_grad(), evaluating(policy), policy.compute():
        packed = policy.model(**inputs, use_cache=False).logits[0]
        alone = torch.cat(
            [policy.model(torch.tensor([row], device=policy.device)).logits[0] for row in rows]
        )
    furthest = (packed - alone).abs().max().item()
    if furthest > (0.05 if policy.precision == "bfloat16" else 1e-3):
        family, attention = policy.causal_lm.config.model_type, policy.causal_lm.config
        raise ValueError(
            f"data.packing: with model.attention = {attention._attn_implementation!r} this model "
            f"({family}) lets packed sequences see each other (logits differ by {furthest:.2g}); "
            "set data.packing to false"
        )
