"""The process in which one program runs: its limits, its streams, and what it is there for.

A `program` reads stdin and writes stdout. A `module` is loaded and then serves calls of its
functions. A `checker` holds tests and calls a module in another sandbox; no program of a model runs
beside it.
"""

import atexit
import builtins
import math
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from typing import Any, NoReturn

from reward.sandbox import seccomp
from reward.sandbox.limits import Limits


def run_child(
    streams: tuple[int, int, int],
    calls: socket.socket,
    request: dict[str, Any],
    limits: Limits,
    number: int,
) -> NoReturn:
    """Be the process of a request, and end."""
    status = 1
    try:
        kept = _take_streams(streams, calls.fileno() if request["role"] != "program" else None)
        os.mkdir(str(number))
        os.chdir(str(number))
        _limit(limits)
        seccomp.install()
        status = _ended_by(request, kept)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _take_streams(streams: tuple[int, int, int], calls: int | None) -> int | None:
    """Have the streams as 0, 1, 2 and the socket as 3, and nothing else open."""
    os.setsid()
    moved = [os.dup(descriptor) for descriptor in streams]
    if calls is not None:
        moved.append(os.dup(calls))
    high = [os.dup2(descriptor, 100 + place) for place, descriptor in enumerate(moved)]
    os.closerange(0, 100)
    for place, descriptor in enumerate(high):
        os.dup2(descriptor, place)
    os.closerange(len(high), 65536)
    sys.stdin = open(0, encoding="utf-8", errors="replace")  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", buffering=1)  # noqa: SIM115
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    return None if calls is None else 3


def _limit(limits: Limits) -> None:
    size = limits.files_mib * 2**20
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_mib * 2**20),
        (resource.RLIMIT_CPU, math.ceil(limits.seconds) + 1),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(kind, (most, most))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGXFSZ else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.setrecursionlimit(1000)


def _ended_by(request: dict[str, Any], calls: int | None) -> int:
    """Do what the request is for; the exit status."""
    from _sitebuiltins import Quitter

    from reward.sandbox import calling, checking

    builtins.exit, builtins.quit = Quitter("exit", ""), Quitter("quit", "")
    try:
        if request["role"] == "program":
            calling.execute(request["source"], "__main__")
        else:
            serve = calling.serve if request["role"] == "module" else checking.serve
            with socket.socket(fileno=calls) as connection:
                serve(connection, request)
        status = 0
    except SystemExit as error:
        status = _status(error.code)
    except BaseException as error:
        status = 1
        shown = traceback.format_exception_only(error)
        sys.stderr.write("".join(shown)[:4000])
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    return status


def _status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1
