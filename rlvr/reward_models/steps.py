r"""Where the steps of a response begin and end, in tokens.

A response is tokenised once (or is token ids as they were sampled); steps are found in its text and
mapped to tokens by character offsets. A token belongs to the step in which it begins, so steps part
the response exactly: no gap, no overlap, and the last one holds the end token. A response without a
marker is one step.

    blank_lines    a step ends with a blank line, which belongs to it
    numbered       a step begins at "Step 1:", "Step 2:", ...; text before the first is a step
    lines          a step ends with a line
    a pattern      a step begins at every match of the regular expression

The released code of arXiv:2412.01981 instead rewrites the response around "Step k:" and tokenises
every prefix again, which may move boundaries.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlvr.data.decoding import ResponseDecoder

_ENDS = {"blank_lines": r"\n[ \t]*\n\s*", "lines": r"\n+"}
_STARTS = {"numbered": r"\bStep \d+:"}


def step_starts(text: str, steps: str = "blank_lines") -> list[int]:
    """Character offsets at which steps begin; the first is 0.

    Args:
        text: The response.
        steps: ``blank_lines``, ``numbered``, ``lines``, or a regular expression.

    Raises:
        ValueError: It is none of them and no regular expression either.
    """
    try:
        pattern = re.compile(_ENDS.get(steps) or _STARTS.get(steps) or steps)
    except re.error as error:
        raise ValueError(
            f"steps {steps!r} is neither {', '.join([*_ENDS, *_STARTS])} nor a regular expression "
            f"({error})"
        ) from error
    matches = pattern.finditer(text)
    found = [match.end() if steps in _ENDS else match.start() for match in matches]
    return sorted({0, *(offset for offset in found if text[:offset].strip() and text[offset:])})


def step_ends(token_starts: Sequence[int], starts: Sequence[int]) -> list[int]:
    """Where each step ends, in tokens, exclusive; steps in which no token begins are left out.

    Args:
        token_starts: The character at which each token begins, not falling.
        starts: The characters at which steps begin, rising, the first 0.
    """
    step_of = [bisect_right(starts, offset) for offset in token_starts]
    inner = [index + 1 for index, (a, b) in enumerate(pairwise(step_of)) if a != b]
    return [*inner, len(token_starts)] if token_starts else []


def token_starts(tokenizer: Any, ids: Sequence[int]) -> list[int]:  # noqa: ANN401
    """The character of the decoded response at which each token begins.

    A token that completes no character of its own (a byte of a longer one, or an end token) begins
    where the text before it ends. Tokens are decoded behind those before them, as a tokenizer may
    write a token otherwise at the beginning of a text.
    """
    decode = _decoder(tokenizer)
    starts: list[int] = []
    done, base, first = 0, "", 0  # characters finished; text of ids[first:index]
    for index in range(len(ids)):
        starts.append(done)
        text = decode(ids[first : index + 1], finished=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            continue
        done += len(text) - len(base)
        # A window of a few tokens is context enough, and keeps this linear.
        first = max(first, index - 3)
        base = decode(ids[first : index + 1], finished=False)
    return starts


def steps_of_ids(
    tokenizer: Any,  # noqa: ANN401
    ids: Sequence[int],
    steps: str = "blank_lines",
) -> list[int]:
    """Where each step of a response ends, in tokens; see :func:`step_starts`."""
    text = _decoder(tokenizer)(ids, finished=False)
    return step_ends(token_starts(tokenizer, ids), step_starts(text, steps))


@lru_cache(maxsize=2)
def _decoder(tokenizer: Any) -> ResponseDecoder:  # noqa: ANN401
    from rlvr.data.decoding import ResponseDecoder  # the verifier's libraries are slow to load

    return ResponseDecoder(tokenizer)


def given_step_ends(
    tokenizer: Any,  # noqa: ANN401
    ids: Sequence[int],
    starts: Sequence[int],
    place: str,
    text: str = "",
) -> list[int]:
    """Where each step of a response ends, in tokens, where it is given in steps.

    Args:
        tokenizer: Its tokenizer.
        ids: Of the response.
        starts: The characters at which steps begin, rising, the first 0.
        place: Names the response.
        text: The response, if ids may leave out its beginning, which the prompt ends with.

    Raises:
        ValueError: A step has no token that begins in it.
    """
    encoded = _decoder(tokenizer)(ids, finished=False) if text else ""
    left_out = len(text) - len(encoded) if text.endswith(encoded) else 0
    ends = step_ends(
        token_starts(tokenizer, ids), [0, *(max(0, start - left_out) for start in starts[1:])]
    )
    if len(ends) != len(starts):
        raise ValueError(
            f"{place}: only {len(ends)} of {len(starts)} steps have a token of their own; join the "
            "others with their neighbours"
        )
    return ends
