"""A recipe of reinforcement learning from TRL's GRPO settings."""

from __future__ import annotations

from typing import Any

from rlvr.convert.common import (
    REASONS,
    common_settings,
    completions_per_update,
    evaluation_every,
    hub_or_file,
    learner_settings,
    model_settings,
    update_count,
)
from rlvr.convert.config import TrlConfig

_REASONS = {
    **REASONS,
    "num_iterations": "a rollout is learnt from once; raise learner.updates_per_rollout to split "
    "it into more updates",
    "min_p": "sampling knows top_p and top_k",
    "repetition_penalty": "samples are drawn from the policy as it is",
    "generation_kwargs": "see rollout.sampling and rollout.engine",
    "cache_implementation": "the engines manage their caches",
    "multi_objective_aggregation": "rewards are summed, then normalised",
    "reward_model_name_or_path": "train one with task: reward_model and name it in reward.models",
    "chat_template_kwargs": "set data.template.chat_template_kwargs",
    "num_generations_eval": "set evaluation.samples",
    "router_aux_loss_coef": "set router.balance",
    "max_tool_calling_iterations": "an episode is one completion",
    "vllm_structured_outputs_regex": "samples are drawn freely",
    "vllm_model_impl": "vLLM chooses",
    "cast_lm_head_to_fp32": "log-probabilities are computed in float32 always",
    "use_transformers_continuous_batching": "use the engine vllm",
    "use_transformers_paged": "use the engine vllm",
    "vllm_importance_sampling_cap": "give vllm_importance_sampling_clip_max",
    "entropy_coef_min": "the adaptive weight may fall to 0",
}
_REWARDS: dict[str, dict[str, Any]] = {
    "accuracy_reward": {"function": "accuracy"},
    "reasoning_accuracy_reward": {"function": "accuracy"},
    "think_format_reward": {"function": "format_think"},
    "get_soft_overlong_punishment": {
        "function": "overlong",
        "parameters": {"max_tokens": 1280, "buffer": 256},
    },
}


