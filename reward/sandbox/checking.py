"""The tests' side of calls: run assertions whose functions are those of a program elsewhere.

This process holds the tests and the expected values; the program runs in another sandbox, and only
plain values come from there. An object that is none is a `Remote`: its methods and items can be
asked for, but it has no arithmetic and no order, and is equal to nothing that is not of the
program, so that no ``__eq__`` or ``__sub__`` of the program decides a test.
"""

import builtins
import importlib
import socket
from typing import Any

from reward.messages import receive_message, send_message
from reward.sandbox.encoding import decode, encode

_NO_ERROR_OF_A_PROGRAM = ("StopIteration", "StopAsyncIteration", "AssertionError")
"""Errors that would end a loop of the tests, or look like their own."""


class ProgramError(Exception):
    """The program raised an error that is not one of Python's own, or none that it may."""


class Client:
    """Asks the program's side for operations, over the host."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def ask(self, operation: str, *args: object) -> Any:  # noqa: ANN401
        """The result of an operation; arguments that it changed in place are changed here.

        Raises:
            Exception: what the program raised, if Python has it.
        """
        asked = {"op": operation, "args": encode(args, _number)}
        send_message(self.connection, {"ask": asked})
        reply = receive_message(self.connection)
        if "raised" in reply:
            raise _error(reply, operation)
        given = [one for one in args[1:] if isinstance(one, _IN_PLACE)]
        _change(given, [decode(one, self._remote) for one in reply["changed"]])
        return decode(reply["value"], self._remote)

    def _remote(self, number: int) -> "Remote":
        return Remote(self, number)


class Remote:
    """An object of the program."""

    __slots__ = ("_client", "_number")

    def __init__(self, client: Client, number: int) -> None:
        object.__setattr__(self, "_client", client)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: object, **keywords: object) -> Any:  # noqa: ANN401, D102
        return self._client.ask("call", self, keywords, *args)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        return self._client.ask("attribute", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._client.ask("set_attribute", self, name, value)

    def __getitem__(self, key: object) -> Any:  # noqa: ANN401
        return self._client.ask("item", self, key)

    def __setitem__(self, key: object, value: object) -> None:
        self._client.ask("set_item", self, key, value)

    def __len__(self) -> int:
        return int(self._client.ask("length", self))

    def __iter__(self) -> Any:  # noqa: ANN401
        return self._client.ask("iterate", self)

    def __next__(self) -> Any:  # noqa: ANN401
        return self._client.ask("next", self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return NotImplemented
        return self._number == other._number or self._client.ask("equal", self, other) is True

    def __hash__(self) -> int:
        return hash(self._number)

    def __bool__(self) -> bool:
        return self._client.ask("truth", self) is True

    def __str__(self) -> str:
        return str(self._client.ask("text", self))

    def __repr__(self) -> str:
        return str(self._client.ask("show", self))


def serve(connection: socket.socket, request: dict[str, Any]) -> None:
    """Run the tests of a request one after the other; say of each whether it held.

    The request has the names of the program that tests use (``names``) and of modules that they
    forgot to import (``modules``), what is run first (``setup``), the ``tests``, and the function
    that is handed to ``check`` (``entry``).
    """
    client = Client(connection)
    names: dict[str, Any] = {"__name__": "tests"}
    setup, tests = request["setup"], list(request["tests"])
    if request["entry"]:
        tests = [f"{text}\ncheck({request['entry']})" for text in tests]
    for name in request["names"]:
        names[name] = _bound(name, client)
    for name in request["modules"]:
        names[name] = importlib.import_module(name)
    exec(compile(setup, "setup.py", "exec"), names)
    for text in tests:
        try:
            exec(compile(text, "tests.py", "exec"), names)
            said = {"held": True, "why": ""}
        except (ConnectionError, EOFError):
            return
        except BaseException as error:
            said = {"held": False, "why": type(error).__name__}
        send_message(connection, said)


def _bound(name: str, client: Client) -> Any:  # noqa: ANN401
    """What a name of the tests stands for in the program."""
    try:
        return client.ask("name", name)
    except NameError as error:
        return _Missing(str(error))


class _Missing:
    """A name that the program does not define; it fails where it is used."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __call__(self, *_: object, **__: object) -> Any:  # noqa: ANN401
        raise NameError(self._why)


def _number(value: object) -> int:
    if not isinstance(value, Remote):
        raise TypeError(
            f"the tests hand the program a {type(value).__name__}; it gets plain values"
        )
    return int(value._number)


_IN_PLACE = (list, dict, set, bytearray)


def _change(given: list[Any], changed: list[Any]) -> None:
    """Give lists, dictionaries and sets the contents that the program left in its copies."""
    for mine, new in zip(given, changed, strict=False):
        if type(new) is not type(mine) or new == mine:
            continue
        if isinstance(mine, list | bytearray):
            mine[:] = new
        else:
            mine.clear()
            mine.update(new)


def _error(reply: dict[str, Any], operation: str) -> Exception:
    """The error that a reply stands for: Python's nearest one, by its name."""
    raised, text = reply["raised"], str(reply.get("text", ""))
    if raised == "StopIteration" and operation == "next":
        return StopIteration()
    for name in raised if isinstance(raised, list) else ():
        kind = getattr(builtins, str(name), None)
        if name in _NO_ERROR_OF_A_PROGRAM:
            break
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                return kind(text)
            except TypeError:  # it takes more arguments, as UnicodeDecodeError does
                continue
    return ProgramError(text)
