"""Encode all prompts of a run once; prompts over the limit are dropped and counted, never cut.

A cut prompt is a different problem with the same answer, which would teach the policy to guess.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlvr.data.templates import Template
from rlvr.types import Problem


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem and the token ids that the policy continues."""

    problem: Problem
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """The prompts within the limit, in order, and what was dropped."""

    prompts: tuple[Prompt, ...]
    dropped: int
    longest_dropped_id: str | None
    longest_dropped_tokens: int
    limit: int

    @property
    def notice(self) -> str | None:
        """One line for the log about dropped prompts; None if there are none."""
        if not self.dropped:
            return None
        return (
            f"dropped {self.dropped} of {self.dropped + len(self.prompts)} prompts longer than "
            f"{self.limit} tokens; the longest is {self.longest_dropped_id!r} with "
            f"{self.longest_dropped_tokens} tokens"
        )


def encode_prompts(
    problems: Sequence[Problem],
    template: Template,
    tokenizer: Any,  # noqa: ANN401  (transformers is untyped here)
    max_prompt_tokens: int,
) -> EncodedPrompts:
    """Encode every problem, dropping prompts of more than ``max_prompt_tokens`` tokens.

    In chat mode it warns once if problems contain special tokens of the tokenizer as text, because
    they would end a turn in the middle of a problem.

    Raises:
        ValueError: The limit is not positive; no prompt is within it; the template does not fit the
            tokenizer or a problem.
    """
    if max_prompt_tokens < 1:
        raise ValueError(f"max_prompt_tokens={max_prompt_tokens} must be at least 1")
    template.check(tokenizer)
    if template.settings.mode == "chat":
        _warn_of_special_tokens(problems, tokenizer)
    encoded = [_encoded(problem, template, tokenizer) for problem in problems]
    kept = tuple(prompt for prompt in encoded if len(prompt.ids) <= max_prompt_tokens)
    longest = max(encoded, key=lambda prompt: len(prompt.ids), default=None)
    if not kept:
        which = (
            f"; the longest is {longest.problem.id!r} with {len(longest.ids)}" if longest else ""
        )
        raise ValueError(
            f"none of {len(encoded)} prompts is within max_prompt_tokens={max_prompt_tokens} "
            f"tokens{which}; raise the limit or use a shorter template"
        )
    over = len(kept) < len(encoded) and longest is not None
    return EncodedPrompts(
        prompts=kept,
        dropped=len(encoded) - len(kept),
        longest_dropped_id=longest.problem.id if over and longest else None,
        longest_dropped_tokens=len(longest.ids) if over and longest else 0,
        limit=max_prompt_tokens,
    )


def _encoded(problem: Problem, template: Template, tokenizer: Any) -> Prompt:  # noqa: ANN401
    try:
        return Prompt(problem, tuple(template.encode(problem.messages, tokenizer)))
    except ValueError as error:
        raise ValueError(f"problem {problem.id!r}: {error}") from None


def _warn_of_special_tokens(problems: Sequence[Problem], tokenizer: Any) -> None:  # noqa: ANN401
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    hits = [
        (problem.id, token)
        for problem in problems
        if (token := _first_within(problem, special)) is not None
    ]
    if hits:
        warnings.warn(
            f"{len(hits)} problems contain a special token of the tokenizer as text, the first is "
            f"{hits[0][0]!r} ({hits[0][1]!r}); the model will read it as the token itself",
            stacklevel=3,
        )


def _first_within(problem: Problem, special: Sequence[str]) -> str | None:
    texts = [turn["content"] for turn in problem.messages]
    return next((token for token in special if any(token in text for text in texts)), None)
