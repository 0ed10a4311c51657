"""Tools: functions that the policy may call before it answers.

A tool is a Python function with types and a docstring, of which its JSON schema is made. Calls are
read in the model's own format (:mod:`rlvr.environments.calls`), and a call that cannot be read,
names no tool or has wrong arguments is answered with what is wrong. The answer is what the policy
writes without a call; the verifier judges it.
"""

import ast
import inspect
import math
import operator
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

from rlvr.environments.calls import CALL_ID, CallFormat, ToolCall
from rlvr.environments.environment import Action, Done, Environment, Observation
from rlvr.settings.outside import is_place, load_outside
from rlvr.types import Message

Tool = Callable[..., Any]


class Tools(Environment):
    """Answer a problem with tools at hand.

    Args:
        tools: Names of built-in tools (calculator, python) or places of your own functions
            (file.py:function).
        max_calls: Most calls of an episode; one more ends it (finish reason "tool_calls").
        longest: Characters of a result that are shown.
    """

    def __init__(
        self, tools: Sequence[str] = ("calculator",), max_calls: int = 8, longest: int = 1000
    ) -> None:
        self.functions = {function.__name__: function for function in map(_tool, tools)}
        self.max_calls, self.longest, self.calls = max_calls, longest, 0
        self.format: CallFormat | None = None
        """How the model writes calls; set where the tokenizer is known."""

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools as JSON schemas."""
        return [schema_of(function) for function in self.functions.values()]

    def step(self, action: Action) -> Observation | Done | Awaitable[Observation | Done]:
        """Answer calls, or judge the answer."""
        assert self.format is not None, "the environment knows its model's format"
        calls = self.format.read(action.text)
        if not calls:
            return Done(float(self.judge(action.text)))
        self.calls += len(calls)
        if self.calls > self.max_calls:
            return Done(0.0, cut="tool_calls")
        results = [self._result(call) for call in calls]
        if any(map(inspect.isawaitable, results)):
            return self._awaited(calls, results)
        return self._observation(calls, results)

    async def _awaited(self, calls: Sequence[ToolCall], results: Sequence[Any]) -> Observation:
        """Wait for the results of asynchronous tools."""
        found = []
        for result in results:
            try:
                found.append(await result if inspect.isawaitable(result) else result)
            except Exception as error:
                found.append(_said(error))
        return self._observation(calls, found)

    def _result(self, call: ToolCall) -> Any:  # noqa: ANN401
        if call.fault is not None:
            return f"Error: {call.fault}"
        function = self.functions.get(call.name)
        if function is None:
            return f"Error: there is no tool {call.name!r}; there are {', '.join(self.functions)}"
        try:
            arguments = checked_arguments(function, call.arguments)
            return function(**arguments)
        except Exception as error:
            return _said(error)

    def _observation(self, calls: Sequence[ToolCall], results: Sequence[Any]) -> Observation:
        messages = []
        for call, result in zip(calls, results, strict=True):
            text = str(result)[: self.longest]
            if self.format is not None and self.format.own:
                said = {"role": "tool", "name": call.name, "tool_call_id": CALL_ID}
                messages.append(cast(Message, {**said, "content": text}))
            else:
                words = f"<tool_response>\n{text}\n</tool_response>"
                messages.append(Message(role="user", content=words))
        return Observation(messages)


def _said(error: Exception) -> str:
    return f"Error: {type(error).__name__}: {error}"


def _tool(name: str) -> Tool:
    if not is_place(name) and name not in BUILT_IN:
        raise ValueError(
            f"environment.parameters.tools: {name!r} is not one of {', '.join(BUILT_IN)}; one of "
            "your own is named file.py:function"
        )
    found = BUILT_IN[name] if name in BUILT_IN else load_outside(name)
    if not callable(found):
        raise ValueError(f"environment.parameters.tools: {name!r} is no function")
    schema_of(found)
    if found is python:
        from reward.sandbox.ways import way_of

        way_of("auto")  # where there is no sandbox, the run does not begin
    return cast(Tool, found)


@cache
def schema_of(function: Tool) -> dict[str, Any]:
    """A function's JSON schema, of its types and docstring.

    Raises:
        ValueError: It has none, or does not describe an argument.
    """
    from transformers.utils import get_json_schema

    try:
        return cast(dict[str, Any], get_json_schema(function))
    except Exception as error:
        raise ValueError(
            f"tool {function.__name__!r} needs types and a docstring with an Args section: {error}"
        ) from None


def checked_arguments(function: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as the schema has them: texts become numbers or other values where it says so.

    Raises:
        ValueError: They do not fit.
    """
    import jsonschema

    schema = schema_of(function)["function"]["parameters"]
    known: Mapping[str, Any] = schema.get("properties", {})
    values = {name: _typed(value, known.get(name, {})) for name, value in arguments.items()}
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r}; it takes {', '.join(known)}")
    try:
        jsonschema.validate(values, schema)
    except jsonschema.ValidationError as error:
        raise ValueError(error.message) from None
    return values


def _typed(value: Any, schema: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """A value that a format writes as text, in the type of its argument."""
    if not isinstance(value, str) or schema.get("type") == "string":
        return value
    try:
        return ast.literal_eval(
            {"true": "True", "false": "False", "null": "None"}.get(value, value)
        )
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_LARGEST = 10**60
_LONGEST = 200


def calculator(expression: str) -> str:
    """Compute an arithmetic expression with + - * / // % ** and parentheses.

    Args:
        expression: The expression, for example "12 * (3 + 4)".
    """
    if len(expression) > _LONGEST:
        raise ValueError(f"an expression has at most {_LONGEST} characters")
    try:
        value = _computed(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("this is no arithmetic expression") from None
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if whole else value)


def _computed(node: ast.AST) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = cast(int | float, node.value)
    elif isinstance(node, ast.BinOp):
        left, right = _computed(node.left), _computed(node.right)
        value = (
            _power(left, right) if isinstance(node.op, ast.Pow) else _operator(node.op)(left, right)
        )
    elif isinstance(node, ast.UnaryOp):
        value = _operator(node.op)(_computed(node.operand))
    else:
        raise ValueError("only numbers, + - * / // % ** and parentheses are allowed")
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise ValueError("the result is too large")
    return value


def _operator(node: ast.AST) -> Callable[..., Any]:
    if type(node) not in _OPERATORS:
        raise ValueError("only + - * / // % ** are allowed")
    return _OPERATORS[type(node)]


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > 200 or (base and abs(exponent) * abs(math.log10(abs(base))) > 60):
        raise ValueError("the result is too large")
    found = base**exponent
    if isinstance(found, complex):
        raise ValueError("the result is no real number")
    return cast(float, found)


def python(code: str) -> str:
    """Run a Python program in a sandbox and return what it prints.

    Args:
        code: The program.
    """
    from reward.sandbox.box import Box
    from reward.sandbox.limits import Limits
    from reward.sandbox.ways import way_of

    with Box(way_of("auto"), Limits(seconds=5.0)) as box:
        outcome = box.run(code, "")
    if outcome.finish == "ok":
        return outcome.stdout.rstrip("\n") or "(it printed nothing)"
    return f"{outcome.stdout}Error: {outcome.how}"


BUILT_IN: dict[str, Tool] = {"calculator": calculator, "python": python}
