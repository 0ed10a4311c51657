"""Preferences in: pairs (prompt, chosen, rejected), or single completions with a label.

A row is one of

    {"prompt": text or messages, "chosen": ..., "rejected": ...}
    {"chosen": messages, "rejected": messages}          the prompt is what both begin with
    {"prompt": text or messages, "completion": ..., "label": true or false}

where a completion is text, or messages of which the last is the assistant's; earlier ones repeat
the prompt, as several data sets of the Hub have it. Both sides then have to repeat the same one.
Rows that no preference can be learned from (a side empty, both sides the same) are errors by
default.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rlvr.data.consistency import prompt_key, short
from rlvr.data.files import read_rows
from rlvr.data.hub import read_hub_rows
from rlvr.data.rows import RowError
from rlvr.data.templates import Template
from rlvr.settings import Settings
from rlvr.types import Message

Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """Completions of one prompt: chosen and rejected, or one that is desirable or is not.

    ``completions`` are (chosen, rejected) where ``desirable`` is None, else a single one.
    ``scores`` belong to the completions, where the data has them.
    """

    messages: Messages
    completions: tuple[str, ...]
    desirable: bool | None = None
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class EncodedPreference:
    """A preference as token ids; completions end with the end token."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    desirable: bool | None = None
    scores: tuple[float, ...] | None = None


class PreferenceColumns(Settings):
    """Which columns hold what."""

    prompt: str = "prompt"
    """Column with the prompt; it may be missing where both sides are whole conversations."""
    chosen: str = "chosen"
    """Column with the better completion."""
    rejected: str = "rejected"
    """Column with the worse completion."""
    completion: str = "completion"
    """Column with a single completion."""
    label: str = "label"
    """Column with true for a desirable single completion and false for another."""
    chosen_score: str = "chosen_score"
    """Column with the chosen completion's score, if there is one (the loss odpo needs it)."""
    rejected_score: str = "rejected_score"
    """Column with the rejected completion's score."""


class PreferenceRows(Settings):
    """Which rows are taken."""

    skip: int = Field(0, ge=0)
    """Leave out the first rows."""
    limit: int | None = Field(None, ge=1)
    """Take at most this many rows."""
    bad_rows: Literal["error", "drop"] = "error"
    """Rows that no preference can be learned from: refuse, or drop them with a warning."""
    columns: PreferenceColumns = PreferenceColumns()
    """Which columns hold what."""


class PreferenceFile(PreferenceRows):
    """A local file of preferences: .jsonl, .json (a list of objects), .csv or .parquet."""

    name: Literal["file"] = "file"
    """Preferences from a local file."""
    path: Path
    """The file; its ending says the format."""


class PreferenceHub(PreferenceRows):
    """Preferences from a data set of the Hub by its id, or from a local data set folder."""

    name: Literal["hub"] = "hub"
    """Preferences through the ``datasets`` library."""
    path: str
    """Id on the Hub or a local folder."""
    subset: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
    """Split; slices such as "train[:100]" work."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; a commit makes a run repeatable."""


PreferenceSource = Annotated[PreferenceFile | PreferenceHub, Field(discriminator="name")]


def load_preferences(
    source: PreferenceFile | PreferenceHub, kind: Literal["pairs", "labelled"]
) -> list[Preference]:
    """Read and check preferences.

    Args:
        source: Where they are.
        kind: What the loss learns from: pairs, or single completions with a label.

    Raises:
        ValueError: No such data, or a row that nothing can be learned from; it is named.
    """
    if isinstance(source, PreferenceFile):
        rows, where = read_rows(source.path), str(source.path)
    else:
        rows, where = read_hub_rows(source)
    end = None if source.limit is None else source.skip + source.limit
    rows = rows[source.skip : end]
    if not rows:
        raise ValueError(f"{where}: there are no rows (after skip = {source.skip})")
    read = _pair if kind == "pairs" else _labelled
    found, faults = [], []
    for row in rows:
        try:
            found.append(read(row.values, source.columns))
        except RowError as fault:
            message = f"{where}, {row.label}: {fault}"
            if source.bad_rows == "error":
                raise ValueError(message) from None
            faults.append(message)
    if faults:
        warnings.warn(
            f"{where}: dropped {len(faults)} of {len(rows)} rows, the first: {faults[0]}",
            stacklevel=2,
        )
    if not found:
        raise ValueError(f"{where}: no usable row is left")
    return found


