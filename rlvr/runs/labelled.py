"""Labelled responses, which both kinds of reward models learn from: their settings and loading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rlvr.data import TemplateChoice, load_template
from rlvr.lazy import torch
from rlvr.runs.base_recipe import BaseEvaluation, OfflineData

if TYPE_CHECKING:
    from rich.console import Console

    from rlvr.data.examples import Examples
    from rlvr.data.labelled_responses import Response

Encoded = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
"""Prompts and responses as token ids."""


class LabelledData(OfflineData):
    """Where labelled responses come from and how they become tokens."""

    sources: tuple[Path, ...] = Field(min_length=1)
    """Files (.jsonl, .json, .csv, .parquet), or folders that ``datasets`` saved, of responses
    (prompt, response, correct) or of preferences; or run folders, which stand for the completions
    that the run kept."""
    template: TemplateChoice = Field(default_factory=lambda: load_template("raw").settings)
    """How a prompt becomes tokens: the name of a built-in template, a YAML file, or the template
    itself. raw takes prompts that are rendered already, as a run keeps them."""
    per_step: int = Field(64, ge=1)
    """Responses (or pairs) of an optimizer step."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Responses to a longer prompt are left out (and counted), never cut."""
    max_response_tokens: int = Field(4096, ge=1)
    """Longer responses are left out (and counted), never cut."""


class LabelledEvaluation(BaseEvaluation):
    """Held-out responses that the reward model is measured on from time to time."""

    responses: dict[str, tuple[Path, ...]] = Field(default_factory=dict)
    """Labelled responses by name, as ``data.sources``."""


def labelled_responses(
    name: str,
    sources: Sequence[Path],
    settings: LabelledData,
    tokenizer: Any,  # noqa: ANN401
    console: Console,
) -> Examples:
    """Responses of files and run folders that are within the limits, with labels and problems.

    Args:
        name: What they are, for messages.
        sources: Where they are.
        settings: Template and limits.
        tokenizer: The model's.
        console: Where dropped ones are counted.

    Raises:
        ValueError: They cannot be read, or none is within the limits.
    """
    from rlvr.data.labelled_responses import encode_responses, load_responses

    responses = load_responses(sources)
    encoded = encode_responses(responses, load_template(settings.template), tokenizer)
    kept = within_limits(name, encoded, settings, console)
    return as_examples([responses[row] for row in kept], [encoded[row] for row in kept])


def as_examples(responses: Sequence[Response], encoded: Encoded) -> Examples:
    """Labelled responses, an example each."""
    from rlvr.data.examples import Examples

    labels_M = torch.tensor([float(bool(item.correct)) for item in responses])
    return Examples.of_one(
        [prompt for prompt, _ in encoded],
        [ids for _, ids in encoded],
        {"label": labels_M, "target": labels_M},
        [item.problem for item in responses],
    )


def within_limits(
    name: str, encoded: Encoded, settings: LabelledData, console: Console
) -> list[int]:
    """The places of the (prompt, response) pairs that no limit leaves out.

    Raises:
        ValueError: There are none.
    """
    from rlvr.runs.log import notify

    kept = [
        row
        for row, (prompt, ids) in enumerate(encoded)
        if len(prompt) <= settings.max_prompt_tokens and len(ids) <= settings.max_response_tokens
    ]
    if not kept:
        raise ValueError(
            f"{name}: none of {len(encoded)} responses is within data.max_prompt_tokens = "
            f"{settings.max_prompt_tokens} and data.max_response_tokens = "
            f"{settings.max_response_tokens}; raise them"
        )
    if len(kept) < len(encoded):
        dropped = len(encoded) - len(kept)
        notify(console, f"{name}: dropped {dropped} of {len(encoded)} responses over a token limit")
    return kept
