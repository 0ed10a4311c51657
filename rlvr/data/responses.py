"""Sampled responses with their labels in, from JSON lines of many origins.

A row is

    {"prompt": text or messages, "response": text, "correct": true or false, ...}

``completion`` may stand for ``response`` and ``label`` for ``correct``. Without either label the
verifier judges the response against ``answer``, the reference. Responses of one problem belong
together: by ``problem_id``, ``problem``, or else by their prompt. ``extracted`` is the answer that
the verifier found in the response. A run's folders ``completions`` and ``evaluations`` hold such
rows, and a run folder stands for the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reward
from rlvr.data.consistency import short
from rlvr.data.files import read_rows
from rlvr.data.rows import Row
from rlvr.data.templates import Template
from rlvr.types import Message


@dataclass(frozen=True, slots=True)
class Response:
    """A response to a problem; ``correct`` and ``extracted`` are None where nobody knows.

    ``finished`` is False where it was cut at a token limit. ``row`` is what it was read from.
    """

    problem: str
    messages: tuple[Message, ...]
    text: str
    correct: bool | None
    extracted: str | None
    finished: bool
    row: Mapping[str, Any]


def load_responses(sources: Sequence[Path], *, labelled: bool = True) -> list[Response]:
    """Read the responses of files and run folders.

    Args:
        sources: JSONL (or .json, .csv, .parquet) files, or run folders.
        labelled: Refuse a row whose response nobody can judge.

    Raises:
        ValueError: No such file, or a row that is no response; it is named.
    """
    found = []
    for source in sources:
        for file in response_files(source):
            found += [_response(row, str(file), labelled) for row in read_rows(file)]
    if not found:
        raise ValueError(f"{', '.join(map(str, sources))}: there are no responses")
    return found


def encode_responses(
    responses: Sequence[Response],
    template: Template,
    tokenizer: Any,  # noqa: ANN401
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids of prompt and response, tokenised once; the end token is put last.

    Raises:
        ValueError: The template does not fit the tokenizer or a prompt.
    """
    template.check(tokenizer)
    prompts: dict[tuple[tuple[str, str], ...], tuple[int, ...]] = {}
    encoded = []
    for item in responses:
        key = tuple((turn["role"], turn["content"]) for turn in item.messages)
        if key not in prompts:
            prompts[key] = tuple(template.encode(item.messages, tokenizer))
        ids = tokenizer.encode(item.text, add_special_tokens=False)
        encoded.append((prompts[key], (*ids, tokenizer.eos_token_id)))
    return encoded


def response_files(source: Path) -> list[Path]:
    """The files of a source: itself, or what a run folder kept.

    Raises:
        ValueError: A run folder without completions.
    """
    folder = source / "completions"
    if not folder.is_dir():
        return [source]
    files = sorted(folder.glob("step_*.jsonl"))
    if not files:
        raise ValueError(f"run folder {str(source)!r} kept no completions; give a JSONL file")
    return files


def _response(row: Row, where: str, labelled: bool) -> Response:
    values, place = row.values, f"{where}, {row.label}"
    text = values.get("response", values.get("completion"))
    if not isinstance(text, str):
        raise ValueError(f"{place}: response = {short(text)} is no text; name the column response")
    messages = messages_of(values.get("prompt"), place)
    correct = values.get("correct", values.get("label"))
    extracted, gold = values.get("extracted"), values.get("answer")
    if correct is None and isinstance(gold, str):
        grade = reward.grade(text, gold)
        correct, extracted = grade.correct, grade.extracted
    if labelled and not isinstance(correct, bool):
        raise ValueError(
            f"{place}: correct = {short(correct)} is neither true nor false, and there is no "
            "reference in column answer to judge the response by; add one of them"
        )
    problem = values.get("problem_id", values.get("problem"))
    return Response(
        str(problem) if problem is not None else repr(messages),
        messages,
        text,
        correct if isinstance(correct, bool) else None,
        None if extracted is None else str(extracted),
        values.get("finish_reason") != "length",
        values,
    )


def messages_of(value: object, place: str) -> tuple[Message, ...]:
    """A prompt as messages; a text is one of the user.

    Raises:
        ValueError: It is neither; ``place`` names its row.
    """
    if isinstance(value, str) and value:
        return (Message(role="user", content=value),)
    turns = value if isinstance(value, list) else []
    if not turns or not all(
        isinstance(turn, Mapping)
        and turn.get("role") in ("system", "user", "assistant")
        and isinstance(turn.get("content"), str)
        for turn in turns
    ):
        raise ValueError(f"{place}: prompt = {short(value)} is neither text nor a list of messages")
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)
