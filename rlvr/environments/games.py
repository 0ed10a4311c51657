"""Small games of several turns, for models of any size."""

import re

from rlvr.environments.environment import Action, Done, Environment, Observation
from rlvr.types import Problem

_NUMBER = re.compile(r"\d{1,9}")


class GuessNumber(Environment):
    """Find a hidden number; each guess is told to be too low or too high.

    Of N numbers a single guess finds one in N; halving the range finds any in log2(N) + 1 turns.

    Args:
        low: Least number.
        high: Greatest.
        lower: Said of a guess above the number.
        higher: Said of a guess below it.
    """

    def __init__(
        self, low: int = 1, high: int = 16, lower: str = "lower", higher: str = "higher"
    ) -> None:
        if high <= low:
            raise ValueError(f"guess_number: high = {high} must be above low = {low}")
        self.low, self.high, self.lower, self.higher = low, high, lower, higher

    def reset(self, problem: Problem) -> str:
        """Hide a number."""
        self.number = self.random.randint(self.low, self.high)
        return f"{self.low}-{self.high}?"

    def step(self, action: Action) -> Observation | Done:
        """Compare a guess, the last number of the turn."""
        found = _NUMBER.findall(action.text)
        if not found:
            return Done(0.0)
        guess = int(found[-1])
        if guess == self.number:
            return Done(1.0)
        return Observation(self.higher if guess < self.number else self.lower)


_MOVES = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


class Grid(Environment):
    """Walk to a goal on a grid; each turn is a move, and the new place is told.

    Args:
        size: Of the square grid.
    """

    def __init__(self, size: int = 4) -> None:
        if size < 2:
            raise ValueError(f"grid: size = {size} must be at least 2")
        self.size = size

    def reset(self, problem: Problem) -> str:
        """Place the walker and, elsewhere, the goal."""
        cells = [(x, y) for x in range(self.size) for y in range(self.size)]
        self.place, self.goal = self.random.sample(cells, 2)
        return f"{_told(self.place)} to {_told(self.goal)}?"

    def step(self, action: Action) -> Observation | Done:
        """Move; a word that is no move, or a wall, ends the walk."""
        move = _MOVES.get(action.text.strip().lower())
        if move is None:
            return Done(0.0)
        x, y = self.place[0] + move[0], self.place[1] + move[1]
        if not (0 <= x < self.size and 0 <= y < self.size):
            return Done(0.0)
        self.place = (x, y)
        return Done(1.0) if self.place == self.goal else Observation(_told(self.place))


def _told(place: tuple[int, int]) -> str:
    return f"{place[0]},{place[1]}"
