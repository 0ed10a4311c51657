"""What a model reads, for people: special tokens as text, and where the trained part begins."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_COMPLETION, _TRAINED, _STEP, _END = (
    "[the completion begins here]",
    "[trained from here]",
    "[step]",
    "[to here]",
)
_LONGEST = 2000
"""Characters of a text; of a longer one the middle is left out."""


def shown_prompt(tokenizer: Any, ids: Sequence[int]) -> str:  # noqa: ANN401
    """A prompt as the model continues it."""
    return _text(tokenizer, ids) + _COMPLETION


def shown_example(
    tokenizer: Any,  # noqa: ANN401
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    step_ends: Sequence[int] = (),
) -> str:
    """A prompt with a completion that is learnt from.

    Args:
        tokenizer: The model's.
        prompt_ids: Read, not learnt.
        completion_ids: Learnt.
        step_ends: Where the completion's steps end, in tokens, exclusive.
    """
    inner = sorted({end for end in step_ends if 0 < end < len(completion_ids)})
    cuts = [0, *inner, len(completion_ids)]
    steps = (_text(tokenizer, completion_ids[begin:end]) for begin, end in pairwise(cuts))
    return f"{_text(tokenizer, prompt_ids)}{_TRAINED}{_STEP.join(steps)}{_END}"


def quoted(title: str, text: str) -> list[str]:
    """Lines of a text under a title, each after a bar, so that blanks and ends of lines show."""
    return [f"{title}:", *(f"| {line}" for line in text.split("\n"))]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:  # noqa: ANN401
    text = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}[{len(text) - 2 * half} characters are not shown]{text[-half:]}"
