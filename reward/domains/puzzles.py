r"""Puzzles whose solutions are checked, not compared: any that fits is right.

- ``sorting``: ``{"items": [3, 1, 2], "order": "descending"}``; the answer lists all items in order.
- ``sudoku``: ``{"puzzle": [[5, 3, 0, ...], ...]}`` or 81 characters, 0 or a point for an empty
  cell; the answer has the digits of all rows.
- ``countdown``: ``{"numbers": [3, 7, 25], "target": 46, "all": true}``; the answer is an expression
  that uses each number once (at most once with ``"all": false``) and + - * / only.
- ``n_queens``: ``{"n": 8, "queens": [[0, 3]]}`` with the queens that are given as [row, column];
  the answer has the column of the queen of each row, from 0, or a board of Q and points.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

from reward.domains.base import Domain, Judgement, as_object, read_json, right
from reward.exact import NotRational, Undefined, exact
from reward.expression import nodes, parse
from reward.limits import TooHard
from reward.normalize import clean
from reward.tokens import NotAnExpression
from reward.verdict import GradingPolicy
from reward.word_answers import plain

_AROUND_DIGITS = re.compile(r"\\(?:begin|end|hline)\s*+(?:\{[^{}]*+\}){0,2}|[\s|+&,;\\\[\](){}_-]")
_COUNTDOWN_NODES = {"num", "add", "mul", "div", "neg"}


@dataclass(frozen=True)
class Sorting:
    """Items to be sorted: all numbers or all texts."""

    items: list[Any]
    order: Literal["ascending", "descending"] = "ascending"

    def __post_init__(self) -> None:
        if not isinstance(self.items, list) or not self.items:
            raise ValueError("items is a list with something to sort")
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in self.items)
        if not numbers and not all(isinstance(item, str) for item in self.items):
            raise ValueError("items are all numbers, or all texts")
        if self.order not in ("ascending", "descending"):
            raise ValueError(f'order is {self.order!r}; it is "ascending" or "descending"')


class SortingDomain(Domain):
    """Sorted lists."""

    name = "sorting"

    def reference(self, gold: str) -> Sorting:
        """An object."""
        return as_object(gold, Sorting)

    def judge(self, text: str, reference: Sorting, policy: GradingPolicy) -> Judgement:
        """Whether the same items stand in order."""
        said: list[Any] = _listed(text)
        if not isinstance(reference.items[0], str):
            said = [_number(item) for item in said]
        else:
            said = [str(item) for item in said]
        if Counter(said) != Counter(reference.items):
            return right(False, "other items")
        falling = reference.order == "descending"
        in_order = all(a >= b if falling else a <= b for a, b in pairwise(said))
        return right(in_order, reference.order if in_order else f"not {reference.order}")


@dataclass(frozen=True)
class Sudoku:
    """Nine rows of nine digits, 0 for an empty cell."""

    puzzle: Any

    def __post_init__(self) -> None:
        rows = self.puzzle
        if isinstance(rows, str):
            digits = re.sub(r"[.\-_*]", "0", re.sub(r"[\s|+]", "", rows))
            digits = digits if re.fullmatch(r"[0-9]{81}", digits) else ""
            rows = [list(map(int, digits[i : i + 9])) for i in range(0, 81, 9)]
        fits = isinstance(rows, list) and len(rows) == 9
        fits = fits and all(isinstance(row, list) and len(row) == 9 for row in rows)
        if not fits or any(cell not in range(10) for row in rows for cell in row):
            raise ValueError("a puzzle has nine rows of nine digits, 0 where a cell is empty")
        object.__setattr__(self, "puzzle", rows)


class SudokuDomain(Domain):
    """Sudoku of nine by nine."""

    name = "sudoku"

    def reference(self, gold: str) -> Sudoku:
        """81 characters, or an object."""
        return as_object(gold, Sudoku, plain="puzzle")

    def judge(self, text: str, reference: Sudoku, policy: GradingPolicy) -> Judgement:
        """Whether all cells are filled as the rules want, and the given ones are kept."""
        shown = _AROUND_DIGITS.sub("", text)
        if not re.fullmatch(r"[1-9]{81}", shown):
            raise ValueError("an answer has the 81 digits of all rows")
        rows = [[int(digit) for digit in shown[i : i + 9]] for i in range(0, 81, 9)]
        given = [(r, c) for r in range(9) for c in range(9) if reference.puzzle[r][c]]
        if any(rows[r][c] != reference.puzzle[r][c] for r, c in given):
            return right(False, "a given digit was changed")
        columns = [list(column) for column in zip(*rows, strict=True)]
        blocks = [
            [rows[r + i][c + j] for i in range(3) for j in range(3)]
            for r in (0, 3, 6)
            for c in (0, 3, 6)
        ]
        filled = all(len(set(part)) == 9 for part in (*rows, *columns, *blocks))
        return right(filled, "solved" if filled else "a digit stands twice")


@dataclass(frozen=True)
class Countdown:
    """Numbers, and what is to be made of them."""

    numbers: list[int]
    target: int
    all: bool = True

    def __post_init__(self) -> None:
        whole = [*self.numbers, self.target] if isinstance(self.numbers, list) else [None]
        if not all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in whole[:-1]):
            raise ValueError("numbers is a list of whole numbers")
        if not isinstance(whole[-1], int) or len(whole) < 2:
            raise ValueError("target is a whole number, and numbers are not empty")


class CountdownDomain(Domain):
    """Expressions of given numbers."""

    name = "countdown"

    def reference(self, gold: str) -> Countdown:
        """An object."""
        return as_object(gold, Countdown)

    def judge(self, text: str, reference: Countdown, policy: GradingPolicy) -> Judgement:
        """Whether the expression uses the numbers and has the value."""
        sides = clean(text).split("=")
        try:
            tree = parse(sides[0])
            if any(node[0] not in _COUNTDOWN_NODES for node in nodes(tree)):
                raise ValueError("only the numbers and + - * / may be used")
            used = Counter(node[1] for node in nodes(tree) if node[0] == "num")
            value = exact(tree, {})
            claimed = [exact(parse(side), {}) for side in sides[1:]]
        except (NotAnExpression, NotRational, Undefined, TooHard) as error:
            raise ValueError(f"no expression of numbers ({error})") from None
        given = Counter(Fraction(number) for number in reference.numbers)
        if not used <= given or (reference.all and used != given):
            return right(False, "not the given numbers, each once")
        if any(side != value for side in claimed):
            return right(False, "the equation is false")
        return right(value == reference.target, f"the value is {value}")


@dataclass(frozen=True)
class Queens:
    """The size of a board, and the queens that stand on it."""

    n: int
    queens: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or not 1 <= self.n <= 100:
            raise ValueError("n is a whole number from 1 to 100")
        for place in self.queens if isinstance(self.queens, list) else [None]:
            if not isinstance(place, list) or len(place) != 2:
                raise ValueError("queens are places [row, column]")
            if any(x not in range(self.n) for x in place):
                raise ValueError(f"the place {place} is not on the board")


class QueensDomain(Domain):
    """Queens that do not attack each other."""

    name = "n_queens"

    def reference(self, gold: str) -> Queens:
        """An object."""
        return as_object(gold, Queens)

    def judge(self, text: str, reference: Queens, policy: GradingPolicy) -> Judgement:
        """Whether no queen attacks another, and the given ones stand."""
        columns = _columns(text, reference.n)
        if any(columns[row] != column for row, column in reference.queens):
            return right(False, "a given queen was moved")
        free = all(
            len({f(row, column) for row, column in enumerate(columns)}) == reference.n
            for f in (lambda r, c: c, lambda r, c: r + c, lambda r, c: r - c)
        )
        return right(free, "none attacks another" if free else "two attack each other")


def _columns(text: str, n: int) -> list[int]:
    board = re.sub(r"[ \t|]", "", text.strip().strip("$`"))
    if re.fullmatch(r"[Qq._*0-]++(?:\n[Qq._*0-]++)*+", board) and "q" in board.lower():
        rows = board.lower().split("\n")
        if len(rows) != n or any(len(row) != n or row.count("q") != 1 for row in rows):
            raise ValueError(f"a board has {n} rows of {n} with one queen in each")
        return [row.index("q") for row in rows]
    columns = [_number(item) for item in _listed(text)]
    if len(columns) != n or any(column not in range(n) for column in columns):
        raise ValueError(f"an answer has {n} columns from 0 to {n - 1}")
    return [int(column) for column in columns]


def _listed(text: str) -> list[Any]:
    """The items of a list, in JSON or separated by commas, or else by spaces."""
    bare = text.strip().strip("$").strip()
    try:
        found = read_json(bare)
    except ValueError:
        found = None
    if isinstance(found, list):
        return found
    inner = plain(bare).strip("[]() ")
    parts = re.split(r"[,;]", inner) if re.search(r"[,;]", inner) else inner.split()
    return [part.strip().strip("'\"`") for part in parts]


def _number(item: object) -> float | int:
    if isinstance(item, bool) or not isinstance(item, str | int | float):
        raise ValueError(f"{item!r} is no number")
    if isinstance(item, str):
        if not re.fullmatch(r"[-+]?\d{1,300}(?:\.\d{1,300})?", item.strip()):
            raise ValueError(f"{item[:40]!r} is no number")
        return float(item) if "." in item else int(item)
    return item


DOMAINS = {
    domain.name: domain
    for domain in (SortingDomain(), SudokuDomain(), CountdownDomain(), QueensDomain())
}
