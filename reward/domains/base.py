"""What every domain shares: finding the answer, reading the reference, giving a verdict."""

import json
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

from reward.extract import extract, final_segment
from reward.limits import MAX_ANSWER_CHARACTERS
from reward.verdict import DEFAULT, Grade, GradingPolicy

Part = Literal["answer", "response"]
"""What a domain reads: the answer that the model announces (a box, an ``<answer>`` tag or a line
``Answer:``), or all that follows the thought."""

MAX_RESPONSE_CHARACTERS = 200_000
"""A longer response is not read where a domain reads all of it."""


@dataclass(frozen=True)
class Judgement:
    """What a domain says of an answer.

    ``score`` is its share of the credit, from 0 to 1; ``correct`` whether it is right, by default
    whether it gets all.
    """

    score: float
    reason: str
    correct: bool | None = None


def right(is_right: bool, reason: str) -> Judgement:
    """A judgement without partial credit."""
    return Judgement(float(is_right), reason)


class Domain:
    """One kind of answer: a grader ``(response, gold, policy) -> Grade``.

    A subclass defines `reference` and `judge`.
    """

    name: ClassVar[str]
    reads: ClassVar[Part] = "answer"

    def part(self, reference: Any) -> Part:  # noqa: ANN401
        """What is read of a response for this reference."""
        return self.reads

    def reference(self, gold: str) -> Any:  # noqa: ANN401  (each domain's own)
        """Read a reference.

        Raises:
            ValueError: it is none of this domain.
        """
        raise NotImplementedError

    def judge(self, text: str, reference: Any, policy: GradingPolicy) -> Judgement:  # noqa: ANN401
        """Compare what was said with a reference.

        Raises:
            ValueError: the text cannot be read as an answer of this domain.
        """
        raise NotImplementedError

    def check(self, gold: str) -> str | None:
        """Say why nothing can be compared with ``gold``, or None."""
        try:
            self.reference(gold)
        except ValueError as error:
            return str(error)
        return None

    def __call__(self, response: str, gold: str, policy: GradingPolicy = DEFAULT) -> Grade:
        """Grade a response."""
        try:
            reference = self.reference(gold)
        except ValueError as error:
            return Grade(False, None, self.name, "gold", str(error), "unparsable_gold")
        text, missing = _said(response, self.part(reference), policy)
        if text is None:
            return Grade(False, None, self.name, "extract", missing, "no_answer")
        return self._verdict(text, reference, policy)

    def pair(self, pred: str, gold: str, policy: GradingPolicy = DEFAULT) -> Grade:
        """Grade a bare answer."""
        try:
            reference = self.reference(gold)
        except ValueError as error:
            return Grade(False, pred, self.name, "gold", str(error), "unparsable_gold")
        return self._verdict(pred, reference, policy)

    def _verdict(self, text: str, reference: Any, policy: GradingPolicy) -> Grade:  # noqa: ANN401
        whole = self.part(reference) == "response"
        limit = MAX_RESPONSE_CHARACTERS if whole else MAX_ANSWER_CHARACTERS
        shown = text.strip()[:200]
        if len(text) > limit:
            reason = f"{len(text)} characters; at most {limit} are read"
            return Grade(False, shown, self.name, "limit", reason, "unparsable_pred")
        try:
            found = self.judge(text, reference, policy)
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
            return Grade(False, shown, self.name, self.name, reason, "unparsable_pred")
        correct = found.score == 1 if found.correct is None else found.correct
        certainty = "exact" if correct else ""
        return Grade(
            correct,
            shown,
            self.name,
            self.name,
            found.reason,
            certainty=certainty,
            score=found.score,
        )


def _said(response: str, part: Part, policy: GradingPolicy) -> tuple[str | None, str]:
    """The part of a response that is judged, or None and the reason."""
    if part == "response":
        return final_segment(response, policy.thoughts, one_problem=False)
    mode = "marked" if policy.extraction == "boxed" else policy.extraction
    found = extract(response, mode, policy.join_boxes, policy.thoughts)
    return found.answer, found.reason


Read = TypeVar("Read")


def as_object(gold: str, kind: type[Read], plain: str | None = None) -> Read:
    """Read a reference that is a JSON object with the fields of a dataclass.

    Args:
        gold: the reference.
        kind: the dataclass; its ``__post_init__`` checks the values.
        plain: the field that a reference stands for which is no JSON object, if there is one.

    Raises:
        ValueError: it is no such object; the message names the field.
    """
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    try:
        found = read_json(gold)
    except ValueError:
        found = gold
    if not isinstance(found, dict):
        if plain is None:
            raise ValueError(
                f"the reference {gold[:80]!r} is no JSON object with {', '.join(names)}"
            )
        found = {plain: gold.strip()}
    unknown = [name for name in found if name not in names]
    if unknown:
        raise ValueError(f"the reference has {unknown[0]!r}; its fields are {', '.join(names)}")
    for item in fields(kind):  # type: ignore[arg-type]
        if item.default is MISSING and item.default_factory is MISSING and item.name not in found:
            raise ValueError(f"the reference lacks {item.name!r}; its fields are {names}")
    return kind(**found)


def read_json(text: str) -> Any:  # noqa: ANN401  (any JSON value)
    """Read JSON as its standard has it: no NaN, and no name twice in an object.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """

    def number(word: str) -> float:
        raise ValueError(f"{word} is no JSON number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands twice in one object")
        return found

    try:
        return json.loads(text, parse_constant=number, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
