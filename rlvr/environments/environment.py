"""What an environment is: it sets a task, and answers what the policy writes until it is done.

    class Countdown(Environment):
        def __init__(self, start: int = 3) -> None:
            self.left = start

        def reset(self, problem):
            return f"Count down from {self.left}, a number at a time."

        def step(self, action):
            right = action.text.strip() == str(self.left)
            self.left -= 1
            if not right or not self.left:
                return Done(float(right))
            return Observation("Go on.")

There is one object for each episode: its attributes are the episode's state. ``step`` may be
``async``. An environment knows neither tokens nor engines.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

from rlvr.types import FinishReason, Message, Problem


@dataclass(frozen=True, slots=True)
class Action:
    """What the policy wrote in a turn: its text, its ids, and the turn's number from 1."""

    text: str
    token_ids: tuple[int, ...]
    turn: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy reads before its next turn: a user's words, or messages of any roles.

    ``reward`` is that of the turn that it answers; rewards of turns add up.
    """

    content: str | Sequence[Message]
    reward: float | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The content as messages."""
        if isinstance(self.content, str):
            return (Message(role="user", content=self.content),)
        return tuple(self.content)


@dataclass(frozen=True, slots=True)
class Done:
    """The episode is over; ``reward`` is that of its last turn.

    ``cut`` names the limit that ended it, where it did not come to its end.
    """

    reward: float = 0.0
    cut: FinishReason | None = None


class Environment:
    """Base of environments; parameters of a recipe are arguments of its constructor.

    Attributes:
        random: Numbers for :meth:`reset` that depend on the problem alone, so that all episodes of
            a group have one task, and for :meth:`step` on the episode's place in the run.
        judge: Says whether a text has the problem's reference answer, by the problem's verifier, in
            a process of its own and under its time limit.
    """

    random: Random
    judge: Callable[[str], bool]

    def reset(self, problem: Problem) -> str | Sequence[Message] | None:
        """Begin an episode: what the policy reads first.

        A text is the last user message, messages are the whole prompt, None is the problem's own.
        It is the same whenever the problem is.
        """
        return None

    def step(self, action: Action) -> Observation | Done | Awaitable[Observation | Done]:
        """Answer a turn."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the episode holds; called once when it is over, also where it was cut or the
        run is stopped."""
