"""Recipes of preferences and of demonstrations from TRL's DPO and SFT settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlvr.convert.common import (
    REASONS,
    common_settings,
    completions_per_update,
    dataset_name,
    evaluation_every,
    hub_or_file,
    learner_settings,
    model_settings,
    update_count,
)
from rlvr.convert.config import TrlConfig
from rlvr.preference.losses.base import PreferenceLoss

_DIVERGENCES = {
    "reverse_kl": "reverse_kl",
    "forward_kl": "forward_kl",
    "js_divergence": "js",
    "alpha_divergence": "alpha",
}


def dpo_recipe(config: TrlConfig, processes: int, rows: int | None) -> dict[str, Any]:
    """The recipe of task ``preference``; arguments and errors as :func:`.grpo.grpo_recipe`."""
    per_step, steps = _steps(config, processes, rows, needed="a run is so many steps long")
    losses = _losses(config)
    length, ahead = int(config["max_length"] or 2**20), config["precompute_ref_log_probs"]
    config.say(
        f"max_length = {length}: prompts and completions of more are each left out and counted; "
        "TRL cuts the two together"
    )
    source = hub_or_file(config, config["dataset_train_split"])
    recipe: dict[str, Any] = {
        "task": "preference",
        **_head(config, compares=True),
        "steps": steps,
        "data": {
            "source": source,
            "template": "plain",
            "per_step": per_step,
            "max_prompt_tokens": length,
            "max_completion_tokens": length,
            "shuffle": config["train_sampling_strategy"] != "sequential",
        },
        "losses": losses,
        "learner": learner_settings(config, steps),
        **common_settings(config),
    }
    if config["ld_alpha"] is not None:
        recipe["ld_alpha"] = float(config["ld_alpha"])
    if config["use_weighting"]:
        recipe["weighting"] = True
    if ahead:
        recipe["reference"] = {"mode": "precomputed"}
    every = evaluation_every(config)
    if every is not None and source["name"] == "hub":
        held_out = {**source, "split": config["dataset_test_split"]}
        recipe["evaluation"] = {"every": every, "pairs": {"test": held_out}}
    config.without({**REASONS, "precompute_ref_batch_size": "micro-batches are sized by tokens"})
    return recipe


def _losses(config: TrlConfig) -> list[dict[str, Any]]:
    """One loss or a mixture.

    Raises:
        ValueError: A loss that there is nothing like, or weights that are not as many.
    """
    kinds, weights = config["loss_type"], config["loss_weights"]
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    weights = list(weights) if weights else [1.0] * len(kinds)
    if len(weights) != len(kinds):
        raise ValueError(
            f"loss_weights has {len(weights)} values for {len(kinds)} losses; give as many"
        )
    known = PreferenceLoss.registry()
    divergence = _DIVERGENCES.get(str(config["f_divergence_type"]).rpartition(".")[2].lower())
    if divergence is None:
        raise ValueError(
            f"f_divergence_type = {config['f_divergence_type']!r} is none of "
            f"{', '.join(_DIVERGENCES)}"
        )
    offered = {
        "beta": float(config["beta"]),
        "label_smoothing": float(config["label_smoothing"]),
        "divergence": divergence,
        "divergence_alpha": float(config["f_alpha_divergence_coef"]),
        "tau": float(config["discopop_tau"]),
    }
    found = []
    for kind, weight in zip(kinds, weights, strict=True):
        if kind not in known:
            raise ValueError(f"loss_type {kind!r} is none of {', '.join(sorted(known))}")
        fields = known[kind].model_fields
        own = {name: value for name, value in offered.items() if name in fields}
        if divergence != "reverse_kl" and "divergence" not in fields:
            config.say(f"left out: f_divergence_type for {kind}, which is defined by reverse KL")
        found.append({"name": kind, "weight": float(weight), **own})
    if any(kind.startswith("aot") for kind in kinds):
        config.say("aot sorts all pairs of a step; TRL those of a micro-batch on one device")
    return found


def sft_recipe(config: TrlConfig, processes: int, rows: int | None) -> dict[str, Any]:
    """The recipe of task ``sft``; arguments and errors as :func:`.grpo.grpo_recipe`."""
    epochs, most = float(config["num_train_epochs"]), int(config["max_steps"])
    whole = most <= 0 and epochs == int(epochs)
    per_step, steps = _steps(
        config, processes, rows, needed="" if whole else "it is no whole number of epochs"
    )
    learner = learner_settings(config, steps)
    learner["schedule"]["warmup_fraction"] = 0.0
    length = config["max_length"]
    if length is not None:
        config.say(
            f"max_length = {length}: longer sequences are left out and counted, TRL cuts them"
        )
    recipe: dict[str, Any] = {
        "task": "sft",
        **_head(config, compares=False),
        **({"epochs": int(epochs)} if whole else {"steps": steps}),
        "data": {
            "sources": [_saved(config)],
            "template": "plain",
            "max_tokens": length,
            "per_step": per_step,
            "shuffle": config["train_sampling_strategy"] != "sequential",
            "learn": _learnt(config),
        },
        "label_smoothing": float(config["label_smoothing_factor"]),
        "learner": learner,
        **common_settings(config),
    }
    if config["loss_type"] == "dft":
        recipe["tau"] = 2.0
        config.say("dft: tau = 2 has the same gradient; the logged loss is 1 - p")
    if config["packing"]:
        config.say(
            f"packing: rows are packed by themselves, and data.per_step = {per_step} counts "
            "examples, where a row of TRL's batch holds as many as fill max_length; raise it by "
            "that number"
        )
    if evaluation_every(config) is not None:
        config.say("evaluation: name the held-out file in evaluation.traces")
    recipe.pop("hub", None)
    if config["push_to_hub"]:
        config.say("left out: push_to_hub: upload the run's model folder with rlvr export")
    config.without({**REASONS, "packing_strategy": "rows are packed by themselves"})
    return recipe


def _learnt(config: TrlConfig) -> str:
    """Whether prompts are learnt, too."""
    only = config["completion_only_loss"]
    if config["assistant_only_loss"]:
        config.say("assistant_only_loss: of a conversation the last turn alone is learnt")
        return "response"
    if only is False or (only is None and "dataset_text_field" in config.values):
        config.read.add("dataset_text_field")
        return "all"
    config.say(
        "data.learn = response: TRL learns completions of rows with prompt and completion, and "
        "everything of rows with messages or text; for those set data.learn=all"
    )
    return "response"


def _saved(config: TrlConfig) -> str:
    """A file or folder of demonstrations: they are read from disk."""
    name, split, subset = (
        dataset_name(config),
        config["dataset_train_split"],
        config["dataset_config"],
    )
    if Path(name).exists():
        return name
    folder = f"data/{name.rpartition('/')[2]}_{split}"
    asked = f"{name!r}" if subset is None else f"{name!r}, {subset!r}"
    config.say(
        "data: demonstrations are read from disk; save the data set once with python -c "
        f'"import datasets; datasets.load_dataset({asked}, split={split!r})'
        f".save_to_disk('{folder}')\""
    )
    return folder


def _head(config: TrlConfig, *, compares: bool) -> dict[str, Any]:
    return {
        "output": str(config["output_dir"] or "trainer_output"),
        "seed": int(config["seed"]),
        "model": model_settings(config, compares=compares),
    }


def _steps(
    config: TrlConfig, processes: int, rows: int | None, *, needed: str
) -> tuple[int, int | None]:
    """Rows of a step, and steps of the run."""
    per_step = completions_per_update(config, processes)
    per_epoch = None if rows is None else math.ceil(rows / per_step)
    return per_step, update_count(config, rows, per_epoch, needed=needed)
