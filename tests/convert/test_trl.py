"""A recipe from TRL's settings means what they meant: batches, schedule, loss; the rest is said."""

import dataclasses
import json
import re

import pytest
import torch
import yaml

from rlvr.convert.config import SILENT
from rlvr.convert.trl import _classes, convert_trl
from rlvr.objective.objective import Objective
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task
from tests.command import call, refused
from tests.objective.test_trl_oracle import WIDTH, our_loss, random_columns, trl_loss

GRPO = {
    "model_name_or_path": "m",
    "dataset_name": "me/prompts",
    "reward_funcs": ["accuracy_reward"],
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "num_generations": 8,
    "max_steps": 100,
}
DPO = {"model_name_or_path": "m", "dataset_name": "me/pairs", "max_steps": 50, "beta": 0.2}
SFT = {"model_name_or_path": "m", "dataset_name": "me/texts", "packing": True}


@pytest.fixture
def converted(tmp_path):
    """The recipe of a configuration, resolved, and the lines about it."""

    def convert(values, trainer=None, **options):
        file = tmp_path / "trl.yaml"
        file.write_text(yaml.safe_dump(values))
        found = convert_trl(file, trainer, **options)
        schema = find_task(found.recipe["task"]).schema
        return load_settings(schema, found.recipe), "\n".join(found.lines)

    return convert


def test_batches_are_counted_in_the_units_of_a_step(converted):
    recipe, _ = converted(GRPO)
    assert (recipe.rollout.prompts_per_step, recipe.rollout.samples_per_prompt) == (4, 8)
    assert (recipe.steps, recipe.learner.updates_per_rollout) == (100, 1)
    recipe, _ = converted({**GRPO, "steps_per_generation": 16}, processes=2)
    assert recipe.rollout.prompts_per_step == 8 * 16 * 2 // 8
    assert (recipe.steps, recipe.learner.updates_per_rollout) == (25, 4)
    recipe, _ = converted({**GRPO, "generation_batch_size": 64})
    assert recipe.rollout.prompts_per_step == 8
    assert (recipe.steps, recipe.learner.updates_per_rollout) == (50, 2)
    recipe, said = converted({**GRPO, "steps_per_generation": 1})
    assert recipe.rollout.prompts_per_step == 4
    assert "a step samples 32" in said
    epochs = {key: value for key, value in GRPO.items() if key != "max_steps"}
    assert converted(epochs, rows=1000)[0].steps == 3 * 250
    recipe, _ = converted({**epochs, "num_train_epochs": 1.5}, rows=1003)
    assert recipe.steps == 375, "TRL's sampler drops what fills no rollout"


def test_defaults_of_trl_are_written_out(converted):
    recipe, said = converted(GRPO)
    assert recipe.seed == 42
    assert recipe.model.precision == "bfloat16"
    assert recipe.model.gradient_checkpointing
    assert recipe.learner.schedule.shape == "linear"
    assert recipe.regularisers == ()
    assert recipe.reducer.name == "token_mean"
    assert recipe.rollout.sampling.max_tokens == 512
    assert "save_total_limit is not given" in said
    assert "solution" in said
    sft, said = converted({**SFT, "num_train_epochs": 2}, "sft")
    assert (sft.learner.lr, sft.learner.betas, sft.learner.weight_decay) == (2e-5, (0.9, 0.999), 0)
    assert (sft.epochs, sft.data.max_tokens) == (2, 1024)
    assert "datasets.load_dataset('me/texts', split='train')" in said
    assert "packing" in said
    dpo, _ = converted({**DPO, "precompute_ref_log_probs": True}, "dpo")
    assert (dpo.losses[0].name, dpo.losses[0].beta, dpo.steps) == ("sigmoid", 0.2, 50)
    assert dpo.reference.mode == "precomputed"
    assert dpo.data.per_step == 8


