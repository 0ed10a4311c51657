"""What stands between two turns of the policy, as ids.

The policy's own ids are never rendered again: a template may leave out earlier thoughts or trim
words, and what was sampled would no longer be what is trained. Only what a chat template writes
*behind* an assistant's words is taken, from a conversation with other words in their place.
"""

from collections.abc import Sequence
from typing import Any

from rlvr.data.templates import Template
from rlvr.environments.calls import VALUES, WORDS, example_call
from rlvr.types import Message


class Conversation:
    """Encodes what environments say.

    Args:
        template: Of the prompts.
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, template: Template, tokenizer: Any) -> None:  # noqa: ANN401
        self.template, self.tokenizer = template, tokenizer

    def between(self, messages: Sequence[Message], last: int) -> tuple[int, ...]:
        """The ids between a turn and the next.

        Args:
            messages: What the environment says.
            last: The id that ended the turn. Where the template goes on with the same, as one
                that closes turns does, it is not repeated.

        Raises:
            ValueError: The chat template refuses these messages there, or hides the assistant's.
        """
        if self.template.settings.mode == "text":
            text = "".join(message["content"] for message in messages)
            return tuple(self._encoded(text + self.template.settings.prefill))
        ids = self._encoded(self._rest(messages, last) + self.template.settings.prefill)
        return tuple(ids[1:] if ids[:1] == [last] else ids)

    def _rest(self, messages: Sequence[Message], last: int) -> str:
        """What the chat template writes behind an assistant's words."""
        user = Message(role="user", content="hello")
        if messages and str(messages[0]["role"]) == "tool":
            return self._behind_calls([user, example_call(), *messages], last)
        reply = Message(role="assistant", content=WORDS)
        whole = self.template.framed([user, reply, *messages], self.tokenizer)
        _, words, rest = whole.rpartition(WORDS)
        if not words:
            raise ValueError(
                f"the chat template of template {self.template.name!r} does not show what an "
                "assistant said before; use another data.template.chat_template"
            )
        return rest

    def _behind_calls(self, messages: Sequence[Message], last: int) -> str:
        """What it writes behind a turn that called tools, from the token on that closes it."""
        whole = self.template.framed(messages, self.tokenizer)
        _, _, rest = whole.rpartition(VALUES[-1])
        results = rest.find(messages[2]["content"])
        for token in (last, self.template.turn_end(self.tokenizer)):
            text = "" if token is None else str(self.tokenizer.decode([token]))
            place = rest.find(text) if text else -1
            if 0 <= place <= results:
                return rest[place:]
        # Some close a call otherwise than an answer: by the first special token behind it.
        added = self.tokenizer.added_tokens_decoder.values()
        places = [rest.find(token.content) for token in added if token.special]
        return rest[min((place for place in places if 0 <= place <= results), default=0) :]

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))
