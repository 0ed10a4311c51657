"""Bounds on the work one answer may cause.

`TooHard` is raised by the cheap lexical screen; `Expired` by the alarm of a worker process. Both
lead to a refused answer with the reason in words. The alarm works in the main thread of a process
only, which is why grading happens in worker processes; the parent's deadline and SIGKILL stand
behind it (see `reward.pool`).
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MAX_ANSWER_CHARACTERS = 1000


class TooHard(ValueError):
    """The answer asks for more work than any answer key needs."""


class Expired(BaseException):
    """The time for one answer is over."""


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
