"""Programs in Python, right if they pass their tests in a sandbox (`reward.sandbox`).

The reference is an object with tests of one or more kinds:

- ``runs``: ``[{"input": "1 2", "output": "3"}]``, what the program reads from stdin and prints;
- ``calls``: ``[{"function": "add", "args": [1, 2], "result": 3}]``, JSON values (``kwargs`` too);
- ``assertions``: ``["assert add(1, 2) == 3"]``, Python text, run after ``setup`` if there is one.
  With ``entry: "add"``, each defines ``check(candidate)``, which is called with that function.

``seconds`` (4) and ``memory_mib`` (512) bound each test. A program is right if it passes all tests;
its credit is the share that it passes. The program is the last fenced block of Python after the
thought; a response without a fence is one if Python can read it.

The formats are those of APPS (Hendrycks et al., arXiv 2105.09938) and LiveCodeBench (Jain et al.,
2403.07974), of MBPP (Austin et al., 2108.07732) and of HumanEval (Chen et al., 2107.03374).
"""

import ast
import builtins
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from reward.domains.base import Domain, Judgement, as_object
from reward.sandbox.box import Box, SandboxError
from reward.sandbox.limits import Limits
from reward.sandbox.tests import (
    Assertions,
    Call,
    Result,
    Run,
    try_assertions,
    try_calls,
    try_runs,
)
from reward.sandbox.ways import way_of
from reward.verdict import Grade, GradingPolicy

_FENCE = re.compile(r"[ \t]*+(`{3,}+|~{3,}+)[ \t]*+([\w+.-]*+)[^`]*+")
_LANGUAGES = ("", "python", "python3", "py", "py3")
_DEFAULTS = Limits()


@dataclass(frozen=True)
class CodeReference:
    """A reference: the tests of a problem, and the limits of each."""

    runs: Any = ()
    calls: Any = ()
    assertions: Any = ()
    setup: str = ""
    entry: str = ""
    seconds: float = _DEFAULTS.seconds
    memory_mib: int = _DEFAULTS.memory_mib
    limits: Limits = field(default=_DEFAULTS, init=False)
    checks: Assertions | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not (_is_number(self.seconds) and type(self.memory_mib) is int):
            raise ValueError("seconds and memory_mib are numbers, memory_mib a whole one")
        texts = [self.assertions] if isinstance(self.assertions, str) else self.assertions
        if not isinstance(texts, list | tuple):
            raise ValueError("assertions are a text or a list of texts")
        texts = list(texts)
        found = {
            "runs": tuple(_run(one) for one in _listed("runs", self.runs)),
            "calls": tuple(_call(one) for one in _listed("calls", self.calls)),
            "checks": _assertions(texts, self.setup, self.entry) if texts else None,
            "limits": Limits(seconds=float(self.seconds), memory_mib=self.memory_mib),
        }
        if not (found["runs"] or found["calls"] or texts):
            raise ValueError("the reference has no tests; give it runs, calls or assertions")
        for name, value in found.items():
            object.__setattr__(self, name, value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(name: str, value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple) or any(not isinstance(one, dict) for one in value):
        raise ValueError(f"{name} is no list of objects")
    return list(value)


def _named(kind: str, given: dict[str, Any], needed: set[str], allowed: set[str]) -> None:
    missing, unknown = needed - set(given), set(given) - needed - allowed
    if missing or unknown:
        what = f"lacks {min(missing)!r}" if missing else f"has {min(unknown)!r}"
        raise ValueError(
            f"one of {kind} {what}; its fields are {', '.join(sorted(needed | allowed))}"
        )


def _run(given: dict[str, Any]) -> Run:
    _named("runs", given, {"input", "output"}, set())
    if not isinstance(given["input"], str) or not isinstance(given["output"], str):
        raise ValueError("input and output of a run are texts")
    return Run(given["input"], given["output"])


def _call(given: dict[str, Any]) -> Call:
    _named("calls", given, {"function", "args", "result"}, {"kwargs"})
    name, kwargs = given["function"], given.get("kwargs", {})
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"the function {name!r} of a call is no name, as f or Solution.f")
    if not isinstance(given["args"], list) or not isinstance(kwargs, dict):
        raise ValueError("args of a call are a list, and kwargs an object")
    return Call(name, tuple(given["args"]), given["result"], kwargs)


