"""How a reward function is called: its signature says it.

    def f(item)                          once a completion, with a `RewardInput`
    def f(response, answer, level)       once a completion, by names: of `BY_NAME`, of columns
    def f(group)                         once a prompt, with the list of its completions
    def f(items)                         once a batch, with the list of all completions
    def f(prompts, completions, level)   once a batch, with a list for each name: TRL's signature

Each may be ``async def``, and a function of a group or a batch returns a list. ``**columns`` takes
all columns of the data. A function that takes none of these names is a factory: it is called once,
with its parameters, and returns the function.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

from reward.functions import (
    RewardError,
    RewardInput,
    as_reward,
    failed,
    find_function,
)

WHOLE = ("item", "group", "items")
TRL = ("prompts", "completions", "completion_ids")
LOGGING = ("trainer_state", "log_extra", "log_metric")
BY_NAME = (
    *("response", "prompt", "messages", "answer", "gold", "grade", "truncated", "finish_reason"),
    *("num_tokens", "max_tokens", "token_ids", "step", "problem_id", "metadata", "columns"),
    *("others", "opened", "thoughts", "sample"),
)
KNOWN = frozenset({*WHOLE, *TRL, *LOGGING, *BY_NAME})
_NOT_COLUMNS = frozenset({"prompt", "completion", "completion_ids"})
"""Columns that TRL does not pass on."""
_ANSWER = frozenset({"answer", "gold", "grade"})
_BUILT_IN_WITH_ANSWER = frozenset({"accuracy", "credit"})
_EMPTY = inspect.Parameter.empty

Scope = Literal["completion", "group", "batch"]


@dataclass
class Notes:
    """What a function logs while it is called, through TRL's ``log_extra`` and ``log_metric``."""

    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: list[tuple[str, float]] = field(default_factory=list)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Add a column to the records of the completions, with a value for each."""
        self.extra.setdefault(column, []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        """Add a value to the step's metrics; those of equal name are averaged."""
        self.metrics.append((name, float(value)))


