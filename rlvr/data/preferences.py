"""Load preferences: pairs (prompt, chosen, rejected), or single completions with a label.

A row is one of

    {"prompt": text or messages, "chosen": ..., "rejected": ...}
    {"chosen": ..., "rejected": ...}                    the prompt is their common beginning
    {"prompt": text or messages, "completion": ..., "label": true or false}

Losses that learn from single completions take a pair as two: a desirable one and an undesirable.
These are TRL's data set types; tests hold them against its utilities, which are not called because
they take ten seconds to import, divide words (:func:`_shared_beginning`), lose the last letter of a
side that the other goes on from, and lose a prompt that is a text beside sides of one message.

where a completion is text, or messages that end with the assistant's; earlier messages repeat the
prompt, as in several data sets on the Hub, and both sides must then repeat the same prompt. Rows
from which no preference can be learned (an empty side, two equal sides) are errors by default.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rlvr.data.cells import as_number, as_truth, given
from rlvr.data.consistency import prompt_key, short
from rlvr.data.hub import read_hub_rows
from rlvr.data.local_file import read_rows
from rlvr.data.messages import (
    MessageError,
    Messages,
    Reply,
    holds_messages,
    read_prompt,
    read_reply,
)
from rlvr.data.rows import RowError
from rlvr.data.templates import Template
from rlvr.settings import Settings
from rlvr.types import Message


@dataclass(frozen=True, slots=True)
class Preference:
    """Completions of one prompt: chosen and rejected, or one that is desirable or undesirable.

    ``completions`` are (chosen, rejected) if ``desirable`` is None, otherwise a single one.
    ``scores`` are the completions' scores, if the data has them; ``keys`` is what each
    completion's message says besides its content, None for a text.
    """

    messages: Messages
    completions: tuple[str, ...]
    desirable: bool | None = None
    scores: tuple[float, ...] | None = None
    keys: tuple[Mapping[str, Any] | None, ...] = (None, None)


@dataclass(frozen=True, slots=True)
class EncodedPreference:
    """A preference as token ids; completions end with the end token."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    desirable: bool | None = None
    scores: tuple[float, ...] | None = None


class PreferenceColumns(Settings):
    """Names of the columns."""

    prompt: str = "prompt"
    """Column with the prompt; it may be missing if both sides are whole conversations."""
    chosen: str = "chosen"
    """Column with the better completion."""
    rejected: str = "rejected"
    """Column with the worse completion."""
    completion: str = "completion"
    """Column with a single completion."""
    label: str = "label"
    """Column with true for a desirable single completion and false for an undesirable one."""
    chosen_score: str = "chosen_score"
    """Column with the chosen completion's score, if it exists (the loss odpo needs it)."""
    rejected_score: str = "rejected_score"
    """Column with the rejected completion's score."""


class PreferenceRows(Settings):
    """Which rows to use."""

    skip: int = Field(0, ge=0)
    """Number of rows to skip at the start."""
    limit: int | None = Field(None, ge=1)
    """Maximum number of rows to use."""
    bad_rows: Literal["error", "drop"] = "error"
    """Rows from which no preference can be learned: "error" refuses them, "drop" drops them with a
    warning."""
    columns: PreferenceColumns = PreferenceColumns()
    """Names of the columns."""


class PreferenceFile(PreferenceRows):
    """A local file of preferences: .jsonl, .json (a list of objects), .csv or .parquet; or a folder
    that ``save_to_disk`` of ``datasets`` wrote."""

    name: Literal["file"] = "file"
    """Preferences from a local file."""
    path: Path
    """Path of the file, whose ending gives the format, or of the folder."""


class PreferenceHub(PreferenceRows):
    """Preferences from a data set on the Hub, or from a local data set folder."""

    name: Literal["hub"] = "hub"
    """Preferences loaded with the ``datasets`` library."""
    path: str
    """Id on the Hub, or a local folder."""
    subset: str | None = None
    """Configuration of the data set, if it has several."""
    split: str = "train"
    """Split; slices such as "train[:100]" are allowed."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; name a commit to make a run repeatable."""


