r"""From a problem to the token ids that the policy continues.

A template is a YAML file: how the problem is worded, what stands before it, and whether the
tokenizer's chat template frames it (``mode: chat``) or it is plain text (``mode: text``).

- Placeholders are replaced, never formatted: braces in a problem (``\frac{1}{2}``) stay.
- Tokens are made from the rendered text once, without special tokens of the tokenizer's own: a chat
  template writes its begin token itself, and in text mode exactly one is put in front if the
  tokenizer would put one. So no prompt begins with two.
- Nothing is put at the end: a tokenizer that closes texts with its end token would end the prompt.
- A problem that has its own system message keeps it: the template's comes first, then the
  problem's, as one message. A problem that is a conversation keeps its turns; the template words
  its last user message only.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from rlvr.settings import Settings, load_settings
from rlvr.types import Message

_PLACEHOLDER = "{problem}"
# What the code itself passes beside a template's own variables.
_RESERVED = frozenset(
    {"conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"}
)


class Example(Settings):
    """A worked example, shown as earlier turns."""

    problem: str
    """The example's problem, worded like the others by ``user``."""

    response: str
    """The response as the policy should write it."""


class TemplateSettings(Settings):
    """How a problem becomes a prompt."""

    # strict=False where a list or text stands for a tuple or path: behind TemplateChoice the
    # settings are read from Python objects, not from JSON, for which strict mode allows that.

    purpose: str = ""
    """What the template is for."""

    mode: Literal["chat", "text"]
    """"chat": framed by the tokenizer's chat template; "text": plain text, for base models."""

    system: str | None = None
    """System message (chat) or text before everything else (text)."""

    user: str = _PLACEHOLDER
    """Wording of a problem; ``{problem}`` is replaced."""

    examples: tuple[Example, ...] = Field(default=(), strict=False)
    """Worked examples before the problem: earlier turns (chat), or texts in the same wording,
    parted by ``separator`` (text)."""

    separator: str = "\n\n"
    """Text mode: what stands after the system text and after each example."""

    prefill: str = ""
    """Text that every response begins with, as part of the prompt, such as an opening think tag."""

    chat_template: Path | None = Field(default=None, strict=False)
    """Chat mode: a Jinja file used instead of the tokenizer's own chat template."""

    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Chat mode: variables for the chat template, such as ``{enable_thinking: false}``."""

    @field_validator("user")
    @classmethod
    def _has_placeholder(cls, value: str) -> str:
        if value.count(_PLACEHOLDER) != 1:
            raise ValueError(f"must hold {_PLACEHOLDER} exactly once")
        return value

    @model_validator(mode="after")
    def _fits_mode(self) -> Self:
        if self.mode == "text" and (self.chat_template or self.chat_template_kwargs):
            raise ValueError(
                "chat_template and chat_template_kwargs belong to mode: chat; remove them or "
                "change the mode"
            )
        if reserved := _RESERVED & set(self.chat_template_kwargs):
            raise ValueError(
                f"chat_template_kwargs must not hold {', '.join(sorted(reserved))}; it is for the "
                "chat template's own variables"
            )
        return self


@dataclass(frozen=True)
class Template:
    """A loaded template: renders and encodes the messages of a problem."""

    name: str
    settings: TemplateSettings

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """The whole conversation: system message, examples, the problem's own turns, the problem.

        Raises:
            ValueError: The messages do not end with the user's.
        """
        if not messages or messages[-1]["role"] != "user":
            raise ValueError(f"template {self.name!r}: a prompt must end with a user message")
        given = [turn["content"] for turn in messages[:1] if turn["role"] == "system"]
        earlier = list(messages[len(given) : -1])
        own = [self.settings.system] if self.settings.system else []
        # dict.fromkeys: the same instruction from both sides is said once.
        system = "\n\n".join(dict.fromkeys(own + given))
        turns = [Message(role="system", content=system)] if system else []
        for example in self.settings.examples:
            turns.append(Message(role="user", content=self._worded(example.problem)))
            turns.append(Message(role="assistant", content=example.response))
        problem = Message(role="user", content=self._worded(messages[-1]["content"]))
        return [*turns, *earlier, problem]

    def render(self, messages: Sequence[Message], tokenizer: Any) -> str:  # noqa: ANN401
        """The prompt's text, without what :meth:`encode` puts in front in text mode.

        Args:
            messages: The problem's messages, ending with a user message.
            tokenizer: A Hugging Face tokenizer.

        Raises:
            ValueError: Chat mode and a tokenizer without chat template; a conversation in text
                mode; a chat template that refuses the conversation.
        """
        turns = self.messages(messages)
        if self.settings.mode == "text":
            return self._as_text(turns) + self.settings.prefill
        from jinja2 import TemplateError

        self.check(tokenizer)
        try:
            framed = tokenizer.apply_chat_template(
                turns,
                chat_template=self._chat_template_file,
                add_generation_prompt=True,
                tokenize=False,
                **self.settings.chat_template_kwargs,
            )
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"the chat template refuses the turns ({roles}) of template {self.name!r}: "
                f"{error}; use a template without the refused role, or another chat_template"
            ) from None
        return str(framed) + self.settings.prefill

    def encode(self, messages: Sequence[Message], tokenizer: Any) -> list[int]:  # noqa: ANN401
        """The prompt's token ids, beginning with at most one begin token.

        Raises:
            ValueError: As :meth:`render`.
        """
        ids = list(tokenizer.encode(self.render(messages, tokenizer), add_special_tokens=False))
        begin = tokenizer.bos_token_id
        if self.settings.mode == "text" and begins_texts(tokenizer):
            ids = [begin, *ids]
        while begin is not None and ids[:2] == [begin, begin]:
            ids = ids[1:]
        return ids

    def _worded(self, problem: str) -> str:
        return self.settings.user.replace(_PLACEHOLDER, problem)

    def _as_text(self, turns: Sequence[Message]) -> str:
        """System text and examples, each followed by the separator, then the problem."""
        shown = 2 * len(self.settings.examples) + (turns[0]["role"] == "system")
        if len(turns) != shown + 1:
            raise ValueError(
                f"template {self.name!r} is plain text and cannot show a conversation of several "
                "turns; use a template with mode: chat"
            )
        ends = {"system": self.settings.separator, "user": "", "assistant": self.settings.separator}
        return "".join(turn["content"] + ends[turn["role"]] for turn in turns)

    def check(self, tokenizer: Any) -> None:  # noqa: ANN401
        """Refuse a tokenizer that the template cannot work with.

        Raises:
            ValueError: Chat mode, and no chat template or one without a variable that
                ``chat_template_kwargs`` sets (it would be ignored without a word).
        """
        if self.settings.mode == "text":
            return
        own = self._chat_template_file or tokenizer.chat_template
        if not own:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template, which template "
                f"{self.name!r} needs; use template raw (or another with mode: text), or name a "
                "Jinja file as chat_template"
            )
        for name in self.settings.chat_template_kwargs:
            if name not in str(own):
                raise ValueError(
                    f"the chat template has no variable {name!r}, which chat_template_kwargs of "
                    f"template {self.name!r} sets; correct the name or remove it"
                )

    @cached_property
    def _chat_template_file(self) -> str | None:
        """The Jinja file of the settings, or None for the tokenizer's own template."""
        path = self.settings.chat_template
        if path is None:
            return None
        if not path.is_file():
            raise ValueError(f"chat_template {str(path)!r} is not a file; give a Jinja file")
        return path.read_text(encoding="utf-8")


