"""Python values as JSON, and back: literals and a few plain types, nothing that runs code.

``None``, ``bool``, ``str``, lists, small whole numbers and finite floats are themselves. Everything
else is an object with one name, its type: ``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``,
``{"int": "-0x1f"}``. Subclasses become what they are subclasses of (a named tuple a tuple), so that
no ``__eq__`` of a program comes along. Any other object crosses as ``{"ref": number}``, where the
sender keeps such.
"""

import math
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST_DEEP = 100
_SMALL = 2**53

Keep = Callable[[object], int]
Find = Callable[[int], object]


def encode(value: object, keep: Keep | None = None, depth: int = 0) -> Any:  # noqa: ANN401
    """A value as JSON.

    Args:
        value: what to encode.
        keep: gives a number for an object that is no plain value; None refuses such.
        depth: how deep it stands in another value.

    Raises:
        ValueError: it is nested too deeply.
        TypeError: it is no plain value, and nothing keeps it.
    """
    if depth > MOST_DEEP:
        raise ValueError(f"a value is nested more than {MOST_DEEP} deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -_SMALL < number < _SMALL else {"int": hex(number)}
    if isinstance(value, float):
        real = float.__float__(value)
        return real if math.isfinite(real) else {"float": str(real)}
    for kind, (name, parts) in _KINDS.items():
        if isinstance(value, kind):
            return _encoded(name, parts(value), keep, depth)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), keep, depth + 1)
    if keep is None:
        raise TypeError(f"a value of type {type(value).__name__} cannot be handed on")
    return {"ref": keep(value)}


def _encoded(name: str, parts: Any, keep: Keep | None, depth: int) -> Any:  # noqa: ANN401
    if name == "dict":
        pairs = [[encode(item, keep, depth + 1) for item in pair] for pair in parts]
        return {"dict": pairs}
    if name in _CONTAINERS:
        items = [encode(item, keep, depth + 1) for item in parts]
        return items if name == "list" else {name: items}
    return {name: parts}


_KINDS: dict[type | tuple[type, ...], tuple[str, Callable[[Any], Any]]] = {
    list: ("list", list.__iter__),
    tuple: ("tuple", tuple.__iter__),
    dict: ("dict", dict.items),
    set: ("set", set.__iter__),
    frozenset: ("frozenset", frozenset.__iter__),
    deque: ("deque", deque.__iter__),
    range: ("range", lambda value: [hex(part) for part in (value.start, value.stop, value.step)]),
    bytes: ("bytes", bytes.hex),
    bytearray: ("bytearray", bytearray.hex),
    complex: ("complex", lambda value: [str(value.real), str(value.imag)]),
    Fraction: ("fraction", lambda value: [hex(value.numerator), hex(value.denominator)]),
    Decimal: ("decimal", str),
}
_CONTAINERS: dict[str, Callable[[list[Any]], object]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}


def decode(data: Any, find: Find | None = None, depth: int = 0) -> Any:  # noqa: ANN401
    """The value that was encoded.

    Args:
        data: what a JSON parser returned.
        find: gives the object that a number stands for; None refuses such.
        depth: how deep it stands in another value.

    Raises:
        ValueError: nothing encodes as this.
    """
    if depth > 2 * MOST_DEEP:
        raise ValueError("a value is nested too deeply")
    if data is None or isinstance(data, bool | str | int | float):
        return data
    if isinstance(data, list):
        return [decode(item, find, depth + 1) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError("no value of this protocol")
    ((name, parts),) = data.items()
    try:
        return _decoded(name, parts, find, depth)
    except (TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"no {name[:20]} of this protocol: {type(error).__name__}") from None


def _decoded(name: str, parts: Any, find: Find | None, depth: int) -> object:  # noqa: ANN401
    if name == "ref" and find is not None and isinstance(parts, int):
        return find(parts)
    if name == "dict":
        return {decode(key, find, depth + 1): decode(x, find, depth + 1) for key, x in parts}
    if name in _CONTAINERS:
        return _CONTAINERS[name]([decode(item, find, depth + 1) for item in parts])
    return _PLAIN[name](parts)


_PLAIN: dict[str, Callable[[Any], object]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "range": lambda parts: range(*(int(part, 16) for part in parts)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(float(parts[0]), float(parts[1])),
    "fraction": lambda parts: Fraction(int(parts[0], 16), int(parts[1], 16)),
    "decimal": Decimal,
}