def encode_preferences(
    preferences: Sequence[Preference],
    template: Template,
    tokenizer: Any,  # noqa: ANN401
    *,
    max_prompt_tokens: int,
    max_completion_tokens: int,
    say: Callable[[str], None],
) -> list[EncodedPreference]:
    """Token ids; preferences over a limit are left out (and counted), never cut.

    Raises:
        ValueError: Nothing is within the limits; a chosen and a rejected completion of different
            text have the same tokens.
    """
    template.check(tokenizer)
    kept, dropped = [], 0
    for item in preferences:
        prompt = tuple(template.encode(item.messages, tokenizer))
        completions = tuple(
            (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)
            for text in item.completions
        )
        if len(completions) == 2 and completions[0] == completions[1]:
            raise ValueError(
                f"both sides of the prompt {short(item.messages[-1]['content'])} have the same "
                "tokens; remove the pair"
            )
        longest = max(map(len, completions))
        if len(prompt) > max_prompt_tokens or longest > max_completion_tokens:
            dropped += 1
            continue
        kept.append(EncodedPreference(prompt, completions, item.desirable, item.scores))
    if not kept:
        raise ValueError(
            f"none of {dropped} preferences is within data.max_prompt_tokens = {max_prompt_tokens} "
            f"and data.max_completion_tokens = {max_completion_tokens}; raise them"
        )
    if dropped:
        say(f"dropped {dropped} of {dropped + len(kept)} preferences that are over a token limit")
    return kept


def _pair(row: Mapping[str, Any], columns: PreferenceColumns) -> Preference:
    if columns.label in row and columns.chosen not in row:
        raise RowError(
            "it is a single completion with a label, but the loss learns from pairs; choose the "
            "loss kto or apo_zero_unpaired, or data with chosen and rejected"
        )
    prompt = _prompt(row.get(columns.prompt))
    chosen, rejected = (_side(row, name) for name in (columns.chosen, columns.rejected))
    if prompt is None:
        if chosen[0] is None:
            raise RowError(
                f"there is no prompt (column {columns.prompt!r}), and {columns.chosen} is no "
                "conversation that holds one"
            )
        prompt = chosen[0]
    for name, (own, _) in ((columns.chosen, chosen), (columns.rejected, rejected)):
        if own is not None and prompt_key(own) != prompt_key(prompt):
            raise RowError(
                f"{name} answers another prompt, {short(own[-1]['content'])}, than "
                f"{short(prompt[-1]['content'])}; both sides need the same: in an implicit reward "
                "the partition function log Z(x) cancels within a prompt alone (task: "
                "reward_model takes pairs across prompts)"
            )
    texts = (chosen[1], rejected[1])
    if texts[0].strip() == texts[1].strip():
        raise RowError(f"chosen and rejected are the same, {short(texts[0])}; remove the row")
    scores = [row.get(name) for name in (columns.chosen_score, columns.rejected_score)]
    numbers = [float(s) for s in scores if isinstance(s, int | float) and not isinstance(s, bool)]
    return Preference(prompt, texts, scores=tuple(numbers) if len(numbers) == 2 else None)


def _labelled(row: Mapping[str, Any], columns: PreferenceColumns) -> Preference:
    if columns.chosen in row and columns.completion not in row:
        raise RowError(
            "it is a pair, but the loss learns from single completions with a label; choose "
            "another loss, or data with completion and label"
        )
    own, text = _side(row, columns.completion)
    prompt = _prompt(row.get(columns.prompt)) or own
    if prompt is None:
        raise RowError(f"there is no prompt (column {columns.prompt!r})")
    label = row.get(columns.label)
    if not isinstance(label, bool):
        raise RowError(f"{columns.label} = {short(label)} is neither true nor false")
    return Preference(prompt, (text,), desirable=label)


def _prompt(value: object) -> Messages | None:
    if value is None:
        return None
    if isinstance(value, str):
        if not value.strip():
            raise RowError("the prompt is empty")
        return (Message(role="user", content=value),)
    return _messages(value, "prompt")


def _side(row: Mapping[str, Any], name: str) -> tuple[Messages | None, str]:
    """The prompt that a side repeats, if it does, and its completion's text."""
    value = row.get(name)
    if value is None:
        raise RowError(f"{name} is missing; it needs text or messages")
    if isinstance(value, str):
        own, text = None, value
    else:
        turns = _messages(value, name)
        if turns[-1]["role"] != "assistant":
            raise RowError(f"{name} ends with role {turns[-1]['role']!r}, not with the assistant's")
        own, text = turns[:-1] or None, turns[-1]["content"]
    if not text.strip():
        raise RowError(f"{name} is empty; remove the row")
    return own, text


def _messages(value: object, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} = {short(value)} is neither text nor a list of messages")
    for turn in value:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise RowError(f"{name} holds {short(turn)}, which is no message with a content")
        if turn.get("role") not in ("system", "user", "assistant"):
            raise RowError(f"{name} holds a message of role {turn.get('role')!r}")
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in value)