def _assertions(texts: list[Any], setup: object, entry: object) -> Assertions:
    if not all(isinstance(text, str) for text in (*texts, setup, entry)):
        raise ValueError("assertions, setup and entry are texts")
    if entry and not str(entry).isidentifier():
        raise ValueError(f"the entry {entry!r} is no name of a function")
    try:
        used, called = _names_used([str(setup), *texts])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the assertions are no Python: {error}") from None
    modules = [name for name in used if name in sys.stdlib_module_names and name not in called]
    names = [name for name in used if name not in modules and name != entry]
    if entry:
        names.append(str(entry))
    if not names:
        raise ValueError("the assertions use no function of the program; name it as entry")
    return Assertions(tuple(texts), str(setup), str(entry), tuple(names), tuple(modules))


def _names_used(texts: list[str]) -> tuple[list[str], set[str]]:
    """The names that tests use and neither define nor have from Python, in order, and the names
    that they call."""
    used: dict[str, None] = {}
    called: set[str] = set()
    defined = {*dir(builtins)}
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                called.add(node.func.id)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used[node.id] = None
            else:
                defined |= _defined(node)
    return [name for name in used if name not in defined], called


def _defined(node: ast.AST) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.arg):
        return {node.arg}
    if isinstance(node, ast.alias):
        return {(node.asname or node.name).partition(".")[0]}
    return {node.name} if isinstance(node, ast.ExceptHandler) and node.name else set()


def program_in(response: str) -> str | None:
    """The program of a response: its last fenced block of Python, or all of it where there is no
    fence and Python can read it; None if there is none."""
    lines = response.split("\n")
    blocks, fenced = _fenced(lines)
    if fenced:
        return blocks[-1] if blocks else None
    try:
        ast.parse(response)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return response


def _fenced(lines: list[str]) -> tuple[list[str], bool]:
    """The closed blocks of Python, and whether there was any fence."""
    blocks: list[str] = []
    opened, language, began, any_fence = "", "", 0, False
    for number, line in enumerate(lines):
        if opened:
            mark = line.strip()
            if set(mark) == {opened[0]} and len(mark) >= len(opened):
                if language.lower() in _LANGUAGES:
                    blocks.append("".join(f"{one}\n" for one in lines[began:number]))
                opened = ""
        elif found := _FENCE.fullmatch(line):
            opened, language = found.groups()
            began, any_fence = number + 1, True
    return blocks, any_fence


class CodeDomain(Domain):
    """Programs against tests."""

    name = "code"
    reads = "response"

    def reference(self, gold: str) -> CodeReference:
        """An object with tests."""
        return as_object(gold, CodeReference)

    def judge(self, text: str, reference: CodeReference, policy: GradingPolicy) -> Judgement:
        """How many tests the program passes."""
        way = way_of(policy.sandbox)
        new_box = partial(_new_box, way, policy.packages)
        results = _results(text, reference, new_box)
        passed = sum(result.held for _, result in results)
        fault = next((f"{name}: {one.why}" for name, one in results if not one.held), "all passed")
        return Judgement(passed / len(results), f"{passed} of {len(results)} tests; {fault}")

    def _verdict(self, text: str, reference: Any, policy: GradingPolicy) -> Grade:  # noqa: ANN401
        program = program_in(text)
        if program is None:
            reason = "no fenced block of Python, and no program without one"
            return Grade(False, None, self.name, "extract", reason, "no_answer")
        try:
            way_of(policy.sandbox)
        except ValueError as error:
            return Grade(False, None, self.name, "sandbox", str(error), "error")
        try:
            return super()._verdict(program, reference, policy)
        except SandboxError as error:
            reason = f"the sandbox came to an end: {error}"
            return Grade(False, program.strip()[:200], self.name, "sandbox", reason, "crash")


def _new_box(way: Any, packages: bool, limits: Limits) -> Box:  # noqa: ANN401
    return Box(way, limits, packages)


def _results(
    program: str, reference: CodeReference, new_box: Callable[[Limits], Box]
) -> list[tuple[str, Result]]:
    """The result of each test, with the test's name."""
    limits, found = reference.limits, []
    if reference.runs:
        found.append(("run", try_runs(program, reference.runs, limits, new_box)))
    if reference.calls:
        found.append(("call", try_calls(program, reference.calls, limits, new_box)))
    if reference.checks is not None:
        found.append(("assertion", try_assertions(program, reference.checks, limits, new_box)))
    return [
        (f"{kind} {number}", result)
        for kind, results in found
        for number, result in enumerate(results, start=1)
    ]


DOMAINS = {"code": CodeDomain()}
