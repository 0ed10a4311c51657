"""Prompts with the responses that are learnt, as token ids.

The prompt is what the policy continues when it samples. A response is encoded once and followed by
the token that ends it: the one that closes the assistant's turn in the chat template, else the
tokenizer's end token. A response that is text is learnt as it stands. One that is a message is what
the chat template writes for it behind the prompt: with its further keys (``reasoning_content``,
``tool_calls``), and with what the template puts in front of the content (an empty thought, the
header of a channel); a template that would leave out or rewrite the content is not followed.

Where prompt and response both write the marker that opens a thought, the response's goes. What
cannot be right is said once for all rows: a key that the chat template does not print, a thought
that the prompt opens and the response never closes, or one that begins behind a closed one.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from reward.thoughts import all_pairs, left_open
from rlvr.data.consistency import short
from rlvr.data.decoding import thought_markers
from rlvr.data.templates import Template
from rlvr.types import Message

Ids = tuple[int, ...]

_REPEATED = (
    "{count} responses begin with {marker!r}, with which the prompt ends already; it is learnt once"
)
_UNCLOSED = (
    "{count} responses never write {marker!r}, but the prompt opens a thought: all of the response "
    "is learnt as thought; use a template that opens none (chat_template_kwargs, prefill)"
)
_REOPENED = (
    "{count} responses begin with {marker!r}, but the prompt ends behind a thought that is closed; "
    "use a template that closes none (chat_template_kwargs, prefill)"
)
_LOST = (
    "{count} responses have {marker!r}, which the template does not print, so it is left out; put "
    "it into content, or name a chat_template that prints it"
)


class ResponseEncoder:
    """Encodes prompts and responses, and counts what cannot be right about them.

    Args:
        template: How prompts become text.
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, template: Template, tokenizer: Any) -> None:  # noqa: ANN401
        self.template, self.tokenizer = template, tokenizer
        self._closing, self._ending = template.turn_end(tokenizer), template.ending(tokenizer)
        self._thoughts = thought_markers(tokenizer)
        self._pairs = dict(all_pairs(self._thoughts))
        self._prompts: dict[str, tuple[str, Ids]] = {}
        self._notices: Counter[tuple[str, str]] = Counter()

    def __call__(
        self,
        messages: Sequence[Message],
        response: str,
        keys: Mapping[str, Any] | None = None,
        *,
        finished: bool = True,
    ) -> tuple[Ids, Ids]:
        """Token ids of a prompt and of a response to it.

        Args:
            messages: The prompt.
            response: The content of the assistant's message.
            keys: What else the message says; None if the response is no message but a text.
            finished: Whether the response is whole; a cut one gets no end token.

        Raises:
            ValueError: The template does not fit the tokenizer or the prompt, or shows the response
                otherwise than it ends the prompt.
        """
        prompt, prompt_ids = self._prompt(messages)
        printed = self._printed(messages, response, keys or {})
        text = None
        if keys is not None and finished and self.template.settings.mode == "chat":
            text = self._rendered(prompt, messages, response, printed)
        if text is None:
            text = self._once(prompt, response)
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return prompt_ids, self.ended(prompt_ids, ids, finished)

    def ended(self, prompt_ids: Ids, ids: Ids, finished: bool) -> Ids:
        """The response with the token that ends it, unless it is cut or has one."""
        end = self._ending(prompt_ids)
        return ids if not finished or ids[-1:] == (end,) else (*ids, end)

    def warn(self) -> None:
        """Say what was counted, a line each."""
        for (notice, marker), count in self._notices.items():
            warnings.warn(notice.format(count=count, marker=marker), stacklevel=2)

    def _prompt(self, messages: Sequence[Message]) -> tuple[str, Ids]:
        key = repr(messages)
        if key not in self._prompts:
            text = self.template.render(messages, self.tokenizer)
            ids = tuple(self.template.encode_text(text, self.tokenizer))
            self._prompts[key] = (text, ids)
        return self._prompts[key]

    def _printed(
        self, messages: Sequence[Message], response: str, keys: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The keys that change what the template writes."""
        if not keys:
            return {}
        lost = dict(keys)
        if self.template.settings.mode == "chat":
            whole = self._answered(messages, response, keys)
            for key in keys:
                others = {name: value for name, value in keys.items() if name != key}
                if self._answered(messages, response, others) != whole:
                    del lost[key]
        for key in lost:
            self._notices[_LOST, key] += 1
        return {key: value for key, value in keys.items() if key not in lost}

    def _answered(self, messages: Sequence[Message], response: str, keys: Mapping[str, Any]) -> str:
        turn: Any = {"role": "assistant", "content": response, **keys}
        return self.template.render_answered(messages, turn, self.tokenizer)

    def _rendered(
        self, prompt: str, messages: Sequence[Message], response: str, keys: Mapping[str, Any]
    ) -> str | None:
        """What the chat template writes behind the prompt for a message; None if that is the
        content alone, or not to be followed."""
        whole = self._answered(messages, response, keys)
        if keys and not whole.startswith(prompt):
            raise ValueError(
                f"with {', '.join(keys)} the chat template writes {short(_from(whole, prompt))} "
                f"where the prompt ends in {short(_from(prompt, whole))}; change "
                "chat_template_kwargs or prefill so that both agree"
            )
        text = whole.removeprefix(prompt)
        if self._closing is not None:
            text = text.rpartition(self.tokenizer.decode([self._closing]))[0] or text
        if keys:
            return text
        content = response.strip()
        follows = whole.startswith(prompt) and content in text and text.strip() != content
        return text if follows else None

    def _once(self, prompt: str, response: str) -> str:
        """The response without the beginning that the prompt has written already."""
        prefill = self.template.settings.prefill
        if prefill.strip() and response.startswith(prefill):
            self._notices[_REPEATED, prefill] += 1
            return response[len(prefill) :]
        opened, begun = left_open(prompt, self._thoughts), response.lstrip()
        if not opened:
            before = prompt.rstrip()
            for opening, closing in self._pairs.items():
                if begun.startswith(opening) and before.endswith(closing):
                    self._notices[_REOPENED, opening] += 1
            return response
        if self._pairs.get(opened, opened) not in response:
            self._notices[_UNCLOSED, self._pairs.get(opened, opened)] += 1
        if not begun.startswith(opened):
            return response
        self._notices[_REPEATED, opened] += 1
        written = prompt[prompt.rindex(opened) :]
        if begun.startswith(written):
            return begun[len(written) :]
        rest = begun[len(opened) :]
        return rest.lstrip() if written.endswith("\n") else rest


def _from(text: str, other: str) -> str:
    """The text from a little before the first character in which it differs."""
    pairs = enumerate(zip(text, other, strict=False))
    at = next((index for index, (a, b) in pairs if a != b), min(len(text), len(other)))
    return text[max(0, at - 10) : at + 30]
