r"""Find the answer in a model's response.

One linear pass, no backtracking patterns: a response may be megabytes of anything. The steps are

1. cut at the first end-of-turn token, and at the first "next question" line after the thinking (a
   base model may go on to invent and answer another problem);
2. keep the text after the last thought (`reward.thoughts`: ``</think>`` and its relatives, or
   harmony's channel ``final``); nothing remains if a thought never closed;
3. use the last ``\boxed`` or ``\fbox`` whose braces balance. An unclosed last box is not an answer:
   falling back to a number inside it would reward a truncated guess.

There is no fallback to the last number unless it is requested by name: with it, "Step 3" would be
right for 3.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reward.thoughts import Pair, all_pairs, final_channel
from reward.verdict import Extraction

# Boxes are near the end, so a bounded tail is enough; it keeps ten megabytes of braces cheap.
TAIL_CHARACTERS = 200_000

END_OF_TURN = (
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end|>",
    "<|user|>",
    "<|return|>",
    "<|call|>",
    "<|END_RESPONSE|>",
    "<|end_of_solution|>",
    "<end_of_turn>",
    "<start_of_turn>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<\uff5cUser\uff5c>",
    "</s>",
    "<eos>",
    "<|eot|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|endofassistant|>",
    "<|endofturn|>",
    "<|system|>",
    "[INST]",
)
_OPENING, _NUMBERED = r"\n[ \t]{0,8}(?:[#*]{1,4}[ \t]?)?", r"[ \t]?\d{0,4}(?:\*\*)?[ \t]?"
_NEXT_TURN = re.compile(_OPENING + "(?:Question|Human|User|Instruction)" + _NUMBERED + ":")
# Only after a box: before it, "Problem:" may start a restatement of the problem.
_NEXT_PROBLEM = re.compile(
    _OPENING
    + "(?:(?:Next|New|Another) )?(?:[Pp]roblem|[Ee]xercise|[Qq]uestion|Q)"
    + _NUMBERED
    + r"[:.]"
    r"|" + _OPENING + r"(?:(?:Next|New|Another) )?[Ee]xample[ \t]?\d{1,4}(?:\*\*)?[ \t]?[:.]"
    r"|\n[ \t]{0,8}System:[ \t]?(?=[Yy]ou\b)"
    r"|\n[ \t]{0,8}[#*]{1,4}[ \t]?(?:Problem|Exercise|Question|Example|Instruction)"
    r"[ \t]?\d{0,4}[ \t]?(?:\*\*)?[ \t]?(?=\n)"
    r"|\n(?:user|human)[ \t]?(?=\n)"
)

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])[ \t\r\n]*|\\.|[{}]", re.DOTALL)
_EMPTY = re.compile(r"[\s{}$~]|\\(?:[,;:!> ]|(?:text|math)[a-z]{0,6}(?![a-z])|q?quad(?![a-z]))")
_BARE_BOX = re.compile(r"([+-]?\d++(?:\.\d++)?+|[A-Za-z])(?!\.*+[\w^{])")
_MARKED_LINE = re.compile(
    r"(?:^|\n|[.!?] |\*\*)[ \t]*(?:\*\*)?(?:the )?(?:final )?(?:answer|答案)(?:\*\*)?"
    r"[ \t]{0,4}[:\uff1a](?:\*\*)?[ \t]*([^\n]{1,1000})",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?(?:\d[\d,]*)(?:\.\d+)?(?:/\d+)?")


_Box = tuple[int, int, int]  # start, start of the content, end (-1: not closed)

_BRACKETS = re.compile(r"\[([^\[\]]{1,1000})\]")
_FORMULA = re.compile(
    r"\$\$([^$]{1,1000})\$\$|(?<!\\)\$([^$]{1,1000})\$|\\\(((?:(?!\\\)).){1,1000})\\\)"
    r"|\\\[((?:(?!\\\]).){1,1000})\\\]",
    re.DOTALL,
)
_ANNOUNCED = re.compile(
    r"final answer(?: is)?:?\s*+([^\n]{1,500}?)\.?\s{0,8}I hope it is correct", re.IGNORECASE
)
_PLAIN_MATH = re.compile(
    r"[-+]?(?:\\frac\{[^{}]{1,40}\}\{[^{}]{1,40}\}"
    r"|\d[\d,]*(?:\.\d+)?(?:/\d+)?\s?(?:\\?%|percent|pct)?)"
)


@dataclass(frozen=True)
class Extracted:
    """The answer text (``None`` if there is none), and where it was found or why it is missing."""

    answer: str | None
    source: Literal["box", "tag", "line", "number", "none"]
    reason: str


def extract(
    response: str,
    mode: Extraction = "boxed",
    join_boxes: bool = False,
    thoughts: Sequence[Sequence[str]] = (),
) -> Extracted:
    """Extract the final answer from ``response``.

    Args:
        response: what the model wrote, including thinking; if the prompt left a thought open, with
            the marker that opened it in front.
        mode: ``boxed``, ``marked`` or ``last_number`` (see `GradingPolicy.extraction`).
        join_boxes: join several boxes on the last boxed line with commas.
        thoughts: pairs of thought markers besides the known ones.
    """
    segment, missing = final_segment(response, thoughts)
    if segment is None:
        return Extracted(None, "none", missing)
    boxed = _from_boxes(segment, join_boxes)
    if boxed is not None:
        return boxed
    if mode in ("marked", "last_number", "last_math"):
        marked = _from_markers(segment)
        if marked is not None:
            return marked
    tail = segment[-TAIL_CHARACTERS:]
    if mode == "bracketed":
        brackets = _BRACKETS.findall(tail)
        if brackets:
            return Extracted(brackets[-1].strip(), "number", "last bracket of the response")
    if mode == "last_math":
        math = _last_math(tail)
        if math is not None:
            return Extracted(math, "number", "last formula of the response")
    if mode in ("last_number", "last_math"):
        numbers = _NUMBER.findall(tail)
        if numbers:
            return Extracted(numbers[-1].replace(",", ""), "number", "last number of the response")
    return Extracted(None, "none", "no box in the final answer")


def final_segment(
    response: str, thoughts: Sequence[Sequence[str]] = (), *, one_problem: bool = True
) -> tuple[str | None, str]:
    """Return the part of a response that may contain its answer, or ``None`` and the reason.

    With ``one_problem`` it ends where the response begins to pose another problem.
    """
    spoken, missing = final_channel(response)
    if spoken is None:
        return None, missing
    pairs = all_pairs(thoughts)
    text = _cut_at_markers(spoken, pairs) if one_problem else _cut_at_end(spoken)
    close = max(text.rfind(end) + len(end) if end in text else 0 for _, end in pairs)
    if any(text.find(start, close) >= 0 for start, _ in pairs):
        return None, "the think block was never closed"
    segment = text[close:]
    if not segment.strip():
        return None, "the response is empty" if close == 0 else "nothing follows the think block"
    return segment, ""


def last_box(text: str) -> str | None:
    r"""Return the content of the last balanced ``\boxed{}`` or ``\fbox{}``, unwrapped."""
    found = _from_boxes(text, join_boxes=False, braces_only=True)
    return found.answer if found is not None else None


def unwrap_boxes(text: str) -> str:
    r"""Replace every ``\boxed{x}`` and ``\fbox{x}`` in ``text`` with ``x``."""
    if "box" not in text:
        return text
    for _ in range(8):
        boxes = [(start, inner, end) for start, inner, end in _scan(text) if end >= 0]
        if not boxes:
            return text
        outermost: list[_Box] = []
        for start, inner, end in boxes:
            if not outermost or start >= outermost[-1][2]:
                outermost.append((start, inner, end))
        pieces: list[str] = []
        position = 0
        for start, inner, end in outermost:
            between = text[position:start]
            if pieces and not between.strip():
                between = ", "  # adjacent boxes are a list, not one longer number
            pieces += [between, text[inner : end - 1]]
            position = end
        text = "".join([*pieces, text[position:]])
    return text


def _cut_at_markers(text: str, pairs: Sequence[Pair]) -> str:
    """Cut at the first end-of-turn token and at the first line that starts another problem."""
    text = _cut_at_end(text)
    answer_from = max(text.find(end) for _, end in pairs)
    answer_from = max(answer_from, 0)
    turn = _NEXT_TURN.search(text, answer_from)
    while turn and not text[answer_from : turn.start()].strip():
        turn = _NEXT_TURN.search(text, turn.end())
    if turn:
        text = text[: turn.start()]
    box = re.compile(r"\\(?:boxed|fbox)").search(text, answer_from)
    if box:
        problem = _NEXT_PROBLEM.search(text, box.end())
        if problem:
            text = text[: problem.start()]
    return text


def _cut_at_end(text: str) -> str:
    """Cut at the first end-of-turn token."""
    ends = [text.find(marker) for marker in END_OF_TURN]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _scan(text: str) -> list[_Box]:
    r"""List the boxes of ``text`` as (start, start of content, end), in order of start.

    One pass with a stack of open braces; ``\{`` and ``\}`` and ``\\`` do not count. A box written
    without braces (``\boxed3``) has its content directly.
    """
    boxes: list[_Box] = []
    stack: list[int | None] = []
    position = 0
    while match := _BOX_TOKEN.search(text, position):
        token, position = match.group(), match.end()
        if token[0] == "\\" and len(token) > 2:
            if text[position : position + 1] == "{":
                boxes.append((match.start(), position + 1, -1))
                stack.append(len(boxes) - 1)
                position += 1
        elif token == "{":
            stack.append(None)
        elif token == "}" and stack:
            index = stack.pop()
            if index is not None:
                start, inner, _ = boxes[index]
                boxes[index] = (start, inner, position)
    return boxes


def _from_boxes(segment: str, join_boxes: bool, braces_only: bool = False) -> Extracted | None:
    tail = segment[-TAIL_CHARACTERS:]
    boxes = _scan(tail)
    bare = None if braces_only else _bare_box(tail, boxes[-1][0] if boxes else -1)
    if bare is not None:
        return Extracted(bare, "box", "last box")
    if not boxes:
        return None
    start, inner, end = boxes[-1]
    if end < 0:
        return Extracted(None, "none", "the last box is not closed")
    for outer in reversed(boxes[:-1]):
        if outer[2] >= end:
            start, inner, end = outer
    answer = unwrap_boxes(tail[inner : end - 1]).strip()
    if join_boxes:
        answer = _joined(tail, boxes, start) or answer
    if not _EMPTY.sub("", answer):
        return Extracted(None, "none", "the last box is empty")
    return Extracted(answer, "box", "last box")


def _bare_box(text: str, after: int) -> str | None:
    r"""Read ``\boxed3`` or ``\boxed 12`` if it follows the last box with braces."""
    found = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if found <= after:
        return None
    content = re.compile(r"\\(?:boxed|fbox)[ \t]*").match(text, found)
    assert content is not None
    number = _BARE_BOX.match(text, content.end())
    return number.group(1) if number else None


def _joined(text: str, boxes: list[_Box], last: int) -> str | None:
    """Join the top-level closed boxes on the line of the last one."""
    line = text.rfind("\n", 0, last) + 1
    answers, covered = [], line
    for start, inner, end in boxes:
        if start >= covered and end >= 0:
            answers.append(unwrap_boxes(text[inner : end - 1]).strip())
            covered = end
    return ", ".join(answer for answer in answers if answer) or None


def sentence_answer(text: str) -> str | None:
    """Read the answer from a sentence: its announced answer, last box, or last formula.

    Use it for comparing pairs whose answer is prose, never for rewards.
    """
    announced = list(_ANNOUNCED.finditer(text[-TAIL_CHARACTERS:]))
    if announced:
        said = announced[-1].group(1)
        return extract(said, "last_math").answer or said
    found = extract(text, "last_math")
    if found.source == "line" and found.answer is not None and len(found.answer.split()) > 3:
        return _last_math(found.answer) or found.answer
    return found.answer


def _last_math(text: str) -> str | None:
    """Return the last formula in dollar signs or LaTeX brackets, unless a number follows it."""
    spans = [
        (match.end(), next(group for group in match.groups() if group is not None))
        for match in _FORMULA.finditer(text[-20_000:])
    ]
    end, formula = spans[-1] if spans else (0, None)
    fractions = list(_PLAIN_MATH.finditer(text[-20_000:], end))
    return fractions[-1].group().strip() if fractions else formula


def _from_markers(segment: str) -> Extracted | None:
    """Read the last ``<answer>`` tag or ``Answer:`` line."""
    tail = segment[-TAIL_CHARACTERS:]
    close = tail.rfind("</answer>")
    if close >= 0:
        open_ = tail.rfind("<answer>", 0, close)
        answer = tail[open_ + len("<answer>") : close].strip() if open_ >= 0 else ""
        return Extracted(answer or None, "tag" if answer else "none", "answer tag")
    lines = _MARKED_LINE.findall(tail)
    if lines:
        answer = lines[-1].strip().strip("*").strip()
        return Extracted(answer or None, "line" if answer else "none", "answer line")
    return None
