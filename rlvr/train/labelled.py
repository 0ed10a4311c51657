"""Labelled responses as token ids, for the tasks that learn reward models from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlvr.data import load_template
from rlvr.data.responses import encode_responses, load_responses
from rlvr.rm import Responses
from rlvr.train.log import say
from rlvr.train.prm_recipe import LabelledData


def labelled_responses(
    name: str,
    sources: Sequence[Path],
    settings: LabelledData,
    tokenizer: Any,  # noqa: ANN401
    console: Console,
) -> Responses:
    """Responses of files and run folders that are within the limits.

    Args:
        name: What they are, for messages.
        sources: Where they are.
        settings: Template and limits.
        tokenizer: The model's.
        console: Where dropped ones are counted.

    Raises:
        ValueError: They cannot be read, or none is within the limits.
    """
    responses = load_responses(sources)
    encoded = encode_responses(responses, load_template(settings.template), tokenizer)
    kept = within_limits(name, encoded, settings, console)
    return Responses(
        tuple(encoded[row][0] for row in kept),
        tuple(encoded[row][1] for row in kept),
        torch.tensor([float(bool(responses[row].correct)) for row in kept]),
        tuple(responses[row].problem for row in kept),
    )


def within_limits(
    name: str,
    encoded: Sequence[tuple[Sequence[int], Sequence[int]]],
    settings: LabelledData,
    console: Console,
) -> list[int]:
    """The places of the (prompt, response) pairs that no limit leaves out.

    Raises:
        ValueError: There are none.
    """
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
        say(console, f"{name}: dropped {dropped} of {len(encoded)} responses over a token limit")
    return kept
