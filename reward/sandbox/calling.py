"""The program's side of calls: load it, then do what the tests ask of its functions and objects.

Operations are a fixed list of names. A result that is no plain value stays here, under a number.
Whatever is answered is a claim of the program, which may have changed anything in this process; the
side that asks compares it with what it knows.
"""

import socket
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any

from reward.messages import receive_message, send_message
from reward.sandbox.encoding import decode, encode

_CHANGED = (list, dict, set, bytearray)
"""Types of arguments that a function may change in place, as the caller is to see."""


def serve(connection: socket.socket, request: dict[str, Any]) -> None:
    """Load the program of a request and answer operations until the other side closes."""
    names = execute(request["source"], "solution")
    session = _Session(names)
    send_message(connection, {"loaded": True})
    with suppress(EOFError, ConnectionError):
        while True:
            send_message(connection, session.answer(receive_message(connection)))


def execute(source: str, name: str) -> dict[str, Any]:
    """Run a program's text as a module of a name; its names afterwards."""
    module = ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, "solution.py", "exec"), module.__dict__)
    return module.__dict__


class _Session:
    """The program's names, and the objects that were handed on by number."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names
        self.kept: list[object] = []

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The result of one operation, or the name and text of what it raised."""
        try:
            operation = getattr(self, f"do_{asked['op']}")
            args = decode(asked["args"], self.find)
            result = operation(*args)
            changed = [encode(x, self.keep) for x in args[1:] if isinstance(x, _CHANGED)]
            return {"value": encode(result, self.keep), "changed": changed}
        except StopIteration:
            return {"raised": "StopIteration" if asked["op"] == "next" else "RuntimeError"}
        except Exception as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            return {"raised": kinds, "text": str(error)[:200]}

    def keep(self, value: object) -> int:
        self.kept.append(value)
        return len(self.kept) - 1

    def find(self, number: int) -> object:
        return self.kept[number]

    def do_name(self, path: str) -> object:
        """``f``, ``Class.method`` or, for ``f`` alone, the method of a class ``Solution``."""
        first, *rest = path.split(".")
        if first not in self.names and hasattr(self.names.get("Solution"), first):
            first, rest = "Solution", [first]
        if first not in self.names:
            raise NameError(f"the program defines no {first}")
        found = self.names[first]
        for name in rest:
            found = getattr(found() if isinstance(found, type) else found, name)
        return found

    def do_call(self, function: Any, keywords: dict[str, Any], *args: object) -> object:  # noqa: ANN401
        return function(*args, **keywords)

    def do_attribute(self, of: object, name: str) -> object:
        return getattr(of, name)

    def do_set_attribute(self, of: object, name: str, value: object) -> None:
        setattr(of, name, value)

    def do_item(self, of: Any, key: object) -> object:  # noqa: ANN401
        return of[key]

    def do_set_item(self, of: Any, key: object, value: object) -> None:  # noqa: ANN401
        of[key] = value

    def do_length(self, of: Any) -> int:  # noqa: ANN401
        return len(of)

    def do_iterate(self, of: Any) -> object:  # noqa: ANN401
        return iter(of)

    def do_next(self, of: Any) -> object:  # noqa: ANN401
        return next(of)

    def do_equal(self, left: object, right: object) -> bool:
        return bool(left == right)

    def do_truth(self, of: object) -> bool:
        return bool(of)

    def do_text(self, of: object) -> str:
        return str(of)

    def do_show(self, of: object) -> str:
        return repr(of)
