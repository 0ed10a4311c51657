"""What all of TRL's trainers share: model, optimizer, schedule, batches, records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlvr.convert.config import TrlConfig

TRACKERS = ("tensorboard", "wandb", "trackio")
REASONS = {
    "deepspeed": "sharding is the launch's: accelerate launch, or rlvr launch --accelerate zero2",
    "fsdp": "shard with DeepSpeed: rlvr launch --accelerate zero3",
    "fsdp_config": "shard with DeepSpeed: rlvr launch --accelerate zero3",
    "resume_from_checkpoint": "rlvr train RECIPE --resume goes on with a run, --from branches",
    "run_name": "a run is called after its folder (output)",
    "load_in_4bit": "model.frozen_weights=nf4 holds the base under adapters so",
    "load_in_8bit": "model.frozen_weights=int8 holds the base under adapters so",
    "use_dora": "adapters are plain LoRA",
    "lora_modules_to_save": "only adapters are trained",
    "lora_target_parameters": "name layers in model.lora.target_modules",
    "neftune_noise_alpha": "embeddings get no noise",
    "optim_args": "the optimizer is AdamW",
    "load_best_model_at_end": "the last model is kept; choose a checkpoint by its evaluation",
    "metric_for_best_model": "the last model is kept; choose a checkpoint by its evaluation",
    "sync_ref_model": "the reference is frozen; begin anew with model.path = a checkpoint",
    "ref_model_mixup_alpha": "the reference is frozen",
    "ref_model_sync_steps": "the reference is frozen",
    "activation_offloading": "use model.gradient_checkpointing",
    "auto_find_batch_size": "learner.tokens_per_micro_batch bounds memory, and is halved by itself",
    "truncation_mode": "sequences are never cut; longer ones are left out and counted",
}
_SHAPES = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


def model_settings(config: TrlConfig, *, compares: bool) -> dict[str, Any]:
    """The group ``model``.

    Args:
        config: TRL's.
        compares: Whether the task refuses dropout, because it compares passes.

    Raises:
        ValueError: No model is named.
    """
    path, extra = config["model_name_or_path"], dict(config["model_init_kwargs"] or {})
    if not path:
        raise ValueError(
            "the configuration names no model; add model_name_or_path (in Python it is the "
            "trainer's argument model)"
        )
    revision = extra.pop("revision", config["model_revision"])
    dtype = extra.pop("dtype", extra.pop("torch_dtype", config["dtype"]))
    attention = extra.pop("attn_implementation", config["attn_implementation"])
    if extra:
        config.say(f"left out: model_init_kwargs {extra}: it has no counterpart")
    settings: dict[str, Any] = {"path": str(path)}
    if revision not in (None, "main"):
        settings["revision"] = revision
    settings["precision"] = _precision(config, dtype)
    if attention is not None:
        settings["attention"] = attention
    settings["gradient_checkpointing"] = bool(config["gradient_checkpointing"])
    for ours, theirs in (("compile", "torch_compile"), ("liger", "use_liger_kernel")):
        if config[theirs]:
            settings[ours] = True
    if config["trust_remote_code"]:
        settings["trust_remote_code"] = True
    if config["use_peft"]:
        settings["lora"] = _lora(config, compares)
    return settings


def _precision(config: TrlConfig, dtype: object) -> str:
    half, sixteen = config["fp16"], config["bf16"]
    if half:
        config.say("fp16 is computed in bfloat16, which needs no loss scaling")
    if dtype in ("bfloat16", "float16"):
        config.say(
            f"dtype = {dtype}: weights and optimizer stay float32 and are computed with in "
            "bfloat16; TRL would round every update to the dtype"
        )
    # TRL computes in bfloat16 unless told otherwise.
    on = sixteen if sixteen is not None else not half
    return "bfloat16" if on or half or dtype in ("bfloat16", "float16") else "float32"


def _lora(config: TrlConfig, compares: bool) -> dict[str, Any]:
    rank, alpha, dropout = config["lora_r"], float(config["lora_alpha"]), config["lora_dropout"]
    if config["use_rslora"]:
        alpha *= math.sqrt(rank)
        config.say(f"use_rslora: alpha / sqrt(rank) is written as lora.alpha = {alpha:g}")
    if dropout and compares:
        config.say(f"lora_dropout = {dropout} is 0: passes are compared, each would draw another")
        dropout = 0.0
    targets = config["lora_target_modules"]
    if targets is None:
        targets = ["q_proj", "v_proj"]
        config.say(
            "lora_target_modules is not given: q_proj and v_proj, peft's choice for Llama and "
            "Qwen; set model.lora.target_modules for other models"
        )
    if isinstance(targets, str):
        targets = [targets]
    return {
        "rank": rank,
        "alpha": alpha,
        "dropout": float(dropout),
        "target_modules": "all-linear" if targets == ["all-linear"] else list(targets),
    }


def learner_settings(config: TrlConfig, updates: int | None) -> dict[str, Any]:
    """The group ``learner``: AdamW and its schedule.

    Args:
        config: TRL's.
        updates: Of the whole run, if they are known.

    Raises:
        ValueError: A schedule that there is none like.
    """
    optimizer = str(config["optim"])
    if "adamw" not in optimizer or "8bit" in optimizer or "bnb" in optimizer:
        config.say(f"optim = {optimizer!r}: it is AdamW with float32 moments")
    norm = config["max_grad_norm"]
    return {
        "lr": float(config["learning_rate"]),
        "betas": [float(config["adam_beta1"]), float(config["adam_beta2"])],
        "epsilon": float(config["adam_epsilon"]),
        "weight_decay": float(config["weight_decay"]),
        "max_grad_norm": float(norm) if norm else None,
        "schedule": _schedule(config, updates),
    }


def _schedule(config: TrlConfig, updates: int | None) -> dict[str, Any]:
    kind, more = str(config["lr_scheduler_type"]), dict(config["lr_scheduler_kwargs"] or {})
    kind = kind.rpartition(".")[2].lower()
    if kind not in _SHAPES:
        raise ValueError(
            f"lr_scheduler_type = {kind!r} has no counterpart; take one of {', '.join(_SHAPES)}"
        )
    final = 0.0
    if kind == "cosine_with_min_lr":
        rate = more.pop("min_lr_rate", None)
        lowest = more.pop("min_lr", None)
        final = float(rate if rate is not None else (lowest or 0.0) / config["learning_rate"])
    if more:
        config.say(f"left out: lr_scheduler_kwargs {more}: they have no counterpart")
    warmup = config["warmup_steps"] or 0
    if 0 < warmup < 1:
        if updates is None:
            raise ValueError(
                f"warmup_steps = {warmup} is a share of steps that are not known; give max_steps, "
                "or the number of rows with --rows"
            )
        warmup = math.ceil(warmup * updates)
    if kind == "constant":
        warmup = 0
    if warmup:
        config.say(
            f"warm-up of {warmup:g} updates: update k (from 0) has (k + 1) / (warmup + 1) of the "
            "rate, TRL's has k / warmup and so a first update of 0"
        )
    return {
        "shape": _SHAPES[kind],
        "warmup_updates": int(warmup),
        "final_fraction": final,
    }


def completions_per_update(config: TrlConfig, processes: int) -> int:
    """Rows of an optimizer step over all processes."""
    per_device = int(config["per_device_train_batch_size"])
    return per_device * int(config["gradient_accumulation_steps"]) * processes


def update_count(
    config: TrlConfig, rows: int | None, per_epoch: float | None, *, needed: str
) -> int | None:
    """Optimizer steps of the run, from max_steps or from epochs over so many rows.

    Args:
        config: TRL's.
        rows: Of the data, if known.
        per_epoch: Optimizer steps of an epoch.
        needed: What for, where it must be known; "" where not.

    Raises:
        ValueError: They are needed and not known.
    """
    most, epochs = int(config["max_steps"]), float(config["num_train_epochs"])
    if most > 0:
        return most
    if per_epoch is not None:
        return max(1, math.ceil(epochs * per_epoch))
    if not needed:
        return None
    raise ValueError(
        f"num_train_epochs = {epochs:g} without max_steps: {needed}; say how many rows the data "
        "have with --rows N, or set max_steps"
    )


def common_settings(config: TrlConfig, per_rollout: int = 1) -> dict[str, Any]:
    """Checkpoints, trackers and the Hub.

    Args:
        config: TRL's.
        per_rollout: Optimizer steps of one of our steps.
    """
    settings: dict[str, Any] = {}
    every = config["save_steps"]
    if config["save_strategy"] != "steps" or every < 1:
        config.say("checkpoints are saved every checkpoint.every steps, here 100")
        every = 100 * per_rollout
    keep = config["save_total_limit"]
    if keep is None:
        config.say("save_total_limit is not given: the newest 2 checkpoints remain, TRL keeps all")
    settings["checkpoint"] = {
        "every": max(1, round(every / per_rollout)),
        "keep": max(1, int(keep or 2)),
    }
    asked = config["report_to"] or []
    asked = [asked] if isinstance(asked, str) else list(asked)
    track = list(TRACKERS) if "all" in asked else [name for name in asked if name in TRACKERS]
    others = [name for name in asked if name not in (*TRACKERS, "all", "none")]
    if others:
        config.say(f"left out: report_to {others}: trackers are {', '.join(TRACKERS)}")
    if "all" in asked:
        track = []
        config.say("report_to = all: name the trackers you have in log.track")
    settings["log"] = {"track": track}
    repo = config["hub_model_id"]
    if config["push_to_hub"] and repo:
        settings["hub"] = {"repo": repo, "private": bool(config["hub_private_repo"])}
    elif config["push_to_hub"]:
        config.say("left out: push_to_hub without hub_model_id: set hub.repo, such as me/model")
    return settings


def hub_or_file(config: TrlConfig, split: str) -> dict[str, Any]:
    """The data set as a source.

    Raises:
        ValueError: None is named.
    """
    name = dataset_name(config)
    if Path(name).is_file():
        return {"name": "file", "path": name}
    source: dict[str, Any] = {"name": "hub", "path": name, "split": split}
    if config["dataset_config"]:
        source["subset"] = config["dataset_config"]
    return source


def dataset_name(config: TrlConfig) -> str:
    """Of the data set.

    Raises:
        ValueError: None is named.
    """
    name, mixture = config["dataset_name"], config["datasets"] or []
    if not name and len(mixture) == 1:
        own = dict(mixture[0])
        name = own.get("path")
        config.values.setdefault("dataset_config", own.get("name"))
        config.values.setdefault("dataset_train_split", own.get("split") or "train")
    if not name:
        raise ValueError(
            "the configuration names no single data set; add dataset_name (in Python it is the "
            "trainer's argument train_dataset; a mixture has to be saved as one)"
        )
    return str(name)


def evaluation_every(config: TrlConfig, per_rollout: int = 1) -> int | None:
    """Steps between evaluations; None where TRL does none."""
    strategy = str(config["eval_strategy"])
    steps = config["eval_steps"] or config["logging_steps"]
    if strategy == "no":
        return None
    if strategy == "epoch":
        config.say("eval_strategy = epoch: evaluation.every counts steps; it is 100 here")
        return max(1, 100 // per_rollout)
    return max(1, round(steps / per_rollout))
