r"""Where a response thinks and where it answers: the markers of thoughts, model family by family.

A thought is what stands between an opening and a closing marker; only what follows it can be the
answer. A prompt may open the thought itself (a template that ends with ``<think>``): then the
response begins inside, and without a closing marker all of it is thought.

OpenAI's harmony format names a channel instead: ``<|channel|>analysis<|message|>`` thinks until
``<|end|>``, and only the channel ``final`` answers.
"""

import re
from collections.abc import Iterable, Sequence

Pair = tuple[str, str]
"""Opening and closing marker."""

KNOWN: tuple[Pair, ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
)
_HARMONY: Pair = ("<|channel|>analysis<|message|>", "<|end|>")
_CHANNEL = "<|channel|>"
_CHANNEL_HEADER = re.compile(
    r"<\|channel\|>\s*+(\w++)[^<]*+(?:<\|constrain\|>[^<]*+)?<\|message\|>"
)

# What a tokenizer or a chat template may call a thought.
_ABOUT_THOUGHTS = re.compile(r"think|thought|reason|reflect|scratch|deliberat|analysis", re.I)
_TAG = re.compile(r"<[^<>\s{}]{1,40}>|\[/?[A-Za-z_]{2,30}\]|\u25c1[^\u25c1\u25b7]{1,30}\u25b7")
_SIDES = re.compile(
    r"(?<![a-z])(?:(begin|start|open|prefix)|(end|close|stop|suffix))(?![a-z])|(/)", re.I
)
# In a prompt: anything that looks like a turn's marker, or a line that names whose turn it is.
_TURN = re.compile(
    r"<\|[^<>|]{1,40}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|<(?:start|end)_of_turn>|\[/?INST\]|</?s>"
    r"|<eos>|\n[ \t#*]{0,8}(?:Question|Problem|Human|User|Instruction|Assistant|Answer|Response)"
    r"[ \t]?\d{0,4}(?:\*\*)?[ \t]?:"
)
_BEGINS_TURN = re.compile(r"(?:\A|[\n>\]:\uff5c\u25b7])[ \t]*\Z")


def pairs_among(tags: Iterable[str]) -> tuple[Pair, ...]:
    """The pairs of thought markers among tags, such as a tokenizer's special tokens.

    Two tags are a pair if their name speaks of thinking and they differ only by a slash, or by
    begin and end.
    """
    opening: dict[str, str] = {}
    closing: dict[str, str] = {}
    for tag in tags:
        if _ABOUT_THOUGHTS.search(tag) or "inner_" in tag:
            closes = any(match.group(2) or match.group(3) for match in _SIDES.finditer(tag))
            key = _SIDES.sub(lambda match: "" if match.group(3) else "|", tag).lower()
            (closing if closes else opening).setdefault(key, tag)
    return tuple((tag, closing[key]) for key, tag in opening.items() if key in closing)


def tags_in(text: str) -> list[str]:
    """Everything in a text, such as a chat template, that is written like a marker."""
    return _TAG.findall(text)


def all_pairs(further: Sequence[Sequence[str]] = ()) -> tuple[Pair, ...]:
    """The known pairs and further ones, each once."""
    return tuple(dict.fromkeys((*KNOWN, *((str(a), str(b)) for a, b in further))))


def left_open(prompt: str, further: Sequence[Sequence[str]] = ()) -> str:
    """The marker of the thought that a prompt leaves open, or "".

    A marker that the prompt only mentions (in an instruction, or in a turn that ended) opens
    nothing.

    Args:
        prompt: The text that the model continues.
        further: Pairs of markers besides :data:`KNOWN`.
    """
    pairs = (*all_pairs(further), _HARMONY)
    at, opening, closing = max((prompt.rfind(a), a, b) for a, b in pairs)
    rest = prompt[at + len(opening) :]
    if at < 0 or closing in rest or _TURN.search(rest):
        return ""
    return opening if not rest.strip() or _BEGINS_TURN.search(prompt[:at]) else ""


def final_channel(response: str) -> tuple[str | None, str]:
    """What a response in harmony format says in its channel ``final``, or None and the reason;
    a response without channels as it is."""
    if _CHANNEL not in response:
        return response, ""
    headers = list(_CHANNEL_HEADER.finditer(response))
    if not headers or headers[-1].group(1) != "final":
        return None, "the final channel was never reached"
    return response[headers[-1].end() :], ""
