"""Load sampled responses with their labels from JSON lines of various origins.

A row is

    {"prompt": text or messages, "response": ..., "correct": true or false (or 1 or 0), ...}
    {"prompt": ..., "chosen": ..., "rejected": ...}     a preference: a right response, a wrong one

where a response is text, or messages that end with the assistant's. ``completion`` may replace
``response``, and ``label`` may replace ``correct``. If a row has neither label, the verifier judges
the response against ``answer``, the reference. Responses are grouped by ``problem_id``, by
``problem``, or else by their prompt. ``extracted`` is the answer that the verifier found in the
response; where it is missing, it is looked for. A run's folders ``completions`` and
``evaluations`` contain such rows, and a run folder stands for its ``completions``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import reward
from reward.extract import extract
from reward.thoughts import left_open
from rlvr.data.cells import as_truth, given
from rlvr.data.consistency import short
from rlvr.data.kept import check_one_turn, was_cut
from rlvr.data.local_file import read_rows
from rlvr.data.messages import MessageError, Messages, read_prompt, read_reply
from rlvr.data.preferences import read_pair
from rlvr.data.responses import ResponseEncoder
from rlvr.data.rows import Row, RowError
from rlvr.data.templates import Template


@dataclass(frozen=True, slots=True)
class Response:
    """A response to a problem; ``correct`` and ``extracted`` are None if unknown.

    ``finished`` is False if it was cut at a token limit. ``row`` is the row from which it was read.
    """

    problem: str
    messages: Messages
    text: str
    correct: bool | None
    extracted: str | None
    finished: bool
    row: Mapping[str, Any]
    keys: Mapping[str, Any] | None = None
    """What the response's message says besides its content; None if the response is a text."""


def load_responses(sources: Sequence[Path], *, labelled: bool = True) -> list[Response]:
    """Read the responses of files and run folders.

    Args:
        sources: JSONL (or .json, .csv, .parquet) files, saved data sets, or run folders.
        labelled: Refuse a row whose response cannot be judged.

    Raises:
        ValueError: A file is missing, or a row is not a response; the message names it.
    """
    found: list[Response] = []
    unjudged: dict[int, tuple[str, str]] = {}
    for source in sources:
        for file in response_files(source):
            for row in read_rows(file):
                for response, pair in _responses(row, str(file), labelled):
                    if pair is not None:
                        unjudged[len(found)] = pair
                    found.append(response)
    if not found:
        raise ValueError(f"{', '.join(map(str, sources))}: no responses found; check the files")
    _judge(found, unjudged)
    return found


def encode_responses(
    responses: Sequence[Response],
    template: Template,
    tokenizer: Any,  # noqa: ANN401
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids of prompt and response, encoded once, with the token that ends the response.

    Raises:
        ValueError: The template does not fit the tokenizer or a prompt.
    """
    encode = ResponseEncoder(template, tokenizer)
    encoded = [encode(item.messages, item.text, item.keys) for item in responses]
    encode.warn()
    return encoded


def response_files(source: Path) -> list[Path]:
    """The files of a source: the source itself, or the files of completions in a run folder.

    Raises:
        ValueError: A run folder contains no completions.
    """
    folder = source / "completions"
    if not folder.is_dir():
        return [source]
    files = sorted(folder.glob("step_*.jsonl"))
    if not files:
        raise ValueError(f"run folder {str(source)!r} kept no completions; name a JSONL file")
    return files


_Unjudged = tuple[str, str] | None
"""A text and its reference, where no label says whether it is right."""


def _judge(found: list[Response], unjudged: Mapping[int, tuple[str, str]]) -> None:
    """Judge responses that have a reference and no label, in processes with a time limit."""
    if not unjudged:
        return
    with reward.VerifierPool() as pool:
        grades = pool.grade_many(list(unjudged.values()))
    for index, grade in zip(unjudged, grades, strict=True):
        found[index] = replace(found[index], correct=grade.correct, extracted=grade.extracted)


def _responses(row: Row, where: str, labelled: bool) -> list[tuple[Response, _Unjudged]]:
    """The response of a row, or the two of a preference."""
    values, place = row.values, f"{where}, {row.label}"
    if "chosen" not in values or given(values, "response", "completion") is not None:
        return [_response(values, place, labelled)]
    try:
        pair = read_pair(values)
    except RowError as error:
        raise ValueError(f"{place}: {error}") from None
    problem = _problem(values, pair.messages)
    return [
        (Response(problem, pair.messages, text, right, None, True, values, more), None)
        for text, right, more in zip(pair.completions, (True, False), pair.keys, strict=True)
    ]


def _response(values: Mapping[str, Any], place: str, labelled: bool) -> tuple[Response, _Unjudged]:
    check_one_turn(values, place)
    value = given(values, "response", "completion")
    if not isinstance(value, str | list | Mapping):
        raise ValueError(
            f"{place}: response = {short(value)} is not text; name its column response"
        )
    try:
        reply = read_reply(value)
    except MessageError as error:
        raise ValueError(f"{place}: response {error}") from None
    prompt, text = values.get("prompt"), reply.text
    alone = reply.before and prompt is None
    messages = reply.before if alone else messages_of(prompt, place)
    label, gold = given(values, "correct", "label"), given(values, "answer")
    correct, extracted = as_truth(label), given(values, "extracted")
    opened = left_open(prompt) if isinstance(prompt, str) else ""
    unjudged = (opened + text, gold) if label is None and isinstance(gold, str) else None
    if unjudged is None and extracted is None:
        extracted = extract(opened + text).answer
    if labelled and correct is None and unjudged is None:
        raise ValueError(
            f"{place}: correct = {short(label)} is neither true nor false, and there is no "
            "reference in column answer for judging the response; add one of the two"
        )
    response = Response(
        _problem(values, messages),
        messages,
        text,
        correct,
        None if extracted is None else str(extracted),
        not was_cut(values),
        values,
        reply.keys,
    )
    return response, unjudged


def _problem(values: Mapping[str, Any], messages: Messages) -> str:
    """What a response answers."""
    problem = given(values, "problem_id", "problem")
    return str(problem) if problem is not None else repr(messages)


def messages_of(value: object, place: str) -> Messages:
    """A prompt as messages; a text becomes one user message.

    Raises:
        ValueError: It is neither text nor messages; ``place`` names its row.
    """
    try:
        return read_prompt(value)
    except MessageError as error:
        raise ValueError(f"{place}: prompt: {error}") from None