def begins_texts(tokenizer: Any) -> bool:  # noqa: ANN401
    """Whether the tokenizer puts its begin token in front of plain text."""
    if tokenizer.bos_token_id is None:
        return False
    return tokenizer.encode("1")[:1] == [tokenizer.bos_token_id]


def template_names() -> list[str]:
    """Names of the templates that come with the package."""
    return sorted(
        item.name.removesuffix(".yaml")
        for item in _folder().iterdir()
        if item.name.endswith(".yaml")
    )


def load_template(choice: str | Path | Mapping[str, Any] | TemplateSettings) -> Template:
    """Load a template by name, by file, or from settings written out.

    Args:
        choice: A name of :func:`template_names`, a path (a ``Path``, or text that holds a slash or
            ends in .yaml or .yml), a mapping of :class:`TemplateSettings`, or such settings.

    Raises:
        ValueError: An unknown name (the nearest are named), no such file, wrong settings.
    """
    if isinstance(choice, TemplateSettings):
        return Template("inline", choice)
    if isinstance(choice, Mapping):
        return Template("inline", load_settings(TemplateSettings, choice))
    if isinstance(choice, Path) or "/" in choice or choice.endswith((".yaml", ".yml")):
        path = Path(choice)
        if not path.is_file():
            raise ValueError(f"template file {str(path)!r} does not exist; check the path")
        return Template(path.stem, load_settings(TemplateSettings, path))
    if choice not in template_names():
        close = difflib.get_close_matches(choice, template_names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(
            f"unknown template {choice!r}; {hint}known: {', '.join(template_names())} (or the path "
            "of a YAML file)"
        )
    with resources.as_file(_folder() / f"{choice}.yaml") as path:
        return Template(choice, load_settings(TemplateSettings, path))


def _chosen(value: object) -> object:
    """A name or a path of a template -> its settings; anything else is left to the schema."""
    return load_template(value).settings if isinstance(value, str) else value


TemplateChoice = Annotated[TemplateSettings, BeforeValidator(_chosen)]
"""A recipe's field for a template: a name, a path, or the settings written out. The resolved recipe
holds the settings, so that a run's record shows its prompts in full."""


def _folder() -> Any:  # noqa: ANN401  (a Traversable)
    return resources.files("rlvr.data") / "templates"