@dataclass(frozen=True)
class Call:
    """A function that is ready to be called, and how; see the module.

    ``whole`` is the parameter that takes inputs as such, else the ``names`` are filled one by one;
    ``required`` are those without a default. ``everything`` says that it takes ``**columns``,
    ``as_messages`` whether TRL's lists hold messages (None: as the data do). ``built_in`` is the
    name of a function of ours.
    """

    name: str
    function: Callable[..., Any]
    scope: Scope
    whole: str | None
    names: tuple[str, ...]
    required: frozenset[str]
    everything: bool
    as_messages: bool | None
    built_in: str | None
    positional: bool = False
    """Whether ``whole`` has no name to be passed by."""

    @property
    def is_async(self) -> bool:
        """Whether it is to be awaited."""
        found = self.function
        while isinstance(found, partial):
            found = found.func
        return inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(
            getattr(type(found), "__call__", None)  # noqa: B004
        )

    @property
    def file(self) -> str | None:
        """Where its code is."""
        found: Any = self.function
        while isinstance(found, partial):
            found = found.func
        code = getattr(inspect.unwrap(found), "__code__", None)
        code = code or getattr(getattr(type(found), "__call__", None), "__code__", None)  # noqa: B004
        return None if code is None else code.co_filename

    @property
    def known(self) -> frozenset[str]:
        """The names that are not columns."""
        if self.scope == "batch":
            return frozenset({*WHOLE, *TRL, *LOGGING})
        return KNOWN

    @property
    def column_names(self) -> tuple[str, ...]:
        """The parameters that are columns of the data, or have a default."""
        return () if self.whole else tuple(n for n in self.names if n not in self.known)

    @property
    def reads_columns(self) -> bool:
        """Whether it may look at the data's columns."""
        if self.built_in:
            return False
        return bool(self.whole or self.everything or self.column_names or "columns" in self.names)

    @property
    def needs_answer(self) -> bool:
        """Whether it cannot do without a reference answer."""
        if self.built_in:
            return self.built_in in _BUILT_IN_WITH_ANSWER
        return self.scope == "completion" and bool(self.required & _ANSWER)

    @property
    def may_read_verdict(self) -> bool:
        """Whether it may look at the verdict, so that the answer must be one that can be graded."""
        if self.built_in:
            return self.needs_answer
        return self.whole is not None or bool({*self.names} & {"grade", "others"})

    def check_columns(self, columns: Iterable[str], where: str) -> None:
        """See that the data have the columns that it must be given.

        Args:
            columns: All that a row has.
            where: The data, for messages.

        Raises:
            ValueError: One is missing; it is named.
        """
        there = sorted(columns)
        for name in self.column_names:
            if name in self.required and name not in there and name not in BY_NAME:
                near = get_close_matches(name, [*there, *sorted(KNOWN)], n=1, cutoff=0.7)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(
                    f"reward function {self.name!r} takes {name!r}{hint}, which is neither a name "
                    f"that it can be given ({_listed_names()}) nor a column of {where}, whose "
                    f"columns are {', '.join(there) or 'none'}; rename the parameter, give it a "
                    "default, or set it under parameters"
                )

    def units(self, groups: Sequence[Sequence[RewardInput]]) -> list[list[RewardInput]]:
        """The completions of these groups by calls, in order."""
        rows = [item for group in groups for item in group]
        if self.scope == "completion":
            return [[item] for item in rows]
        return [list(group) for group in groups] if self.scope == "group" else [rows]

    def prepared(
        self, unit: Sequence[RewardInput], notes: Notes, trainer_state: object
    ) -> Callable[[], Any]:
        """The call for these completions, its arguments filled in."""
        logging = {
            "trainer_state": trainer_state,
            "log_extra": notes.log_extra,
            "log_metric": notes.log_metric,
        }
        asked = {name: value for name, value in logging.items() if name in self.names}
        if self.whole is not None:
            first = unit[0] if self.scope == "completion" else list(unit)
            if self.positional:
                return partial(self.function, first, **asked)
            return partial(self.function, **{self.whole: first}, **asked)
        if self.scope == "completion":
            return partial(self.function, **self._by_name(unit[0]), **asked)
        return partial(self.function, **self._lists(unit, logging))

    def values(self, returned: object, unit: Sequence[RewardInput]) -> list[float | None]:
        """What a call returned, as a number or None for each completion.

        Raises:
            RewardError: It is something else, or of another length.
        """
        if self.scope == "completion":
            return [as_reward(returned, self.whom(unit))]
        if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__iter__"):
            raise RewardError(
                f"{self.whom(unit)} returned {repr(returned)[:100]}, of type "
                f"{type(returned).__name__}; called for a {self.scope}, it must return a list with "
                "a number, or None, for each completion"
            )
        try:
            found = list(returned)
        except Exception as error:  # of a generator: the user's code
            raise RewardError(self.fault(error, unit)) from error
        if len(found) != len(unit):
            raise RewardError(
                f"{self.whom(unit)} returned {len(found)} values for {len(unit)} completions; "
                "return one for each, in order, and None where it does not apply"
            )
        return [
            as_reward(value, self.whom([item])) for value, item in zip(found, unit, strict=True)
        ]

    def whom(self, unit: Sequence[RewardInput]) -> str:
        """The function and what it is called for, for messages."""
        problems = list(dict.fromkeys(item.problem_id for item in unit))
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        return f"reward function {self.name!r} on problem {problems[0]!r}{more}"

    def fault(self, error: BaseException, unit: Sequence[RewardInput]) -> str:
        """What is said where it raised; with what may help."""
        said = failed(self.whom(unit), error, self.file)
        if (
            self.scope == "batch"
            and not self.whole
            and isinstance(error, TypeError | AttributeError)
        ):
            given = "lists of messages" if self._messages(unit) else "text"
            said += (
                f"; prompts and completions are {given} here, as the data are: set messages: "
                f"{str(not self._messages(unit)).lower()} beside function for the other"
            )
        return said

    def _by_name(self, item: RewardInput) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name in self.names:
            if name in LOGGING:
                continue
            if name in KNOWN:
                given[name] = _field(item, name)
            elif name in item.columns or name in self.required:
                given[name] = item.columns.get(name)
        if self.everything:
            given |= {n: item.columns[n] for n in item.columns if n not in {*given, *self.known}}
        return given

    def _lists(self, unit: Sequence[RewardInput], logging: Mapping[str, Any]) -> dict[str, Any]:
        """TRL's arguments: ``trl.GRPOTrainer._calculate_rewards``."""
        as_messages = self._messages(unit)
        lists: dict[str, Any] = {
            "prompts": [_prompt(item, as_messages) for item in unit],
            "completions": [_completion(item, as_messages) for item in unit],
            "completion_ids": [list(item.token_ids) for item in unit],
            **logging,
        }
        columns = dict.fromkeys(name for item in unit for name in item.columns)
        wanted = [name for name in columns if self.everything or name in self.names]
        wanted += [name for name in self.column_names if name in self.required]
        for name in wanted:
            if name in lists or name in _NOT_COLUMNS:
                continue
            if name in columns or name not in BY_NAME:
                lists[name] = [item.columns.get(name) for item in unit]
            else:
                lists[name] = [_field(item, name) for item in unit]
        if self.everything:
            return lists
        return {name: value for name, value in lists.items() if name in self.names}

    def _messages(self, unit: Sequence[RewardInput]) -> bool:
        return unit[0].conversational if self.as_messages is None else self.as_messages


