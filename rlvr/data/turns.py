"""What a chat template writes where a turn ends."""

from typing import Any

_WORDS = "a reply that no template holds"


def turn_end(tokenizer: Any, chat_template: str | None = None, **variables: Any) -> int | None:  # noqa: ANN401
    """The special token that a chat template writes after an assistant's words, if any.

    Args:
        tokenizer: A Hugging Face tokenizer.
        chat_template: Jinja text that replaces the tokenizer's chat template.
        variables: Of the template.
    """
    from jinja2 import TemplateError

    if not (chat_template or tokenizer.chat_template):
        return None
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _WORDS}]
    try:
        text = tokenizer.apply_chat_template(
            turns, chat_template=chat_template, tokenize=False, **variables
        )
    except (TemplateError, TypeError, ValueError):  # it needs other turns
        return None
    _, words, rest = text.rpartition(_WORDS)
    if not words:
        return None
    after = tokenizer.encode(rest.lstrip(), add_special_tokens=False)
    added = tokenizer.added_tokens_decoder.get(after[0]) if after else None
    return int(after[0]) if added is not None and added.special else None
