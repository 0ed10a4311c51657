"""Bounds on the work for one answer.

The cheap lexical screen raises `TooHard`, and the alarm of a worker process raises `Expired`. Both
lead to a refused answer with a reason in words. The alarm works only in the main thread of a
process, so grading runs in worker processes; the parent's deadline and SIGKILL are the last resort
(see `reward.pool`).
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MAX_ANSWER_CHARACTERS = 1000


class TooHard(ValueError):
    """The answer needs more work than any real reference answer."""


class Expired(BaseException):
    """The time limit for one answer has passed."""


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise `Expired` in the main thread after ``seconds`` whole seconds.

    Raises:
        ValueError: when called outside the main thread, where no alarm can be delivered.
    """

    def expire(signum: int, frame: FrameType | None) -> None:
        raise Expired(f"no verdict within {seconds} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.alarm(max(1, seconds))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