def plan_call(
    function: str | Callable[..., Any],
    parameters: Mapping[str, Any],
    name: str | None = None,
    *,
    as_messages: bool | None = None,
    made: bool = False,
) -> Call:
    """How a function is called, its parameters bound.

    Args:
        function: a built-in's name, or a function of your own.
        parameters: keyword arguments of it.
        name: what it is called in messages.
        as_messages: what TRL's lists hold; None goes by their annotation, then by the data.
        made: whether a factory returned it.

    Raises:
        ValueError: There is no such function, a parameter is unknown or has no value, or nothing
            says how it is to be called.
    """
    found = find_function(function)
    name = name or str(getattr(found, "__name__", type(found).__name__))
    taken = _signature(found, name)
    _check_parameters(taken, parameters, name)
    everything = any(p.kind is _KWARGS for p in taken.values())
    free = {
        n: p for n, p in taken.items() if n not in parameters and p.kind not in (_ARGS, _KWARGS)
    }
    required = frozenset(n for n, p in free.items() if p.default is _EMPTY)
    whole = _whole(free)
    if whole is None and not required and not KNOWN & free.keys():
        return _from_factory(found, parameters, name, as_messages, everything, made=made)
    _check_mixture(name, whole, free)
    batch = "items" in free or any(n in free for n in TRL)
    return Call(
        name=name,
        function=partial(found, **parameters) if parameters else found,
        scope="batch" if batch else "group" if whole == "group" else "completion",
        whole=whole,
        names=tuple(n for n in free if n != whole),
        required=required,
        everything=everything,
        as_messages=_annotated(taken) if as_messages is None else as_messages,
        built_in=function if isinstance(function, str) else None,
        positional=whole is not None and free[whole].kind is inspect.Parameter.POSITIONAL_ONLY,
    )


def _whole(free: Mapping[str, inspect.Parameter]) -> str | None:
    """The parameter that takes inputs as such: by its name, or the first by its annotation."""
    named = next((name for name in WHOLE if name in free), None)
    first = next(iter(free.values()), None)
    if named is None and first is not None and _is_input(first.annotation):
        return first.name
    return named


_ARGS, _KWARGS = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def _signature(found: Callable[..., Any], name: str) -> Mapping[str, inspect.Parameter]:
    if not callable(found):
        raise ValueError(
            f"reward function {name!r} is {repr(found)[:80]}, of type {type(found).__name__}, and "
            "no function"
        )
    try:
        return inspect.signature(found).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"reward function {name!r} has no signature that can be read ({error}); wrap it: "
            "def f(response): return ..."
        ) from error


