"""The worker process of the pool: it reads answers from a socket and grades them in its main
thread.

Messages are JSON preceded by a four-byte length, never pickles, because their text comes from a
model. The first message contains the grader's name, the policy and the limits; the worker replies
``ready`` when everything is imported. After that each request gets exactly one reply.

The process ends when its socket closes, and on Linux the kernel kills it when the parent's thread
dies, so that it does not outlive the parent even if the parent is killed. It ignores Ctrl-C, which
the parent handles.
"""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from reward.limits import Expired, alarm
from reward.messages import receive_message, send_message
from reward.verdict import GradingPolicy

PR_SET_PDEATHSIG = 1


def main(serve: Callable[[socket.socket], None] | None = None) -> None:
    """Serve one connection, whose file descriptor and parent process id are the arguments.

    Args:
        serve: what is done with it; None grades.
    """
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    # The parent handles Ctrl-C and a scheduler's signal to every process of a job.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent(parent)
    with (
        contextlib.suppress(EOFError, ConnectionError),
        socket.socket(fileno=descriptor) as connection,
    ):
        (serve or _serve)(connection)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _serve(connection: socket.socket) -> None:
    setup = receive_message(connection)
    from reward.graders import grader_by_name, warm_up

    policy = GradingPolicy(**setup["policy"])
    grader_by_name(setup["grader"])
    warm_up()
    _limit_memory(setup["memory_gib"])
    send_message(connection, {"ready": os.getpid()})
    silence()
    while True:
        request = receive_message(connection)
        work = partial(_answered, {"grader": setup["grader"], **request}, policy)
        send_message(connection, guarded(work, setup["alarm"]))


def _answered(request: dict[str, str], policy: GradingPolicy) -> dict[str, Any]:
    """Do what one request asks for, by the grader that it names."""
    from reward.graders import checker_by_name, grader_by_name, pair_grader_by_name

    name = request["grader"]
    if "check" in request:
        return {"reason": checker_by_name(name)(request["check"])}
    if "pred" in request:
        return asdict(pair_grader_by_name(name)(request["pred"], request["gold"], policy))
    return asdict(grader_by_name(name)(request["response"], request["gold"], policy))


def guarded(work: Callable[[], dict[str, Any]], seconds: int) -> dict[str, Any]:
    """Run ``work`` under the alarm; turn any exception into a reply."""
    try:
        with alarm(seconds):
            return work()
    except Expired as expired:
        return failure("timeout", str(expired))
    except Exception as error:
        # Process boundary: a fault in one answer must not affect the verdict of the next one.
        return failure("error", f"{type(error).__name__}: {str(error)[:200]}")


def failure(status: str, reason: str) -> dict[str, Any]:
    """Build the reply for an answer without a verdict."""
    return {
        "correct": False,
        "extracted": None,
        "kind": "unknown",
        "path": "none",
        "reason": reason,
        "status": status,
    }


def _limit_memory(gib: float) -> None:
    """Limit the address space, so that one answer cannot use all memory of the machine."""
    limit = int(gib * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def silence() -> None:
    """Discard what parsers print about malformed input; the reply contains the reason."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


if __name__ == "__main__":
    main()
