"""Environments by name, and their episodes in token ids."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from random import Random
from typing import Any

from rlvr.data.decoding import ResponseDecoder
from rlvr.data.templates import Template
from rlvr.environments.calls import CallFormat, call_format, plain_words
from rlvr.environments.conversation import Conversation
from rlvr.environments.environment import Action, Done, Environment, Observation
from rlvr.environments.settings import EnvironmentSettings
from rlvr.environments.tools import Tools
from rlvr.settings.outside import is_place, load_outside
from rlvr.threads import EventLoop
from rlvr.types import Answer, Limits, Message, Problem

BUILT_IN = {
    "guess_number": "rlvr.environments.games:GuessNumber",
    "grid": "rlvr.environments.games:Grid",
    "self_correction": "rlvr.environments.self_correction:SelfCorrection",
    "tools": "rlvr.environments.tools:Tools",
}


def environment_class(name: str) -> type[Environment]:
    """The class of this name.

    Raises:
        ValueError: There is none, or it is no environment.
    """
    if name not in BUILT_IN and not is_place(name):
        near = get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"environment.name = {name!r} is not one of {', '.join(BUILT_IN)}; {hint}one of your "
            "own is named file.py:Class"
        )
    found = load_outside(BUILT_IN.get(name, name))
    if not (isinstance(found, type) and issubclass(found, Environment)):
        raise ValueError(
            f"environment.name = {name!r} is no environment; name a class that inherits "
            "rlvr.environments.Environment"
        )
    return found


class Environments:
    """Begins the episodes of a recipe's environment.

    Args:
        settings: Which environment, and its limits.
        template: Of the prompts.
        tokenizer: A Hugging Face tokenizer.
        decode: Turns ids of a turn into text.
        judge: Says whether a text has a problem's reference answer.

    Raises:
        ValueError: There is no such environment, or it does not take these parameters.
    """

    def __init__(
        self,
        settings: EnvironmentSettings,
        template: Template,
        tokenizer: Any,  # noqa: ANN401
        decode: ResponseDecoder,
        judge: Callable[[str, Problem], bool],
    ) -> None:
        self.settings, self.decode, self.judge = settings, decode, judge
        self.made = environment_class(settings.name)
        self.template, self.format, self._schemas = self._with_tools(template, tokenizer)
        self.conversation = Conversation(self.template, tokenizer)
        self.limits = Limits(settings.max_turns, settings.max_tokens, settings.max_seconds)
        self._loop: EventLoop | None = None

    def _with_tools(
        self,
        template: Template,
        tokenizer: Any,  # noqa: ANN401
    ) -> tuple[Template, CallFormat | None, list[dict[str, Any]]]:
        """The template with the environment's tools, and how its model calls them."""
        made = self._make()
        if not isinstance(made, Tools):
            return template, None, []
        shown = replace(template, tools=tuple(made.schemas))
        found = call_format(shown, tokenizer)
        return (shown if found.own else template), found, made.schemas

    def _make(self) -> Environment:
        try:
            inspect.signature(self.made).bind(**self.settings.parameters)
        except TypeError as error:
            known = ", ".join(inspect.signature(self.made).parameters) or "none"
            raise ValueError(
                f"environment.parameters of {self.settings.name!r}: {error}; it takes {known}"
            ) from None
        return self.made(**self.settings.parameters)

    def _ready(self) -> Environment:
        """A new object, which knows how its model calls tools."""
        made = self._make()
        if isinstance(made, Tools):
            made.format = self.format
        return made

    def opened(self, problem: Problem) -> Problem:
        """The problem with the prompt that its episodes begin with."""
        environment = self._ready()
        messages = self._first(environment, problem)
        if self.format is not None and not self.format.own:
            messages = _with_words(messages, plain_words(self._schemas))
        environment.close()
        return replace(problem, messages=messages)

    def begin(self, problem: Problem, seed: int) -> "TokenEpisode":
        """An episode of a problem; ``seed`` is that of its place in the run."""
        environment = self._ready()
        self._first(environment, problem)
        environment.random = Random(seed)
        return TokenEpisode(environment, self.conversation, self.decode, self._waited)

    def _first(self, environment: Environment, problem: Problem) -> tuple[Message, ...]:
        """Reset an environment; the prompt that it gives."""
        environment.random = Random(problem.id)
        environment.judge = partial(self._judged, problem)
        given = environment.reset(problem)
        if given is None:
            return problem.messages
        if isinstance(given, str):
            return (*problem.messages[:-1], Message(role="user", content=given))
        return tuple(given)

    def _judged(self, problem: Problem, text: str) -> bool:
        return self.judge(text, problem)

    def _waited(self, given: Any) -> Any:  # noqa: ANN401
        """What a step gave, waited for where it is asynchronous."""
        if not inspect.isawaitable(given):
            return given
        if self._loop is None:
            self._loop = EventLoop("environment")
        return self._loop.run(_as_coroutine(given))

    def close(self) -> None:
        """End the event loop, if there is one."""
        if self._loop is not None:
            self._loop.close()


async def _as_coroutine(given: Any) -> Any:  # noqa: ANN401
    return await given


def _with_words(messages: Sequence[Message], words: str) -> tuple[Message, ...]:
    """Messages with a word on tools, in the system message if there is one, else in the first."""
    first, *rest = messages
    separator = "\n\n"
    return ({**first, "content": f"{words}{separator}{first['content']}"}, *rest)


class TokenEpisode:
    """An episode as sampling sees it.

    Args:
        environment: That of this episode alone, reset.
        conversation: Encodes what it says.
        decode: Turns ids of a turn into text.
        waited: Waits for what an asynchronous step gives.
    """

    def __init__(
        self,
        environment: Environment,
        conversation: Conversation,
        decode: Callable[..., str],
        waited: Callable[[Any], Any],
    ) -> None:
        self.environment, self.conversation = environment, conversation
        self.decode, self._waited = decode, waited
        self.turns = 0

    def step(self, token_ids: tuple[int, ...]) -> Answer:
        """What follows what the policy wrote.

        Raises:
            ValueError: The environment failed, or gave something else.
        """
        self.turns += 1
        text = self.decode(token_ids, finished=True)
        name = type(self.environment).__name__
        try:
            given = self._waited(self.environment.step(Action(text, token_ids, self.turns)))
        except Exception as error:
            raise ValueError(
                f"environment {name} failed in turn {self.turns}: {type(error).__name__}: {error}"
            ) from error
        if isinstance(given, Done):
            return Answer(ended=given.cut or "stop", reward=_number(given.reward, name))
        if not isinstance(given, Observation):
            raise ValueError(
                f"environment {name} answered turn {self.turns} with {given!r}; step returns an "
                "Observation or Done"
            )
        observed = self.conversation.between(given.messages, token_ids[-1])
        return Answer(observed, reward=_number(given.reward, name))

    def close(self) -> None:
        """Have the environment free what the episode holds."""
        self.environment.close()


def _number(reward: Any, name: str) -> float | None:  # noqa: ANN401
    if reward is None:
        return None
    value = float(reward)
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"environment {name} gave the reward {reward}; it must be finite")
    return value


def opened_all(problems: Sequence[Problem], environments: Environments | None) -> list[Problem]:
    """The problems with the prompts of their episodes; unchanged without environments."""
    if environments is None:
        return list(problems)
    return [environments.opened(problem) for problem in problems]