# Defaults of ours, which the stand-in of the oracle is told by itself.
LOSSES = {
    "default": {},
    "grpo with a reference": {"loss_type": "grpo", "beta": 0.3},
    "reference, not weighted": {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
    "bnpo": {"loss_type": "bnpo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo", "max_completion_length": WIDTH},
    "two-sided": {"delta": 1.5},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.1},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.4},
    "sapo": {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 0.5},
    "vespo": {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_neg": 0.5},
    "off-policy": {"off_policy_mask_threshold": 0.1},
    "top entropy": {"top_entropy_quantile": 0.2},
    "bonus": {"entropy_coef": 0.05},
}
_ORACLE = {"importance_sampling_level": "level", "top_entropy_quantile": "quantile"}
_ORACLE["entropy_coef"] = "bonus"


@pytest.mark.parametrize("case", LOSSES)
def test_loss_and_gradient_are_trls(converted, case):
    """TRL's own loss on its settings, ours on the recipe made of them."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    own = LOSSES[case]
    recipe, _ = converted({**GRPO, **own})
    objective = Objective(
        recipe.policy_loss,
        recipe.regularisers,
        recipe.reducer,
        recipe.correction,
        recipe.filters,
    )
    asked = {"loss_type": "dapo", "use_bias_correction_kl": True, **own}
    asked.setdefault("epsilon_high", asked.get("epsilon", 0.2))
    asked.pop("max_completion_length", None)
    asked = {_ORACLE.get(key, key): value for key, value in asked.items()}
    columns = random_columns(0)
    found = []
    for loss in (trl_loss(GRPOTrainer, columns, **asked), our_loss(objective, columns)):
        (slope,) = torch.autograd.grad(loss, columns.logprobs, retain_graph=True)
        found.append((loss.item(), slope * columns.mask))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-12)
    assert torch.allclose(found[1][1], found[0][1], atol=1e-14)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "linear", "warmup_steps": 10},
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.1},
    ],
)
@pytest.mark.parametrize("task", ["grpo", "sft"])
def test_the_schedule_is_that_of_transformers(converted, settings, task):
    """But for the warm-up, which begins above 0."""
    from transformers import get_scheduler

    values = {**(GRPO if task == "grpo" else SFT), **settings, "max_steps": 100}
    recipe, said = converted(values, task)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = 10 if "warmup_steps" in settings else 0
    scheduler = get_scheduler(
        settings.get("lr_scheduler_type", "linear"),
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=100,
        scheduler_specific_kwargs=settings.get("lr_scheduler_kwargs"),
    )
    for update in range(100):
        rate = scheduler.get_last_lr()[0]
        ours = recipe.learner.schedule.fraction(update, 100)
        if update >= warmup:
            assert ours == pytest.approx(rate, abs=1e-12), update
        else:
            assert abs(ours - rate) <= 1 / warmup
        optimizer.step()
        scheduler.step()
    assert ("warm-up of 10 updates" in said) == bool(warmup)


def test_vllm_adapters_and_rewards_are_carried_over(converted):
    values = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.5, "use_peft": True, "lora_r": 16}
    values |= {"use_rslora": True, "mask_truncated_completions": True, "scale_rewards": False}
    values |= {"reward_funcs": ["think_format_reward", "accuracy_reward"]}
    recipe, said = converted({**GRPO, **values, "reward_weights": [0.5, 1]})
    assert (recipe.rollout.engine.name, recipe.rollout.engine.memory_share) == ("vllm", 0.5)
    correction = recipe.correction
    assert (correction.name, correction.level, correction.low, correction.high) == (
        "masked",
        "sequence",
        0.0,
        3.0,
    )
    assert (recipe.model.lora.alpha, recipe.model.lora.dropout) == (32 * 4, 0)
    assert recipe.model.lora.target_modules == ("q_proj", "v_proj")
    assert "lora_dropout = 0.05 is 0" in said
    assert [term.weight for term in recipe.reward.functions] == [0.5, 1]
    assert (recipe.reward.truncated, recipe.advantage.scale) == ("mask", "none")
    recipe, _ = converted({**GRPO, "use_vllm": True, "vllm_mode": "server"})
    assert recipe.rollout.engine.addresses == ("http://127.0.0.1:8000",)


def test_mixtures_of_losses_are_carried_over(converted):
    values = {"loss_type": ["robust", "hinge"], "loss_weights": [0.8, 0.2], "label_smoothing": 0.1}
    values |= {"f_divergence_type": "js_divergence", "gradient_accumulation_steps": 2}
    recipe, _ = converted({**DPO, **values}, "dpo")
    robust, hinge = recipe.losses
    assert (robust.name, robust.weight, robust.label_smoothing) == ("robust", 0.8, 0.1)
    assert (hinge.weight, hinge.beta, hinge.divergence) == (0.2, 0.2, "js")
    assert recipe.data.per_step == 16


def test_what_is_left_out_is_said_with_what_to_do(converted):
    left = {"num_iterations": 2, "top_p": 0.9, "min_p": 0.1, "deepspeed": "zero3.json"}
    left |= {"sync_ref_model": True, "repetition_penalty": 1.1, "neftune_noise_alpha": 5}
    _, said = converted({**GRPO, **left, "logging_steps": 1})
    for key in left:
        assert f"left out: {key}" in said
    assert "rlvr launch" in said
    assert "logging_steps" not in said
    _, said = converted({**SFT, "assistant_only_loss": True, "max_steps": 3}, "sft")
    assert "assistant_only_loss" in said


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ({**GRPO, "num_generation": 4}, {}, "did you mean num_generations"),
        ({**GRPO, "packing": True}, {"trainer": "grpo"}, "TRL has no setting 'packing'"),
        ({**GRPO, "max_steps": -1}, {}, "--rows N"),
        ({**GRPO, "per_device_train_batch_size": 1}, {}, "holds no whole groups"),
        ({**GRPO, "loss_type": "cispo"}, {}, "set epsilon_high"),
        ({**GRPO, "lr_scheduler_type": "polynomial"}, {}, "has no counterpart; take one of"),
        ({**GRPO, "reward_weights": [1, 2]}, {}, "2 values for 1 reward_funcs"),
        ({"max_steps": 3}, {}, "say which with --trainer"),
        ({"max_steps": 3, "beta": 0.1}, {"trainer": "ppo"}, "none of grpo, dpo, sft"),
        ({"max_steps": 3, "num_generations": 8}, {}, "names no model"),
        ({**DPO, "loss_type": "kto_pair"}, {"trainer": "dpo"}, "'kto_pair' is none of"),
    ],
)
def test_what_cannot_be_is_refused(converted, values, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        converted(values, **options)


def test_settings_that_are_passed_over_in_silence_exist():
    names = {f.name for own in _classes().values() for cls in own for f in dataclasses.fields(cls)}
    gone = {"logging_dir", "overwrite_output_dir", "save_safetensors", "preprocessing_num_workers"}
    assert SILENT - names <= gone


def test_the_command_writes_a_recipe_that_trains(guessing_folder, tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": f"{a}+{b}="}], "solution": str(a + b)}
        for a in range(4)
        for b in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        **GRPO,
        "model_name_or_path": str(guessing_folder),
        "dataset_name": "rows.jsonl",
        "output_dir": "out",
        "bf16": False,
        "max_completion_length": 8,
        "max_steps": 1,
        "gradient_accumulation_steps": 1,
    }
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump(values))
    done = call("convert", "trl", "trl.yaml", "--out", "recipe.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "recipe.yaml").read_text()
    assert text.startswith("# Converted from trl.yaml (TRL). Run:  rlvr train recipe.yaml\n")
    assert done.stdout.splitlines()[-1].endswith("rlvr train recipe.yaml --dry-run")
    assert "# - save_total_limit" in text
    assert isinstance(load_settings(RLRecipe, tmp_path / "recipe.yaml"), RLRecipe)
    template = "data.template={mode: text}"  # the tiny model has no chat template
    words = ["recipe.yaml", template, "data.max_prompt_tokens=32"]
    plain = [{**row, "prompt": row["prompt"][0]["content"]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    assert call("train", *words, folder=tmp_path).returncode == 0
    assert (tmp_path / "out" / "model").is_dir()
    line = refused("convert", "trl", "trl.yaml", "--out", "recipe.yaml", folder=tmp_path)
    assert "exists; choose another file" in line
    assert "is not a file" in refused("convert", "trl", "none.yaml", folder=tmp_path)
    printed = call("convert", "trl", "trl.yaml", folder=tmp_path)
    assert yaml.safe_load(printed.stdout)["task"] == "rl"
    assert "save_total_limit" in printed.stderr
