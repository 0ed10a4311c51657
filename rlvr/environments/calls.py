"""Tool calls in a model's own words: what its chat template writes, read back.

No model's format stands here. The template renders a made-up call, and what stands around the name,
the names of arguments and their values says how the model writes calls: as JSON within marks, as
marks around each argument, or as Python. Where a template knows no calls, the marks are those that
many models have (``<tool_call>`` around JSON with ``name`` and ``arguments``), and a system message
says so.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rlvr.data.templates import Template
from rlvr.types import Message

USER, WORDS, NAME = "a question of nobody", "a reply that no template holds", "zqname"
KEYS, VALUES = ("zqfirst", "zqsecond"), ("zqone", "zqtwo")
CALL_ID = "callzq001"
"""Nine letters and digits, as some templates demand."""
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call; ``fault`` says what is wrong with one that cannot be read."""

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


def example_call() -> Message:
    """An assistant's message with the made-up call."""
    arguments = dict(zip(KEYS, VALUES, strict=True))
    function = {"name": NAME, "arguments": arguments}
    call = {"id": CALL_ID, "type": "function", "function": function}
    return cast(Message, {"role": "assistant", "content": "", "tool_calls": [call]})


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a model writes calls.

    Attributes:
        head: What stands before a call: the name, or the JSON object that has it.
        kind: ``object``: a JSON object with name and arguments; ``named``: the name, then JSON;
            ``marked``: the name, then marks around each argument; ``python``: ``name(key=value)``.
        parts: Of ``object`` the keys of name and arguments; of ``named`` what stands between; of
            ``marked`` what stands after the name, before a key, before and after a value, and at
            the end.
        own: Whether the template writes it, and says which tools there are.
    """

    head: str
    kind: str
    parts: tuple[str, ...] = ()
    own: bool = True

    def read(self, text: str) -> list[ToolCall]:
        """The calls in what a model wrote, in order."""
        read = {
            "object": self._object,
            "named": self._named,
            "marked": self._marked,
            "python": self._python,
        }[self.kind]
        if not self.head.strip():
            begin = text.find("{") if text.lstrip().startswith("{") else -1
            return [] if begin < 0 else [read(text[begin:])]
        return [read(text[end:]) for end in _ends(text, self.head)]

    def _object(self, text: str) -> ToolCall:
        found = _json(text.lstrip(" \n\t["))
        name, arguments = (found.get(key) for key in self.parts) if found else (None, None)
        if not isinstance(name, str) or not isinstance(_opened(arguments), dict):
            name_key, arguments_key = self.parts
            wanted = f'{{"{name_key}": ..., "{arguments_key}": {{...}}}}'
            return ToolCall(fault=f"a call must be JSON of the form {wanted}")
        return ToolCall(name, _opened(arguments))

    def _named(self, text: str) -> ToolCall:
        name = re.match(r"[\w.-]+", text)
        if name is None:
            return ToolCall(fault="a call must begin with the name of a tool")
        rest = text[name.end() :]
        found = _json(rest[rest.find("{") :]) if "{" in rest else None
        if found is None:
            return ToolCall(fault=f"the arguments of {name[0]} must be a JSON object")
        return ToolCall(name[0], found)

    def _marked(self, text: str) -> ToolCall:
        after, before_key, before_value, after_value, end = self.parts
        name = re.match(r"[\w.-]+", text)
        if name is None:
            return ToolCall(fault="a call must begin with the name of a tool")
        place = _past(text, name.end(), after) or name.end()
        arguments: dict[str, Any] = {}
        while (begin := _past(text, place, before_key)) is not None:
            middle = text.find(before_value.strip(), begin)
            close = text.find(after_value.strip(), middle)
            if middle < 0 or close < 0:
                return ToolCall(fault=f"an argument of {name[0]} has no end")
            value = text[middle + len(before_value.strip()) : close]
            arguments[text[begin:middle].strip()] = _unwrapped(value, before_value, after_value)
            place = close + len(after_value.strip())
        if _past(text, place, end) is None:
            return ToolCall(fault=f"the call of {name[0]} has no end ({end.strip()})")
        return ToolCall(name[0], arguments)

    def _python(self, text: str) -> ToolCall:
        for end in (match.end() for match in re.finditer(r"\)", text)):
            try:
                call = ast.parse(text[:end].strip(), mode="eval").body
                assert isinstance(call, ast.Call)
                assert isinstance(call.func, ast.Name)
                values = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
            except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError):
                continue
            return ToolCall(call.func.id, values)
        return ToolCall(fault="a call must have the form name(argument=value)")


PLAIN = CallFormat("<tool_call>", "object", ("name", "arguments"), own=False)
"""For templates that know no calls."""


def plain_words(schemas: Sequence[Mapping[str, Any]]) -> str:
    """What a system message says of tools where the template does not."""
    listed = "\n".join(json.dumps(schema) for schema in schemas)
    return (
        "You may call tools. To call one, write\n"
        '<tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>\n'
        f"and nothing after it; the result follows. The tools:\n{listed}"
    )


def call_format(template: Template, tokenizer: Any) -> CallFormat:  # noqa: ANN401
    """How a template writes calls; :data:`PLAIN` if it does not.

    Raises:
        ValueError: It writes them in a way that is not understood.
    """
    if template.settings.mode == "text":
        return PLAIN
    user = Message(role="user", content=USER)
    answered = Message(role="assistant", content=WORDS)
    try:
        _, _, said = template.framed([user, answered], tokenizer, prompt=False).rpartition(USER)
        _, _, called = template.framed([user, example_call()], tokenizer, prompt=False).rpartition(
            USER
        )
    except (ValueError, TypeError):
        return PLAIN
    if not all(part in called for part in (NAME, *KEYS, *VALUES)):
        return PLAIN
    begin = _alike(said, called)
    while begin and called[begin - 1] == "<":  # of two marks that begin alike
        begin -= 1
    end = _text_of(tokenizer, template.turn_end(tokenizer))
    found = _learnt(called[begin:], end)
    if found is None:
        raise ValueError(
            f"the chat template of template {template.name!r} writes tool calls as "
            f"{called[begin:][:200]!r}, which is not understood; use another "
            "data.template.chat_template"
        )
    return found


def _text_of(tokenizer: Any, token: int | None) -> str:  # noqa: ANN401
    return "" if token is None else str(tokenizer.decode([token]))


def _learnt(text: str, turn_end: str) -> CallFormat | None:
    """The format of a rendered call; ``turn_end`` closes the turn."""
    key, value = (text.find(part) for part in (KEYS[0], VALUES[0]))
    second = text.find(KEYS[1])
    name = text.rfind(NAME, 0, key)
    head, middle = text[:name].rpartition(NAME)[2], text[name + len(NAME) : key]
    inner, between = text[key + len(KEYS[0]) : value], text[value + len(VALUES[0]) : second]
    tail = text[text.find(VALUES[1]) + len(VALUES[1]) :]
    if re.fullmatch(r'"\s*:\s*"', inner) and middle.rstrip().endswith('{"'):
        of_arguments = re.search(r'"(\w+)"\s*:\s*\{"$', middle)
        of_name = re.search(r'"(\w+)"\s*:\s*"$', head)
        if of_arguments and of_name:
            return CallFormat(head[: head.index("{")], "object", (of_name[1], of_arguments[1]))
        return CallFormat(head, "named", (middle[: middle.rindex("{")],))
    if middle == "(" and inner.startswith("="):
        return CallFormat(head, "python")
    before_key = middle[len(middle) - _alike(middle[::-1], between[::-1]) :]
    after_value = between[: len(between) - len(before_key)]
    if not before_key.strip() or not after_value.strip() or not tail.startswith(after_value):
        return None
    end = tail[len(after_value) :]
    end = end[: end.index(turn_end)] if turn_end and turn_end in end else end
    after = middle[: len(middle) - len(before_key)]
    return CallFormat(head, "marked", (after, before_key, inner, after_value, end))


def _alike(one: str, two: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(two)))


def _ends(text: str, mark: str) -> Iterator[int]:
    """Where each occurrence of a mark ends; spaces around it do not count."""
    for found in re.finditer(re.escape(mark.strip()), text):
        yield found.end()


def _past(text: str, place: int, mark: str) -> int | None:
    """Behind a mark that comes next, without regard to spaces; None if it does not."""
    while place < len(text) and text[place].isspace():
        place += 1
    return place + len(mark.strip()) if text.startswith(mark.strip(), place) else None


def _unwrapped(value: str, before: str, after: str) -> str:
    """A value without the line breaks with which the format sets it off."""
    if before.endswith("\n"):
        value = value.removeprefix("\n")
    return value.removesuffix("\n") if after.startswith("\n") else value


def _json(text: str) -> dict[str, Any] | None:
    """The JSON object with which a text begins."""
    try:
        found, _ = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _opened(arguments: Any) -> Any:  # noqa: ANN401
    """Arguments that stand as text in the JSON."""
    return _json(arguments) if isinstance(arguments, str) else arguments