PreferenceSource = Annotated[PreferenceFile | PreferenceHub, Field(discriminator="name")]


def load_preferences(
    source: PreferenceFile | PreferenceHub, kind: Literal["pairs", "labelled"]
) -> list[Preference]:
    """Read and check preferences.

    Args:
        source: Where to find them.
        kind: What the loss learns from: pairs, or single completions with a label.

    Raises:
        ValueError: The data does not exist, or nothing can be learned from a row, which is named.
    """
    if isinstance(source, PreferenceFile):
        rows = read_rows(source.path, for_folders=", or load it with name: hub")
        where = str(source.path)
    else:
        rows, where = read_hub_rows(source)
    end = None if source.limit is None else source.skip + source.limit
    rows = rows[source.skip : end]
    if not rows:
        raise ValueError(f"{where}: no rows are left after skip = {source.skip}; lower it")
    read = read_pair if kind == "pairs" else _labelled_or_pair
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
        raise ValueError(f"{where}: no usable row is left; check the rows")
    return found if kind == "pairs" else _unpaired(found)


def encode_preferences(
    preferences: Sequence[Preference],
    template: Template,
    tokenizer: Any,  # noqa: ANN401
    *,
    max_prompt_tokens: int,
    max_completion_tokens: int,
    notify: Callable[[str], None],
) -> list[EncodedPreference]:
    """Token ids of preferences; those over a limit are dropped and counted, never cut.

    Raises:
        ValueError: No preference is within the limits; or two different completions of one
            preference have the same tokens.
    """
    from rlvr.data.responses import ResponseEncoder  # the verifier's libraries are slow to load

    encode = ResponseEncoder(template, tokenizer)
    kept, dropped = [], 0
    for item in preferences:
        encoded = [
            encode(item.messages, text, keys)
            for text, keys in zip(item.completions, item.keys, strict=False)
        ]
        prompt, completions = encoded[0][0], tuple(ids for _, ids in encoded)
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
    encode.warn()
    if not kept:
        raise ValueError(
            f"none of {dropped} preferences is within data.max_prompt_tokens = {max_prompt_tokens} "
            f"and data.max_completion_tokens = {max_completion_tokens}; raise them"
        )
    if dropped:
        notify(
            f"dropped {dropped} of {dropped + len(kept)} preferences that are over a token limit"
        )
    return kept


def read_pair(row: Mapping[str, Any], columns: PreferenceColumns | None = None) -> Preference:
    """A row with a better and a worse completion.

    Raises:
        RowError: It is none, or nothing can be learned from it.
    """
    columns = columns or PreferenceColumns()
    if columns.label in row and columns.chosen not in row:
        raise RowError(
            "it is a single completion with a label, but the loss learns from pairs; use the loss "
            "kto or apo_zero_unpaired, or data with chosen and rejected"
        )
    prompt = _prompt(given(row, columns.prompt))
    chosen, rejected = (_side(row, name) for name in (columns.chosen, columns.rejected))
    if prompt is None or (_is_text(row, columns.prompt) and chosen.before):
        # Beside conversations a text only repeats a part of the prompt that they begin with.
        prompt, chosen, rejected = _without_prompt(chosen, rejected, columns)
    for name, side in ((columns.chosen, chosen), (columns.rejected, rejected)):
        if side.before and prompt_key(side.before) != prompt_key(prompt):
            raise RowError(
                f"{name} answers another prompt, {short(side.before[-1]['content'])}, than "
                f"{short(prompt[-1]['content'])}; both sides need the same prompt: in an implicit "
                "reward the partition function log Z(x) cancels only within a prompt (task: "
                "reward_model accepts pairs across prompts)"
            )
    if chosen.says_the_same(rejected):
        raise RowError(f"chosen and rejected are equal, {short(chosen.text)}; remove the row")
    scores = [as_number(row.get(name)) for name in (columns.chosen_score, columns.rejected_score)]
    numbers = tuple(score for score in scores if score is not None)
    return Preference(
        prompt,
        (chosen.text, rejected.text),
        scores=numbers if len(numbers) == 2 else None,
        keys=(chosen.keys, rejected.keys),
    )


