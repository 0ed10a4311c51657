"""The command line in this process: no interpreter is started to read a message and a code."""

import contextlib
import io
import logging
import os
import signal
import sys
import warnings
from typing import NamedTuple
from unittest import mock

from rlvr.cli import main

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)


class Done(NamedTuple):
    """What a command left: as of ``subprocess.run``."""

    returncode: int
    stdout: str
    stderr: str


def call(*arguments, folder=None, environment=None):
    """Run ``rlvr`` with these words; leave this process as it was found.

    Args:
        arguments: Words of the command line.
        folder: Working directory of the command; by default that of the test.
        environment: Variables added for the command.
    """
    out, error = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment or {}))
        stack.enter_context(mock.patch.object(sys, "argv", ["rlvr", *map(str, arguments)]))
        stack.enter_context(contextlib.chdir(folder or os.getcwd()))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(_as_loud_as_before())
        stack.enter_context(_as_random_as_before())
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(error))
        try:
            main()
            raise AssertionError("rlvr ends by SystemExit")
        except SystemExit as ended:
            code = ended.code
    assert {number: signal.getsignal(number) for number in _SIGNALS} == handlers
    return Done(code, out.getvalue(), error.getvalue())


def refused(*arguments, **context):
    """The one line of a command that the user has to mend."""
    done = call(*arguments, **context)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("rlvr: ")
    return lines[0]


@contextlib.contextmanager
def _as_loud_as_before():
    """Commands keep other libraries' notices and bars out of their progress display."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if "transformers.utils.logging" in sys.modules:
            sys.modules["transformers.utils.logging"].enable_progress_bar()


@contextlib.contextmanager
def _as_random_as_before():
    """A run seeds torch's own generator."""
    torch = sys.modules.get("torch")
    state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        if state is not None:
            torch.set_rng_state(state)