def grpo_recipe(config: TrlConfig, processes: int, rows: int | None) -> dict[str, Any]:
    """The recipe; what differs is said to ``config``.

    Args:
        config: TRL's.
        processes: That TRL would be launched with.
        rows: Of the data, if known.

    Raises:
        ValueError: Something that there is nothing like.
    """
    group = int(config["num_generations"])
    completions, updates_per_rollout = _batches(config, processes, group)
    prompts = completions // group
    per_epoch = None if rows is None else rows // prompts * updates_per_rollout
    updates = update_count(config, rows, per_epoch, needed="a run is so many steps long")
    assert updates is not None
    steps = -(-updates // updates_per_rollout)
    recipe: dict[str, Any] = {
        "task": "rl",
        "output": str(config["output_dir"] or "trainer_output"),
        "seed": int(config["seed"]),
        "steps": steps,
        "model": model_settings(config, compares=True),
        "data": _data(config),
        "rollout": {
            "engine": _engine(config),
            "prompts_per_step": prompts,
            "samples_per_prompt": group,
            "sampling": _sampling(config),
        },
        "reward": _rewards(config),
        "advantage": _advantage(config),
        **_loss(config),
        "correction": _correction(config),
        "filters": _filters(config),
        "regularisers": _regularisers(config),
        "learner": {
            **learner_settings(config, steps * updates_per_rollout),
            "updates_per_rollout": updates_per_rollout,
        },
        **common_settings(config, updates_per_rollout),
    }
    every = evaluation_every(config, updates_per_rollout)
    if every is not None:
        source = {**recipe["data"]["source"], "split": config["dataset_test_split"]}
        if source["name"] == "file":
            config.say("evaluation: name the held-out file in evaluation.sets")
        else:
            recipe["evaluation"] = {"every": every, "sets": {"test": source}}
    if config["num_iterations"] != 1:
        config.read.discard("num_iterations")
    config.without(_REASONS)
    return recipe


def _batches(config: TrlConfig, processes: int, group: int) -> tuple[int, int]:
    """Completions of a rollout, and optimizer steps that it is split into.

    Raises:
        ValueError: Batches do not hold whole groups.
    """
    update = completions_per_update(config, processes)
    micro = int(config["per_device_train_batch_size"]) * processes
    whole, turns = config["generation_batch_size"], config["steps_per_generation"]
    if whole and turns:
        raise ValueError(
            "generation_batch_size and steps_per_generation are both given, which TRL refuses; "
            "drop one"
        )
    rollout = int(whole) if whole else micro * int(turns) if turns else update
    # Rollouts of less than an update come from the same weights: they are one.
    if rollout < update or rollout % update:
        config.say(
            f"a rollout of {rollout} completions with updates of {update}: a step samples {update} "
            "and is one update"
        )
        rollout = update
    if rollout % group:
        raise ValueError(
            f"a rollout of {rollout} completions ({update} an update, on {processes} processes) "
            f"holds no whole groups of num_generations = {group}; say with --processes on how many "
            "processes TRL runs"
        )
    count = min(rollout // update, rollout // group)
    if count < rollout // update:
        config.say(
            f"an update of {update} completions is less than a group; a rollout is split into "
            f"{count} updates"
        )
    return rollout, count


def _data(config: TrlConfig) -> dict[str, Any]:
    source = hub_or_file(config, config["dataset_train_split"])
    config.say(
        "data: prompts are taken from the column prompt, text or messages, and answers, where a "
        "reward reads them, from solution, as accuracy_reward does; for prompts of text to be "
        "continued as they are set data.template=raw"
    )
    limit = 1024
    most = config["vllm_max_model_length"]
    if most:
        limit = max(1, int(most) - int(config["max_completion_length"] or 0))
    config.say(
        f"data.max_prompt_tokens = {limit}: longer prompts are left out and counted; TRL has no "
        "limit"
    )
    return {
        "source": source,
        "template": "plain",
        "max_prompt_tokens": limit,
        "shuffle": bool(config["shuffle_dataset"]),
    }


def _sampling(config: TrlConfig) -> dict[str, Any]:
    if config["top_p"] < 1 or config["top_k"]:
        config.say(
            f"left out: top_p = {config['top_p']}, top_k = {config['top_k']}: they sample from "
            "another distribution than the one whose ratio the loss takes"
        )
    return {
        "max_tokens": int(config["max_completion_length"]),
        "temperature": float(config["temperature"]),
        "top_p": 1.0,
        "top_k": 0,
    }


def _engine(config: TrlConfig) -> dict[str, Any]:
    mode, url = config["vllm_mode"], config["vllm_server_base_url"]
    host, port = config["vllm_server_host"], config["vllm_server_port"]
    share, parallel = config["vllm_gpu_memory_utilization"], config["vllm_tensor_parallel_size"]
    asleep, most = config["vllm_enable_sleep_mode"], config["vllm_max_model_length"]
    if not config["use_vllm"]:
        return {"name": "transformers"}
    if mode == "server":
        place = url or f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        config.say("start the server with rlvr serve MODEL instead of trl vllm-serve")
        return {"name": "vllm_server", "addresses": [place]}
    engine: dict[str, Any] = {"name": "vllm", "memory_share": float(share)}
    if parallel != 1:
        engine["tensor_parallel_size"] = int(parallel)
    if most:
        engine["max_model_len"] = int(most)
    if asleep:
        engine["sleep"] = 1
    return engine


def _rewards(config: TrlConfig) -> dict[str, Any]:
    names, weights = config["reward_funcs"], config["reward_weights"]
    names = [names] if isinstance(names, str) else list(names or [])
    if not names:
        names = ["accuracy_reward"]
        config.say(
            "no reward_funcs in the file (TRL takes them in Python): accuracy stands in; name "
            "yours as file.py:function in reward.functions (docs/how_to/add_a_reward.md)"
        )
    if weights and len(weights) != len(names):
        raise ValueError(
            f"reward_weights has {len(weights)} values for {len(names)} reward_funcs; give as many"
        )
    functions = []
    for place, name in enumerate(names):
        function = dict(_REWARDS.get(name, {}))
        if not function:
            module, dot, own = str(name).rpartition(".")
            function = {"function": f"{module}:{own}" if dot else str(name)}
        if weights:
            function["weight"] = float(weights[place])
        functions.append(function)
    masked = config["mask_truncated_completions"]
    return {"functions": functions, "truncated": "mask" if masked else "keep"}


def _advantage(config: TrlConfig) -> dict[str, Any]:
    scale = {True: "group", False: "none"}.get(config["scale_rewards"], config["scale_rewards"])
    if scale == "none":
        return {"name": "group", "scale": "none"}
    if scale == "batch":
        config.say(
            "scale_rewards = batch divides by the standard deviation of all rewards; "
            "reinforce_pp with the group's mean as baseline divides by that of what is left of "
            "them, and is the nearest"
        )
        return {"name": "reinforce_pp", "baseline": "group"}
    config.say(
        "advantages are divided by the group's deviation + 1e-6, TRL's + 1e-4: they differ by "
        "0.02 % at a deviation of 0.5"
    )
    return {"name": "group", "scale": "std"}


def _loss(config: TrlConfig) -> dict[str, Any]:
    """Policy loss and reducer.

    Raises:
        ValueError: A loss or combination that there is nothing like.
    """
    kind, level, low = config["loss_type"], config["importance_sampling_level"], config["epsilon"]
    high = config["epsilon_high"] if config["epsilon_high"] is not None else low
    dual, most = config["delta"], int(config["max_completion_length"])
    clip: dict[str, Any] = {"name": "clip", "low": float(low), "high": float(high)}
    if dual is not None:
        clip["dual"] = float(dual)
    if level == "sequence":
        clip = {"name": "gspo", "low": float(low), "high": float(high)}
        if dual is not None:
            config.say(f"left out: delta = {dual}: the ratio of a completion is clipped once")
    if level == "sequence" and kind in ("cispo", "sapo", "vespo"):
        config.say(f"importance_sampling_level = sequence: {kind} takes its own ratio")
    if kind == "bnpo":
        config.say("bnpo is a mean over the tokens of a step; TRL's over those of a micro-batch")
    token, sequence = {"name": "token_mean"}, {"name": "sequence_mean"}
    choices: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "grpo": (clip, sequence),
        "bnpo": (clip, token),
        "dapo": (clip, token),
        "dr_grpo": (clip, {"name": "constant", "denominator": most}),
        "luspo": (clip, {"name": "constant", "denominator": 1}),
        "sapo": (
            {
                "name": "sapo",
                "positive": float(config["sapo_temperature_pos"]),
                "negative": float(config["sapo_temperature_neg"]),
            },
            sequence,
        ),
        "vespo": (
            {
                "name": "vespo",
                "k_positive": float(config["vespo_k_pos"]),
                "lam_positive": float(config["vespo_lambda_pos"]),
                "k_negative": float(config["vespo_k_neg"]),
                "lam_negative": float(config["vespo_lambda_neg"]),
            },
            token,
        ),
        "cispo": ({"name": "cispo", "low": 1.0, "high": float(high) - 1}, token),
    }
    if kind not in choices:
        raise ValueError(f"loss_type = {kind!r} is unknown; take one of {', '.join(choices)}")
    if kind == "cispo" and high <= 1:
        raise ValueError(
            f"loss_type = cispo with epsilon_high = {high}: it is the largest weight itself, and "
            "above 1 in the paper; set epsilon_high, such as 5.0"
        )
    loss, reducer = choices[kind]
    return {"policy_loss": loss, "reducer": reducer}


def _correction(config: TrlConfig) -> dict[str, Any]:
    """What is done about the engine's probabilities, which only vLLM's differ in."""
    mode, wanted = config["vllm_importance_sampling_mode"], config["use_vllm"]
    wanted = config["vllm_importance_sampling_correction"] and wanted
    most, least = (config[f"vllm_importance_sampling_clip_{end}"] for end in ("max", "min"))
    if not wanted or config["loss_type"] == "vespo":
        return {"name": "none"}
    level, _, how = str(mode).partition("_")
    if how == "mask":
        low, high = float(least or 0.0), float(most if most is not None else 1e9)
        return {"name": "masked", "level": level, "low": low, "high": high}
    if least is not None:
        config.say(f"left out: vllm_importance_sampling_clip_min = {least}: weights have a cap")
    cap = float(most if most is not None else 1e9)
    return {"name": "truncated", "level": level, "cap": cap}


def _filters(config: TrlConfig) -> list[dict[str, Any]]:
    filters: list[dict[str, Any]] = []
    share, limit = config["top_entropy_quantile"], config["off_policy_mask_threshold"]
    if share < 1:
        chosen = {"name": "top_entropy", "fraction": float(share), "pool": "micro_batch"}
        filters.append({**chosen, "rescale": False})
    if limit is not None:
        filters.append({"name": "off_policy", "limit": float(limit)})
    return filters


def _regularisers(config: TrlConfig) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    beta, weighted = float(config["beta"]), bool(config["use_bias_correction_kl"])
    if beta:
        found.append({"name": "kl", "coefficient": beta, "estimator": "k3", "weighted": weighted})
        if weighted and config["importance_sampling_level"] == "sequence":
            config.say("the KL term is weighted by each token's ratio, TRL's by the completion's")
    bonus, most = float(config["entropy_coef"]), config["entropy_coef_max"]
    step, target = config["entropy_coef_delta"], config["entropy_target"]
    if config["use_adaptive_entropy"]:
        adaptive = {"name": "adaptive_entropy", "target": float(target), "step": float(step)}
        found.append({**adaptive, "initial": bonus, "limit": float(most)})
    elif bonus:
        found.append({"name": "entropy", "coefficient": bonus})
    if (bonus or config["use_adaptive_entropy"]) and config["loss_type"] not in ("dapo", "bnpo"):
        config.say("the entropy bonus is reduced as the loss is; TRL's is a mean over tokens")
    return found
