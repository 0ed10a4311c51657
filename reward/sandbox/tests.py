"""Put a program to its tests, and tell for each whether it held.

Expected outputs and results stay in this process, assertions in a sandbox of their own; the
program's sandbox gets inputs only. The reasons say how a test ended and never what was expected.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from reward.sandbox.box import Box, SandboxError
from reward.sandbox.compare import same_output, same_result
from reward.sandbox.encoding import decode, encode
from reward.sandbox.limits import Limits

NewBox = Callable[[Limits], Box]
_STOPS = ("timeout", "memory", "output")
"""Ends after which no further test is tried, as each would cost as much."""


@dataclass(frozen=True)
class Run:
    """A run of the program: what it reads from stdin, and what it has to print."""

    input: str
    output: str


@dataclass(frozen=True)
class Call:
    """A call of a function: its arguments and its result, all JSON values."""

    function: str
    args: tuple[Any, ...]
    result: Any
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Assertions:
    """Python statements that test the program's functions.

    ``names`` are those of the program that they use, ``modules`` those of the standard library
    that they use without an import.
    """

    tests: tuple[str, ...]
    setup: str
    entry: str
    names: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """Whether a test held, and otherwise why not."""

    held: bool
    why: str = ""


_NOT_RUN = Result(False, "not run")


def try_runs(program: str, runs: Sequence[Run], limits: Limits, new_box: NewBox) -> list[Result]:
    """Run the program on each input; tests after one that was stopped are not run."""
    found: list[Result] = []
    with new_box(limits) as box:
        for run in runs:
            outcome = box.run(program, run.input)
            if outcome.finish != "ok":
                found.append(Result(False, outcome.how))
            elif same_output(outcome.stdout, run.output):
                found.append(Result(True))
            else:
                found.append(Result(False, "another output"))
            if outcome.finish in _STOPS:
                break
    return _filled(found, len(runs))


def try_calls(program: str, calls: Sequence[Call], limits: Limits, new_box: NewBox) -> list[Result]:
    """Load the program once and make each call; tests after one that was stopped are not run."""
    found: list[Result] = []
    with _Module(program, len(calls), limits, new_box) as module:
        for call in calls if module.ready else ():
            found.append(module.called(call))
            if module.ended:
                break
        return _filled(found, len(calls), module.why)


def try_assertions(
    program: str, assertions: Assertions, limits: Limits, new_box: NewBox
) -> list[Result]:
    """Run the tests in one sandbox against the program in another."""
    found: list[Result] = []
    with _Module(program, len(assertions.tests), limits, new_box) as module:
        if module.ready:
            found += _checked(module, assertions, limits, new_box)
        return _filled(found, len(assertions.tests), module.why)


def _checked(
    module: "_Module", assertions: Assertions, limits: Limits, new_box: NewBox
) -> Iterator[Result]:
    """The results of tests as they come; fewer where a test or the program came to an end."""
    with new_box(limits) as checker:
        given = {
            "tests": assertions.tests,
            "setup": assertions.setup,
            "entry": assertions.entry,
            "names": assertions.names,
            "modules": assertions.modules,
        }
        checker.begin("checker", _whole(limits, len(assertions.tests)), **given)
        for _ in assertions.tests:
            deadline = time.monotonic() + limits.seconds
            try:
                said = _until_said(checker, module, deadline)
            except TimeoutError:
                module.why = module.why or f"no end within {limits.seconds:g} s"
                return
            except ConnectionError:
                module.why = module.why or "the tests came to an end before their last"
                return
            held = said.get("held") is True
            yield Result(held, "" if held else str(said.get("why", ""))[:80])


def _until_said(checker: Box, module: "_Module", deadline: float) -> dict[str, Any]:
    """Hand calls on to the program until the tests say whether one held."""
    said = checker.receive(deadline)
    while "ask" in said:
        reply = module.ask(said["ask"], deadline)
        said = checker.exchange(reply, deadline)
    return dict(said)


class _Module:
    """The program, loaded in a sandbox, serving calls."""

    def __init__(self, program: str, tests: int, limits: Limits, new_box: NewBox) -> None:
        self.limits = limits
        self.why, self.ended = "", False
        self._stack = ExitStack()
        self.box = self._stack.enter_context(new_box(limits))
        self.box.begin("module", _whole(limits, tests), source=program)
        try:
            said = self.box.receive(time.monotonic() + limits.seconds)
            self.ready = said == {"loaded": True}
        except (TimeoutError, ConnectionError) as error:
            self.ready = False
            self._end(error)

    def __enter__(self) -> "_Module":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, operation: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Ask for an operation of `reward.sandbox.calling`; what comes is the program's claim.

        Raises:
            TimeoutError: the time has passed.
            ConnectionError: the program has ended.
        """
        try:
            return dict(self.box.exchange(operation, deadline))
        except (TimeoutError, ConnectionError) as error:
            self._end(error)
            raise
        except (TypeError, ValueError):
            raise ConnectionError("no message of this protocol") from None

    def called(self, call: Call) -> Result:
        """Make a call and compare its result."""
        deadline = time.monotonic() + self.limits.seconds
        try:
            function = self.ask({"op": "name", "args": encode((call.function,))}, deadline)
            if "raised" in function:
                return Result(False, f"no function {call.function}")
            # The reference of the function comes back as it was sent, inside the sandbox.
            args = {"tuple": [function["value"], encode(call.kwargs), *map(encode, call.args)]}
            reply = self.ask({"op": "call", "args": args}, deadline)
            if "raised" in reply:
                raised = reply["raised"]
                kind = raised[0] if isinstance(raised, list) and raised else raised
                return Result(False, f"it raised {str(kind)[:40]}")
            same = same_result(decode(reply["value"]), call.result)
        except (TimeoutError, ConnectionError):
            return Result(False, self.why or "no answer")
        except (ValueError, KeyError, RecursionError):
            return Result(False, "a result that is no plain value")
        return Result(True) if same else Result(False, "another result")

    def _end(self, error: Exception) -> None:
        self.ended = True
        if isinstance(error, TimeoutError):
            self.why = f"no end within {self.limits.seconds:g} s"
            return
        self.box.calls.close()  # for a program that waits to be read
        try:
            outcome = self.box.outcome(within=1.0)
        except SandboxError:
            self.why = "it answers no calls any more"
            return
        self.why = "it ended before its tests did" if outcome.finish == "ok" else outcome.how


def _whole(limits: Limits, tests: int) -> float:
    """Seconds that loading and all tests may take together; each of them has its own limit."""
    return limits.seconds * (tests + 1)


def _filled(found: list[Result], count: int, why: str = "") -> list[Result]:
    """As many results as tests."""
    rest = count - len(found)
    if rest > 0 and why and (not found or found[-1].held):
        found, rest = [*found, Result(False, why)], rest - 1
    return [*found, *[_NOT_RUN] * rest]
