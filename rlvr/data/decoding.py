"""From token ids to the text that is graded and shown: only ends and padding are left out.

Everything else that a model wrote stays, special tokens included: where ``<think>`` is one, a
reward function must see it, and a grader must not read the thought as the answer.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from reward.thoughts import KNOWN, left_open, pairs_among, tags_in
from rlvr.data.turns import turn_end

Pairs = tuple[tuple[str, str], ...]


def thought_markers(tokenizer: Any, further: Iterable[Sequence[str]] = ()) -> Pairs:  # noqa: ANN401
    """The markers of thoughts that the verifier does not know by itself.

    Args:
        tokenizer: Its added tokens and its chat template are searched.
        further: Pairs (opening, closing) of the settings.
    """
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    written = tags_in(tokenizer.chat_template) if isinstance(tokenizer.chat_template, str) else []
    found = [*pairs_among([*added, *written]), *((str(a), str(b)) for a, b in further)]
    return tuple(pair for pair in dict.fromkeys(found) if pair not in KNOWN)


class ResponseDecoder:
    """Turns completions into text.

    Args:
        tokenizer: A Hugging Face tokenizer.
        thoughts: Pairs of thought markers of the settings.
    """

    def __init__(self, tokenizer: Any, thoughts: Iterable[Sequence[str]] = ()) -> None:  # noqa: ANN401
        self.tokenizer = tokenizer
        self.thoughts = thought_markers(tokenizer, thoughts)
        """Pairs of markers besides those that the verifier knows."""
        named = ("eos_token_id", "pad_token_id", "bos_token_id", "unk_token_id")
        silent = {getattr(tokenizer, name, None) for name in named} | {turn_end(tokenizer)}
        self._silent = silent - {None}
        self._last: tuple[tuple[int, ...], str] | None = None
        markers = {marker for pair in (*KNOWN, *self.thoughts) for marker in pair}
        self._ends = {
            index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special and token.content not in markers
        }

    def __call__(self, ids: Sequence[int], *, finished: bool) -> str:
        """The text of a completion without its end token and without padding.

        Args:
            ids: Token ids, those that the model wrote.
            finished: Whether it ended by itself, and its last token may be the one that ended it.
        """
        whole = list(ids)
        if finished and whole and whole[-1] in self._ends:
            whole.pop()
        text: str = self.tokenizer.decode([token for token in whole if token not in self._silent])
        return text

    def opened(self, prompt_ids: Sequence[int]) -> str:
        """The marker of the thought that a prompt leaves open, or ""."""
        key = tuple(prompt_ids)
        if self._last is None or self._last[0] != key:  # completions of a prompt come together
            self._last = (key, left_open(self.tokenizer.decode(list(key)), self.thoughts))
        return self._last[1]
