"""The worker process of the pool: reads answers from a socket, grades them in its main thread.

Messages are JSON lines behind a four-byte length, never pickles: the text inside comes from a
model. The first message carries the grader's name, the policy and the limits; the worker replies
``ready`` once everything is imported. After that each request is answered by exactly one reply.

The process ends when its socket closes, and on Linux the kernel kills it when the parent's thread
dies, so that none outlives the parent even if that one is killed. Ctrl-C at the terminal is for
the parent alone.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from reward.limits import Expired, alarm
from reward.verdict import Grade, Policy

PR_SET_PDEATHSIG = 1
MAX_MESSAGE_BYTES = 512 * 2**20


def send_message(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one JSON message; lone surrogates and control characters survive as escapes."""
    body = json.dumps(message, ensure_ascii=True).encode("ascii")
    connection.sendall(struct.pack(">I", len(body)) + body)


def receive_message(connection: socket.socket) -> dict[str, Any]:
    """Receive one message.

    Raises:
        EOFError: when the other side has closed.
        TimeoutError: when the socket's timeout passes first.
    """
    (length,) = struct.unpack(">I", _receive_exactly(connection, 4))
    if length > MAX_MESSAGE_BYTES:
        raise EOFError(f"a message of {length} bytes is no message of this protocol")
    message: dict[str, Any] = json.loads(_receive_exactly(connection, length))
    return message


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < count:
        piece = connection.recv(min(count - len(pieces), 2**20))
        if not piece:
            raise EOFError("the other side closed the connection")
        pieces += piece
    return bytes(pieces)


def main() -> None:
    """Serve one connection, whose file descriptor and parent process id are the arguments."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    # Ctrl-C, and a scheduler's notice to every process of a job, are for the parent to act on.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent(parent)
    with (
        contextlib.suppress(EOFError, ConnectionError),
        socket.socket(fileno=descriptor) as connection,
    ):
        _serve(connection)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _serve(connection: socket.socket) -> None:
    setup = receive_message(connection)
    from reward.graders import check_gold, grader_by_name, pair_grader_by_name, warm_up

    grader, policy = grader_by_name(setup["grader"]), Policy(**setup["policy"])
    pair_grader = pair_grader_by_name(setup["grader"])
    warm_up()
    _limit_memory(setup["memory_gib"])
    send_message(connection, {"ready": os.getpid()})
    _silence()
    while True:
        request = receive_message(connection)
        if "check" in request:
            work = partial(_checked, check_gold, request["check"])
        elif "pred" in request:
            work = partial(_graded, pair_grader, request["pred"], request["gold"], policy)
        else:
            work = partial(_graded, grader, request["response"], request["gold"], policy)
        send_message(connection, guarded(work, setup["alarm"]))


def _checked(check: Callable[[str], str | None], gold: str) -> dict[str, Any]:
    return {"reason": check(gold)}


def _graded(
    grader: Callable[[str, str, Policy], Grade], response: str, gold: str, policy: Policy
) -> dict[str, Any]:
    return asdict(grader(response, gold, policy))


def guarded(work: Callable[[], dict[str, Any]], seconds: int) -> dict[str, Any]:
    """Run ``work`` under the alarm; turn whatever goes wrong inside into a reply."""
    try:
        with alarm(seconds):
            return work()
    except Expired as expired:
        return failure("timeout", str(expired))
    except Exception as error:
        # The process boundary: a defect in one answer must not cost the next one its verdict.
        return failure("error", f"{type(error).__name__}: {str(error)[:200]}")


def failure(status: str, reason: str) -> dict[str, Any]:
    """Build the reply for an answer that got no verdict."""
    return {
        "correct": False,
        "extracted": None,
        "kind": "unknown",
        "path": "none",
        "reason": reason,
        "status": status,
    }


def _limit_memory(gib: float) -> None:
    """Cap the address space, so that one answer cannot take the machine's memory."""
    limit = int(gib * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _silence() -> None:
    """Send what parsers print about malformed input to nowhere; the reply says it all."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


if __name__ == "__main__":
    main()
