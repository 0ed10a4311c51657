"""Settings of TRL as they were written, with TRL's defaults, and what became of each."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

# They change nothing that is learnt; said nothing about.
# fmt: off
SILENT = frozenset({
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "dataset_num_proc", "ddp_timeout",
    "ddp_find_unused_parameters", "disable_tqdm", "do_train", "do_eval", "log_completions",
    "log_level", "logging_dir", "logging_first_step", "logging_steps", "logging_strategy",
    "num_completions_to_print", "log_unique_prompts", "overwrite_output_dir",
    "per_device_eval_batch_size", "preprocessing_num_workers", "remove_unused_columns",
    "save_safetensors", "save_only_model", "tf32", "gradient_checkpointing_kwargs",
    "pad_to_multiple_of", "padding_free", "dataset_streaming", "vllm_group_port",
    "vllm_server_timeout", "include_num_input_tokens_seen", "log_multimodal",
    "average_tokens_across_devices", "eval_packing", "eval_accumulation_steps", "bf16_full_eval",
    "ddp_backend", "local_rank", "use_cpu",
})
# fmt: on


class TrlConfig:
    """What a TRL configuration says, key by key.

    Args:
        values: As written.
        classes: The dataclasses of TRL that have its keys.

    Attributes:
        lines: What is to be said to the person: what differs or was left out.

    Raises:
        ValueError: A key that none of them has; with the nearest.
    """

    def __init__(self, values: Mapping[str, Any], classes: Iterable[type]) -> None:
        self.values = dict(values)
        self.defaults: dict[str, Any] = {}
        for cls in classes:
            for field in dataclasses.fields(cls):
                self.defaults.setdefault(field.name, _default(field))
        self.read: set[str] = set()
        self.lines: list[str] = []
        for key in self.values:
            if key not in self.defaults:
                close = difflib.get_close_matches(key, list(self.defaults), n=3)
                hint = f"; did you mean {' or '.join(close)}?" if close else ""
                raise ValueError(f"TRL has no setting {key!r} for this trainer{hint}")

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401
        self.read.add(key)
        return self.values.get(key, self.defaults[key])

    def given(self, key: str) -> bool:
        """Whether the file says it, with another value than the default."""
        return key in self.values and self.values[key] != self.defaults[key]

    def say(self, line: str) -> None:
        """Tell the person."""
        if line not in self.lines:
            self.lines.append(line)

    def without(self, reasons: Mapping[str, str]) -> None:
        """Say what was left out: all that the file says and nobody read.

        Args:
            reasons: Why, by key, and what to do instead.
        """
        for key, value in self.values.items():
            if key in self.read or key in SILENT or not self.given(key):
                continue
            reason = reasons.get(key, "it has no counterpart")
            self.say(f"left out: {key} = {value!r}: {reason}")


def _default(field: dataclasses.Field[Any]) -> Any:  # noqa: ANN401
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default