def _without_prompt(
    chosen: Reply, rejected: Reply, columns: PreferenceColumns
) -> tuple[Messages, Reply, Reply]:
    """The prompt that both sides begin with, and the sides behind it."""
    if before := chosen.before or rejected.before:
        return before, chosen, rejected
    of_text = chosen.keys is None and rejected.keys is None
    shared = _shared_beginning(chosen.text, rejected.text) if of_text else ""
    if not shared.strip():
        raise RowError(
            f"there is no prompt (column {columns.prompt!r}), and {columns.chosen} and "
            f"{columns.rejected} begin with none: they are neither conversations nor texts with a "
            "common beginning"
        )
    one, other = (Reply((), side.text[len(shared) :], None) for side in (chosen, rejected))
    return (Message(role="user", content=shared),), one, other


def _shared_beginning(one: str, other: str) -> str:
    """The common beginning of two texts, up to the end of a word where it has several.

    White space before the texts part belongs to them, as in TRL's ``extract_prompt``; unlike there,
    a word is not divided, as the end of the prompt would be encoded otherwise than in the text.
    """
    same = (a == b for a, b in zip(one, other, strict=False))
    shared = one[: sum(1 for _ in takewhile(bool, same))]
    words = re.match(r"(.*\S)(?=\s)", shared, re.DOTALL)
    if words:
        return words.group(1)
    return shared[:-1] if shared in (one, other) else shared


def _labelled_or_pair(row: Mapping[str, Any], columns: PreferenceColumns) -> Preference:
    if given(row, columns.chosen) is not None and given(row, columns.completion) is None:
        return read_pair(row, columns)
    return _labelled(row, columns)


def _unpaired(found: Sequence[Preference]) -> list[Preference]:
    """Single completions: of pairs first the chosen, then the rejected.

    That is the order of TRL's ``unpair_preference_dataset``; side by side, the two of a prompt
    would be each other's neighbours, by which KTO estimates its baseline.
    """
    pairs = [item for item in found if item.desirable is None]
    return [item for item in found if item.desirable is not None] + [
        Preference(item.messages, (item.completions[k],), desirable=k == 0, keys=(item.keys[k],))
        for k in (0, 1)
        for item in pairs
    ]


def _labelled(row: Mapping[str, Any], columns: PreferenceColumns) -> Preference:
    reply = _side(row, columns.completion)
    prompt = _prompt(given(row, columns.prompt)) or reply.before
    if not prompt:
        raise RowError(f"there is no prompt (column {columns.prompt!r})")
    label = as_truth(row.get(columns.label))
    if label is None:
        raise RowError(
            f"{columns.label} = {short(row.get(columns.label))} is neither true nor false"
        )
    return Preference(prompt, (reply.text,), desirable=label, keys=(reply.keys,))


def _prompt(value: object) -> Messages | None:
    if value is None:
        return None
    if isinstance(value, str) and not value.strip():
        raise RowError("the prompt is empty")
    try:
        return read_prompt(value)
    except MessageError as error:
        raise RowError(f"prompt: {error}") from None


def _is_text(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    return isinstance(value, str) and not holds_messages(value)


def _side(row: Mapping[str, Any], name: str) -> Reply:
    """A completion of a row."""
    value = row.get(name)
    if value is None:
        raise RowError(f"{name} is missing; it must be text or messages")
    try:
        reply = read_reply(value)
    except MessageError as error:
        raise RowError(f"{name} {error}") from None
    if not reply.text.strip():
        raise RowError(f"{name} is empty; remove the row")
    return reply
