"""A second judge for a random part of a run's verdicts (``reward.check``).

A verdict is drawn with a probability that depends on it alone, accepted or rejected, by a number
that is a function of (run seed, step, problem, sample): a run that repeats a step draws the same.
The judge (`reward.second_opinion`) has killable processes and a time limit of its own. It works
while completions are generated and reward functions are waited for; nothing it says, and no fault
of it, touches a reward.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from time import monotonic
from typing import Any

import reward
from reward import VerifierPool
from reward.functions import RewardInput
from reward.graders import SECOND_OPINION, graded_text
from rlvr.data.consistency import MATHEMATICS
from rlvr.runs.rewards import CheckSettings
from rlvr.types import Problem

_NO_VERDICT = frozenset({"no_answer", "unparsable_gold"})
"""Statuses of responses that cannot be drawn: nothing was compared."""
_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class SecondOpinion:
    """What became of a verdict that could be drawn; ``grade`` is None if it was not."""

    grade: reward.Grade | None

    @property
    def says(self) -> bool | None:
        """Whether the second judge takes the answer for right; None if it cannot say."""
        return self.grade.correct if self.grade and self.grade.status == "ok" else None


def opinion_from_state(state: Mapping[str, Any] | None) -> SecondOpinion | None:
    """Restore an opinion from its fields as JSON has them."""
    if state is None:
        return None
    return SecondOpinion(None if state["grade"] is None else reward.Grade(**state["grade"]))


@dataclass(frozen=True)
class Asked:
    """The verdicts of some completions, in order: None cannot be drawn; those drawn have a
    future."""

    futures: list["Future[reward.Grade] | bool | None"]


def check_problems(check: CheckSettings | None, problems: Sequence[Problem]) -> list[str]:
    """What is to be said about problems whose verdicts are not judged again.

    Args:
        check: The setting.
        problems: Of training.

    Raises:
        ValueError: There is no problem of mathematics with a reference answer.
    """
    if check is None:
        return []
    left_out = sorted({one.grader for one in problems if one.answer} - {*MATHEMATICS})
    judged = sum(bool(one.answer) and one.grader in MATHEMATICS for one in problems)
    if not judged:
        why = f"the grader is {', '.join(left_out)}" if left_out else "there are no answers"
        raise ValueError(
            f"reward.check judges only verdicts of mathematics again, and of {len(problems)} "
            f"problems none has one: {why}; set reward.check to null"
        )
    if not left_out:
        return []
    return [
        f"reward.check judges {judged} of {len(problems)} problems; those of "
        f"{', '.join(left_out)} are no mathematics"
    ]


def drawn_number(run_seed: int, step: int, problem_id: str, sample: int) -> float:
    """A number in [0, 1) that depends only on the arguments, and not on those of sampling."""
    text = f"check\x1f{run_seed}\x1f{step}\x1f{problem_id}\x1f{sample}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class SecondJudge:
    """Draws verdicts and has them given again; a context manager.

    Args:
        settings: Shares and limits.
        seed: Of the run.
        policy: Which text of a response is its answer.
    """

    def __init__(
        self, settings: CheckSettings, seed: int, policy: reward.GradingPolicy = reward.DEFAULT
    ) -> None:
        self.settings, self.seed = settings, seed
        self.pool = VerifierPool(settings.workers, settings.timeout, SECOND_OPINION, policy)

    def __enter__(self) -> "SecondJudge":
        self.pool.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def ask(
        self,
        items: Sequence[RewardInput],
        grades: Sequence[reward.Grade | None],
        samples: Sequence[int],
        step: int,
    ) -> Asked:
        """Draw among verdicts and hand those drawn to the judge; nothing is waited for.

        Args:
            items: What was graded.
            grades: The verdicts.
            samples: The sample index of each completion.
            step: For which they were sampled.
        """
        rows = zip(items, grades, samples, strict=True)
        return Asked([self._ask(item, grade, sample, step) for item, grade, sample in rows])

    def _ask(
        self, item: RewardInput, grade: reward.Grade | None, sample: int, step: int
    ) -> "Future[reward.Grade] | bool | None":
        if grade is None or grade.status in _NO_VERDICT or item.grader not in MATHEMATICS:
            return None
        share = self.settings.accepted if grade.correct else self.settings.rejected
        if drawn_number(self.seed, step, item.problem_id, sample) >= share:
            return False
        text = graded_text(item.response, item.opened, SECOND_OPINION)
        if item.grader != "rlvr" and grade.extracted is not None and grade.path != "limit":
            # Other graders read answers where ours sees none.
            return self.pool.submit_pair(grade.extracted, item.gold)
        return self.pool.submit(text, item.gold)

    def answers(
        self, asked: Sequence[Asked], tick: Callable[[], None] = lambda: None
    ) -> list[list[SecondOpinion | None]]:
        """The opinions, in order; what is not there within the time limit is given up.

        Args:
            asked: What :meth:`ask` returned.
            tick: Called while waiting; what it raises ends that.
        """
        self._wait([one for part in asked for one in part.futures if isinstance(one, Future)], tick)
        return [[_opinion(one) for one in part.futures] for part in asked]

    def _wait(self, futures: Sequence["Future[reward.Grade]"], tick: Callable[[], None]) -> None:
        end = monotonic() + self.settings.timeout
        while wait(futures, timeout=min(_INTERVAL_S, max(0.0, end - monotonic()))).not_done:
            if monotonic() >= end:
                return
            tick()


def _opinion(asked: "Future[reward.Grade] | bool | None") -> SecondOpinion | None:
    if not isinstance(asked, Future):
        return None if asked is None else SecondOpinion(None)
    if asked.cancel() or not asked.done():
        return SecondOpinion(_failed("timeout", "not judged before the step went on"))
    error = asked.exception()
    if error is not None:  # no process can be started any more
        return SecondOpinion(_failed("crash", f"{type(error).__name__}: {str(error)[:200]}"))
    return SecondOpinion(asked.result())


def _failed(status: Any, reason: str) -> reward.Grade:  # noqa: ANN401
    return reward.Grade(False, None, "unknown", "none", reason, status)
