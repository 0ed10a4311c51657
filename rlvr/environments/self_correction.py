"""A second try after a wrong answer, without being told the right one."""

from rlvr.environments.environment import Action, Done, Environment, Observation
from rlvr.types import Problem


class SelfCorrection(Environment):
    """The verifier's verdict on an answer; a wrong one may be tried again.

    Args:
        tries: Answers in all.
        words: Said after a wrong answer.
        first: Reward of an answer that is right at once.
        later: Reward of one that is right after another try.
    """

    def __init__(
        self,
        tries: int = 2,
        words: str = "That is wrong. Try again.",
        first: float = 1.0,
        later: float = 0.5,
    ) -> None:
        if tries < 2:
            raise ValueError(f"self_correction: tries = {tries} must be at least 2")
        self.tries, self.words, self.first, self.later = tries, words, first, later

    def reset(self, problem: Problem) -> None:
        """See that there is something to compare with.

        Raises:
            ValueError: There is none.
        """
        if not problem.answer:
            raise ValueError(
                f"self_correction needs reference answers, and problem {problem.id!r} has none"
            )

    def step(self, action: Action) -> Observation | Done:
        """Grade an answer."""
        if self.judge(action.text):
            return Done(self.first if action.turn == 1 else self.later)
        return Done(0.0) if action.turn == self.tries else Observation(self.words, reward=0.0)
