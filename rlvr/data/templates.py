r"""Turn a problem into the token ids that the policy continues.

A template is a YAML file. It sets how the problem is worded, what comes before it, and whether the
prompt uses the tokenizer's chat template (``mode: chat``) or is plain text (``mode: text``).

- Placeholders are replaced, never formatted: braces in a problem (``\frac{1}{2}``) are kept.
- The rendered text is encoded once, and the tokenizer adds no special tokens: a chat template
  writes its begin token itself, and in text mode exactly one is prepended if the tokenizer would
  add one. So no prompt begins with two.
- Nothing is appended: a tokenizer that adds its end token would end the prompt.
- A problem with a system message keeps it: the template's system message and the problem's are
  joined into one, in this order. A problem that is a conversation keeps its turns; the template
  words only its last user message.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from rlvr.data.turns import turn_end
from rlvr.settings import Settings, load_settings
from rlvr.types import Message

_PLACEHOLDER = "{problem}"
# Variables that the code passes in addition to the template's own.
_RESERVED = frozenset(
    {"conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"}
)


class Example(Settings):
    """A worked example, shown as earlier turns."""

    problem: str
    """Problem of the example; ``user`` words it like the others."""

    response: str
    """Response in the form that the policy should write."""


class TemplateSettings(Settings):
    """How a problem becomes a prompt."""

    # strict=False for tuples and paths: TemplateChoice reads the settings from Python objects, not
    # from JSON, and only for JSON does strict mode accept a list or text there.

    purpose: str = ""
    """Purpose of the template."""

    mode: Literal["chat", "text"]
    """"chat": use the tokenizer's chat template; "text": plain text, for base models."""

    system: str | None = None
    """System message (chat) or text before everything else (text)."""

    user: str = _PLACEHOLDER
    """Wording of a problem; ``{problem}`` is replaced."""

    examples: tuple[Example, ...] = Field(default=(), strict=False)
    """Worked examples before the problem: earlier turns (chat), or texts in the same wording,
    separated by ``separator`` (text)."""

    separator: str = "\n\n"
    """Text mode: separator after the system text and after each example."""

    prefill: str = ""
    """Text with which every response begins, as part of the prompt, such as an opening think
    tag."""

    chat_template: Path | None = Field(default=None, strict=False)
    """Chat mode: Jinja file that replaces the tokenizer's chat template."""

    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Chat mode: variables for the chat template, such as ``{enable_thinking: false}``."""

    @field_validator("user")
    @classmethod
    def _has_placeholder(cls, value: str) -> str:
        if value.count(_PLACEHOLDER) != 1:
            raise ValueError(f"must contain {_PLACEHOLDER} exactly once")
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
                f"chat_template_kwargs must not set {', '.join(sorted(reserved))}, which the code "
                "sets; remove it"
            )
        return self


@dataclass(frozen=True)
class Template:
    """A loaded template: renders and encodes the messages of a problem."""

    name: str
    settings: TemplateSettings
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that the model may call, which the chat template shows."""

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """The whole conversation: system message, examples, the problem's earlier turns, the
        problem.

        Raises:
            ValueError: The messages do not end with a user message.
        """
        if not messages or messages[-1]["role"] != "user":
            raise ValueError(f"template {self.name!r}: a prompt must end with a user message")
        given = [turn["content"] for turn in messages[:1] if turn["role"] == "system"]
        earlier = list(messages[len(given) : -1])
        own = [self.settings.system] if self.settings.system else []
        # dict.fromkeys: if both give the same instruction, it appears once.
        system = "\n\n".join(dict.fromkeys(own + given))
        turns = [Message(role="system", content=system)] if system else []
        for example in self.settings.examples:
            turns.append(Message(role="user", content=self._worded(example.problem)))
            turns.append(Message(role="assistant", content=example.response))
        problem = {**messages[-1], "content": self._worded(messages[-1]["content"])}
        return [*turns, *earlier, cast(Message, problem)]

    def render(self, messages: Sequence[Message], tokenizer: Any) -> str:  # noqa: ANN401
        """The prompt's text, without the begin token that :meth:`encode` prepends in text mode.

        Args:
            messages: The problem's messages, ending with a user message.
            tokenizer: A Hugging Face tokenizer.

        Raises:
            ValueError: The tokenizer has no chat template in chat mode; a problem is a conversation
                in text mode; the chat template refuses the conversation.
        """
        turns = self.messages(messages)
        if self.settings.mode == "text":
            return self._as_text(turns) + self.settings.prefill
        self.check(tokenizer)
        return self.framed(turns, tokenizer) + self.settings.prefill

    def render_answered(
        self,
        messages: Sequence[Message],
        response: Message,
        tokenizer: Any,  # noqa: ANN401
    ) -> str:
        """A prompt and the assistant's message that answers it, as the chat template shows both.

        Raises:
            ValueError: As for :meth:`render`, which see; the template is plain text.
        """
        assert self.settings.mode == "chat", "plain text has no turns"
        return self.framed([*self.messages(messages), response], tokenizer, prompt=False)

    def framed(
        self,
        turns: Sequence[Message],
        tokenizer: Any,  # noqa: ANN401
        *,
        prompt: bool = True,
    ) -> str:
        """What the chat template makes of turns, ready for a response where ``prompt`` is set.

        Raises:
            ValueError: It refuses them.
        """
        from jinja2 import TemplateError

        try:
            framed = tokenizer.apply_chat_template(
                turns,
                chat_template=self._chat_template_file,
                add_generation_prompt=prompt,
                tokenize=False,
                **({"tools": list(self.tools)} if self.tools else {}),
                **self.settings.chat_template_kwargs,
            )
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"the chat template refuses the turns ({roles}) of template {self.name!r}: "
                f"{error}; use a template without the refused role, or another chat_template"
            ) from None
        return str(framed)

    def turn_end(self, tokenizer: Any) -> int | None:  # noqa: ANN401
        """The special token that closes an assistant's turn in the chat template, if any."""
        if self.settings.mode == "text":
            return turn_end(tokenizer)
        variables = self.settings.chat_template_kwargs
        return turn_end(tokenizer, self._chat_template_file, **variables)

    def ending(self, tokenizer: Any) -> Callable[[Sequence[int]], int]:  # noqa: ANN401
        """Says of an encoded prompt which token ends a response to it.

        A prompt of turns is answered by a turn, which the chat template closes; the tokenizer's end
        token may be another, which such a model never writes. Plain text in which the token that
        closes turns occurs is a prompt of turns too.
        """
        closing, end = self.turn_end(tokenizer), int(tokenizer.eos_token_id)
        if closing is None:
            return lambda _: end
        if self.settings.mode == "chat":
            return lambda _: closing
        return lambda prompt: closing if closing in prompt else end

    def encode(self, messages: Sequence[Message], tokenizer: Any) -> list[int]:  # noqa: ANN401
        """The prompt's token ids, with at most one begin token.

        Raises:
            ValueError: As for :meth:`render`.
        """
        return self.encode_text(self.render(messages, tokenizer), tokenizer)

    def encode_text(self, prompt: str, tokenizer: Any) -> list[int]:  # noqa: ANN401
        """The token ids of a rendered prompt, with at most one begin token."""
        ids = list(tokenizer.encode(prompt, add_special_tokens=False))
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
        """Refuse a tokenizer with which the template does not work.

        Raises:
            ValueError: In chat mode the tokenizer has no chat template, or its template lacks a
                variable that ``chat_template_kwargs`` sets (it would be ignored silently).
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


def ends_of(
    template: TemplateSettings | Template,
    tokenizer: Any,  # noqa: ANN401
    prompts: Iterable[Sequence[int]],
) -> set[int]:
    """The tokens that end responses to encoded prompts; see :meth:`Template.ending`."""
    ending = load_template(template).ending(tokenizer)
    return {ending(prompt) for prompt in prompts}


def begins_texts(tokenizer: Any) -> bool:  # noqa: ANN401
    """Whether the tokenizer prepends its begin token to plain text."""
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


def load_template(choice: str | Path | Mapping[str, Any] | TemplateSettings | Template) -> Template:
    """Load a template by name, from a file, or from settings.

    Args:
        choice: A name of :func:`template_names`, a path (a ``Path``, or text that contains a slash
            or ends in .yaml or .yml), a mapping of :class:`TemplateSettings`, such settings, or a
            template.

    Raises:
        ValueError: The name is unknown (the message names the nearest), the file is missing, or the
            settings are wrong.
    """
    if isinstance(choice, Template):
        return choice
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
    """Replace a template's name or path with its settings; pass anything else to the schema."""
    return load_template(value).settings if isinstance(value, str) else value


ThoughtPairs = tuple[
    tuple[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]], ...
]
"""A field for pairs of markers, opening and closing, between which a model thinks."""

TemplateChoice = Annotated[TemplateSettings, BeforeValidator(_chosen)]
"""A recipe's field for a template: a name, a path, or settings. The resolved recipe contains the
settings, so that the record of a run shows its prompts in full."""


def _folder() -> Any:  # noqa: ANN401  (a Traversable)
    return resources.files("rlvr.data") / "templates"
