"""Build one model folder from a run's weights, whatever engine and number of processes wrote them.

Checkpoints already contain whole tensors: sharded ones are gathered when they are written. This
module merges adapters, rounds if asked to, and adds the files that a user needs to prompt and stop
the model as in training.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from rlvr.data import load_template
from rlvr.data.templates import TemplateSettings, begins_texts
from rlvr.hub.source import Source
from rlvr.policy.folders import find_model
from rlvr.policy.loading import load_policy, load_tokenizer, text_end_ids
from rlvr.reward_models.heads import CONFIG as HEAD_CONFIG
from rlvr.rl.recipe import RLRecipe
from rlvr.rollout.weight_sync import write_model
from rlvr.tasks.reward_model import RewardModelRecipe

Dtype = Literal["float32", "bfloat16"]

SHARD_BYTES = 4 * 2**30
"""Maximum bytes of one file of merged or rounded weights."""


def write_weights(
    source: Source,
    folder: Path,
    *,
    dtype: Dtype = "float32",
    adapter_only: bool = False,
    link: bool = False,
) -> None:
    """Write model (or adapter), tokenizer and generation config into ``folder``.

    Args:
        source: The weights.
        folder: Target folder; it is created.
        dtype: Type of the weights. float32 is the learner's.
        adapter_only: Copy adapters without merging them.
        link: Use hard links for files that are copied unchanged.

    Raises:
        ValueError: ``adapter_only`` is set but there are no adapters, the base model is missing, or
            a reward model is to be rounded.
    """
    if dtype != "float32" and isinstance(source.recipe, RewardModelRecipe):
        raise ValueError(
            f"--dtype {dtype} would round the reward model without its head; leave it out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(source.tokenizer)
    if adapter_only:
        _write_adapter(source, folder, link)
    else:
        base = (
            _take_over(source, folder, link)
            if not source.adapted and dtype == "float32"
            else _write_merged(source, folder, dtype)
        )
        generation_config(source, base, tokenizer).save_pretrained(folder)
    with_chat_template(tokenizer, source.recipe.data.template)
    tokenizer.save_pretrained(folder)


def _write_merged(source: Source, folder: Path, dtype: Dtype) -> Any:  # noqa: ANN401
    """Load the model on the CPU, merge and round it; return its generation config."""
    policy = load_policy(source.model, saved=source.saved, device=torch.device("cpu"))
    write_model(policy, folder, getattr(torch, dtype), SHARD_BYTES)
    return policy.causal_lm.generation_config


def _take_over(source: Source, folder: Path, link: bool) -> Any:  # noqa: ANN401
    """Copy the files unchanged; return the generation config among them."""
    from transformers import GenerationConfig

    patterns = ["*.safetensors", "*.safetensors.index.json", "config.json", HEAD_CONFIG]
    if source.recipe.model.trust_remote_code:
        patterns.append("*.py")
    for pattern in patterns:
        for path in source.folder.glob(pattern):
            _bring(path, folder / path.name, link)
    if (source.folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(source.folder)
    return None


def _write_adapter(source: Source, folder: Path, link: bool) -> None:
    if not source.adapted:
        reason = (
            "trained all weights, so there is no adapter to export"
            if source.recipe.model.lora is None
            else "has no checkpoint left, only the merged model"
        )
        raise ValueError(f"run {str(source.run)!r} {reason}; remove --adapter-only")
    base = source.base or source.recipe.model.path
    if find_model(source.model).adapters:
        raise ValueError(
            f"run {str(source.run)!r} trained an adapter of {base!r}, which is an adapter itself: "
            "alone it has no base model; remove --adapter-only"
        )
    for path in source.folder.glob("*.safetensors"):
        _bring(path, folder / path.name, link)
    config = json.loads((source.folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    config["revision"] = None if source.base else source.recipe.model.revision
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _bring(path: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(path, target)
            return
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copyfile(path, target)


def generation_config(source: Source, base: Any, tokenizer: Any) -> Any:  # noqa: ANN401
    """Sampling settings: those of the run if it sampled, or else those of the base model's authors.

    Every token that ended a completion in training is an end token. No length limit is set, because
    some servers would use it as their own limit.
    """
    from transformers import GenerationConfig

    ends = list(text_end_ids(base, tokenizer))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": pad,
    }
    if isinstance(source.recipe, RLRecipe):
        drawn = source.recipe.rollout.sampling
        how = {"temperature": drawn.temperature, "top_p": drawn.top_p, "top_k": drawn.top_k}
        return GenerationConfig(**tokens, do_sample=True, **how)
    config = GenerationConfig() if base is None else base
    for name, value in tokens.items():
        setattr(config, name, value)
    return config


def with_chat_template(tokenizer: Any, template: TemplateSettings) -> None:  # noqa: ANN401
    """Give the tokenizer the chat template of the run's prompts.

    If the template names a Jinja file, that file is used. A plain-text template is written as Jinja
    if the tokenizer has none. Otherwise the tokenizer keeps its own.

    Raises:
        ValueError: The Jinja file no longer exists.
    """
    if template.chat_template is not None:
        if not template.chat_template.is_file():
            raise ValueError(
                f"the run's chat template {str(template.chat_template)!r} no longer exists; "
                "restore it, or export from the folder in which the run was started"
            )
        tokenizer.chat_template = template.chat_template.read_text(encoding="utf-8")
    elif template.mode == "text" and not tokenizer.chat_template:
        tokenizer.chat_template = text_as_jinja(template, begins_texts(tokenizer))


def text_as_jinja(template: TemplateSettings, begins: bool) -> str:
    """A plain-text template as a chat template for a single user message."""
    marker = "\0"
    loaded = load_template(template)
    text = loaded.render([{"role": "user", "content": marker}], None)
    before, _, after = text.partition(marker)
    parts = ["bos_token"] if begins else []
    parts += [_literal(before)] if before else []
    parts += ["messages[0]['content']"]
    parts += [_literal(after)] if after else []
    refusal = "this model was trained on single questions: give one user message"
    return (
        "{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}"
        f"{{{{- raise_exception({_literal(refusal)}) -}}}}"
        "{%- endif -%}"
        f"{{{{- {' ~ '.join(parts)} -}}}}"
    )


def _literal(text: str) -> str:
    """A text as a Jinja literal, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
