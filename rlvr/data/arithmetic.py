"""Generated arithmetic whose training and held-out problems cannot overlap.

All problems that the settings allow are numbered 0 .. N-1 for each operation. A keyed permutation
of that range (a Feistel network over the next power of four, applied until the result is in range:
Black and Rogaway, "Ciphers with arbitrary finite domains", 2002) shuffles them without listing
them, so that ten digits cost no more than two. The first ``held_out`` share of this order is the
held-out set and the rest is the training set. A data set of any size is a prefix of its set, so the
size never changes the set to which a problem belongs.

54+94 and 94+54 are two problems and may be in different sets.
"""

import hashlib
import math
import re
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from rlvr.settings import Settings
from rlvr.types import Message, Problem

Operation = Literal["add", "subtract", "multiply", "multiply_by_digit"]

_SIGNS: dict[Operation, str] = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "multiply_by_digit": "*",
}
# Products with 0 and 1 teach nothing.
_DIGITS = range(2, 10)
_ROUNDS = 4


class ArithmeticSource(Settings):
    """Generated arithmetic problems; training and held-out sets are disjoint by construction."""

    name: Literal["arithmetic"] = "arithmetic"
    """Generated arithmetic."""

    operations: tuple[Operation, ...] = ("add",)
    """Operations, in equal shares. The second operand of ``multiply_by_digit`` is 2 to 9."""

    digits: int = Field(default=2, ge=1, le=15)
    """Operands are below 10 to this power."""

    least_operand: int = Field(default=0, ge=0)
    """Smallest operand; with 10 and digits 2, both operands have exactly two digits."""

    negative_results: bool = False
    """Allow negative differences; if false, the first operand is not smaller than the second."""

    question: str = "{a}{sign}{b}="
    """Text of the problem; ``{a}``, ``{sign}`` and ``{b}`` are replaced."""

    size: int = Field(default=1000, ge=1)
    """Number of problems."""

    seed: int = 0
    """Seed of the order of all problems, and so of the two sets. Training and evaluation must share
    it."""

    split: Literal["train", "held_out"] = "train"
    """Which set to generate."""

    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of all possible problems that is held out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise ValueError("operations must list at least one name, and no name twice")
        if self.least_operand >= 10**self.digits:
            raise ValueError(
                f"least_operand={self.least_operand} leaves no operand with digits={self.digits}; "
                f"it must be below {10**self.digits}"
            )
        if [self.question.count(part) for part in ("{a}", "{b}")] != [1, 1]:
            raise ValueError("question must contain {a} and {b} exactly once each")
        # Otherwise two different problems could have the same text and be in both sets.
        if not re.search(r"\{[ab]\}.*\D.*\{[ab]\}", self.question.replace("{sign}", "+"), re.S):
            raise ValueError("question must separate {a} and {b} by something other than a digit")
        if len({_SIGNS[name] for name in self.operations}) > 1 and "{sign}" not in self.question:
            raise ValueError("question must contain {sign}, because there are several operations")
        if {"multiply", "multiply_by_digit"} <= set(self.operations):
            raise ValueError(
                "multiply includes the problems of multiply_by_digit; choose one of the two"
            )
        return self


class _Operation(NamedTuple):
    """One operation: its number of problems, and how many of them are held out."""

    operation: Operation
    total: int
    held: int


def load_arithmetic(source: ArithmeticSource) -> list[Problem]:
    """Generate ``size`` problems of one set, alternating between the operations.

    Raises:
        ValueError: ``size`` is larger than the number of problems, which the message names.
    """
    tasks = [_operation(source, operation) for operation in source.operations]
    parts = [task.held if source.split == "held_out" else task.total - task.held for task in tasks]
    available = min(parts) * len(tasks)
    if source.size > available:
        raise ValueError(
            f"arithmetic: size={source.size}, but split {source.split!r} has {available} problems "
            f"of {', '.join(source.operations)} with digits={source.digits} and "
            f"least_operand={source.least_operand}; lower size or raise digits"
        )
    return [_problem(source, tasks[i % len(tasks)], i // len(tasks)) for i in range(source.size)]


def _operation(source: ArithmeticSource, operation: Operation) -> _Operation:
    operands = 10**source.digits - source.least_operand
    if operation == "multiply_by_digit":
        count = operands * len(_DIGITS)
    elif operation == "subtract" and not source.negative_results:
        count = operands * (operands + 1) // 2
    else:
        count = operands * operands
    return _Operation(operation, count, min(count - 1, max(1, int(count * source.held_out))))


def _problem(source: ArithmeticSource, task: _Operation, position: int) -> Problem:
    start = 0 if source.split == "held_out" else task.held
    key = f"{source.seed}/{task.operation}/{source.digits}/{source.least_operand}/{task.total}"
    a, b = _operands(source, task.operation, permuted(start + position, task.total, key))
    result = {"add": a + b, "subtract": a - b}.get(task.operation, a * b)
    text = source.question.replace("{a}", str(a)).replace("{b}", str(b))
    text = text.replace("{sign}", _SIGNS[task.operation])
    metadata = {"operation": task.operation, "a": a, "b": b, "split": source.split}
    return Problem(
        id=f"{task.operation}-{a}-{b}",
        messages=(Message(role="user", content=text),),
        answer=str(result),
        source="arithmetic",
        metadata=metadata,
        columns={"problem": text, "answer": str(result), **metadata},
    )


def _operands(source: ArithmeticSource, operation: Operation, index: int) -> tuple[int, int]:
    """The pair of operands with this index."""
    least, operands = source.least_operand, 10**source.digits - source.least_operand
    if operation == "multiply_by_digit":
        first, second = divmod(index, len(_DIGITS))
        return least + first, _DIGITS[second]
    if operation == "subtract" and not source.negative_results:
        # Pairs with b <= a in rows of 1, 2, 3, ...: row a starts at a (a + 1) / 2.
        first = (math.isqrt(8 * index + 1) - 1) // 2
        return least + first, least + index - first * (first + 1) // 2
    first, second = divmod(index, operands)
    return least + first, least + second


def permuted(index: int, count: int, key: str) -> int:
    """The value of ``index`` under a keyed permutation of range(count)."""
    half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    while True:
        index = _feistel(index, half, key)
        if index < count:
            return index


def _feistel(value: int, half: int, key: str) -> int:
    """A permutation of the numbers below 4 ** half."""
    left, right = value >> half, value & ((1 << half) - 1)
    for number in range(_ROUNDS):
        digest = hashlib.blake2b(f"{key}/{number}/{right}".encode(), digest_size=8).digest()
        left, right = right, left ^ (int.from_bytes(digest, "big") & ((1 << half) - 1))
    return (left << half) | right
