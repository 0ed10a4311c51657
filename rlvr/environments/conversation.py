"""What stands between two turns of the policy, as ids.

The policy's own ids are never rendered again: a template may leave out earlier thoughts or trim
words, and what was sampled would no longer be what is trained. Only what a chat template writes
*behind* an assistant's words is taken, from a conversation with other words in their place.
"""

from collections.abc import Sequence
from typing import Any

from rlvr.data.templates import Template
from rlvr.types import Message

_WORDS = "a reply that no template holds"


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
        ids = self._encoded(self._rest(messages) + self.template.settings.prefill)
        return tuple(ids[1:] if ids[:1] == [last] else ids)

    def _rest(self, messages: Sequence[Message]) -> str:
        """What the chat template writes behind an assistant's words."""
        before = [Message(role="user", content="hello"), Message(role="assistant", content=_WORDS)]
        whole = self.template.framed([*before, *messages], self.tokenizer)
        _, words, rest = whole.rpartition(_WORDS)
        if not words:
            raise ValueError(
                f"the chat template of template {self.template.name!r} does not show what an "
                "assistant said before; use another data.template.chat_template"
            )
        return rest

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))