def signature_names(function: str | Callable[..., Any]) -> frozenset[str]:
    """The names of a function's parameters."""
    return frozenset(inspect.signature(find_function(function)).parameters)


def _check_parameters(
    taken: Mapping[str, inspect.Parameter], parameters: Mapping[str, Any], name: str
) -> None:
    """Refuse parameters that the function does not name, also where ``**columns`` would take them:
    one that is misspelt would be lost there."""
    named = [n for n, p in taken.items() if p.kind not in (_ARGS, _KWARGS)]
    for given in parameters:
        if given not in named:
            near = get_close_matches(given, named, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            settable = [n for n in named if n not in {*WHOLE, *TRL, *LOGGING}]
            raise ValueError(
                f"reward function {name!r} has no parameter {given!r}{hint} (its parameters are "
                f"{', '.join(settable) or 'none'})"
            )


def _check_mixture(name: str, whole: str | None, free: Mapping[str, inspect.Parameter]) -> None:
    """Refuse what says two things, or nothing, about how it is called."""
    if whole is None:
        return
    others = [n for n in (*WHOLE, *TRL) if n in free and n != whole]
    if others:
        raise ValueError(
            f"reward function {name!r} takes {whole!r} and {others[0]!r}, which say two things of "
            "how it is called: item once a completion, group once a prompt, items, prompts, "
            "completions and completion_ids once a batch; take one kind"
        )
    for other, parameter in free.items():
        if parameter.default is _EMPTY and other not in (whole, *LOGGING):
            one = whole if whole == "item" else f"{whole}[i]"
            raise ValueError(
                f"reward function {name!r}: missing a required argument: {other!r}; set it under "
                f"parameters, give it a default, or read {one}.columns[{other!r}] if it is a "
                "column of the data"
            )


def _from_factory(
    found: Callable[..., Any],
    parameters: Mapping[str, Any],
    name: str,
    as_messages: bool | None,
    everything: bool,
    *,
    made: bool,
) -> Call:
    """The call of what a factory returns.

    Raises:
        ValueError: It is no factory, or fails.
    """
    unknown = (
        f"reward function {name!r} takes nothing that says how it is called; name parameters: "
        f"{_listed_names()}, or columns of the data"
    )
    if made or everything:
        raise ValueError(unknown)
    try:
        function = found(**parameters)
    except Exception as error:  # the user's code
        raise ValueError(failed(f"reward function {name!r}", error)) from error
    if not callable(function):
        if inspect.iscoroutine(function):
            function.close()
        raise ValueError(unknown)
    return plan_call(function, {}, name, as_messages=as_messages, made=True)


def _listed_names() -> str:
    return (
        "item (a completion), group (those of a prompt), items (those of a batch); by name "
        f"{', '.join(BY_NAME)}; or TRL's {', '.join((*TRL, *LOGGING))}"
    )


def _is_input(annotation: object) -> bool:
    if annotation is RewardInput:
        return True
    return isinstance(annotation, str) and annotation.rpartition(".")[2] == "RewardInput"


def _annotated(taken: Mapping[str, inspect.Parameter]) -> bool | None:
    """Whether annotations say that TRL's lists hold messages, or text; None: they say nothing."""
    for name in ("completions", "prompts"):
        said = str(taken[name].annotation).lower() if name in taken else ""
        said = said.replace("typing.", "").replace(" ", "")
        if "list[list[" in said or "list[dict" in said:
            return True
        if "list[str]" in said:
            return False
    return None


def _field(item: RewardInput, name: str) -> Any:  # noqa: ANN401
    return getattr(item, "gold" if name == "answer" else name)


def _prompt(item: RewardInput, as_messages: bool) -> Any:  # noqa: ANN401
    return [dict(turn) for turn in item.messages] if as_messages else item.prompt


def _completion(item: RewardInput, as_messages: bool) -> Any:  # noqa: ANN401
    return [{"role": "assistant", "content": item.response}] if as_messages else item.response
