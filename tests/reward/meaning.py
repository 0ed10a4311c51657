r"""What an answer of a small grammar means, decided without the verifier.

The grammar has the pieces that answers are made of (`PIECES`). `meaning` reads a text of them by a
parser of its own and returns what it claims; `says` compares two claims by value, at points and in
digits of its own. Nothing here is shared with `reward`, so the two can only agree by being right.

Conventions of the verifier that are choices, not truths, are followed: percent signs divide by
100 and may be missing where the reference has one, bare lists are multisets, a label ``x=`` and a
counted noun say nothing, a decimal may be off by 1e-6 of its size, an approximation by a percent or
by its last digit. The exponent of a negative number is whole.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from typing import Any

import mpmath

NEUTRAL = ["\\quad ", "\\;", "\\,", "the answer is ", " apples", " cm", "\\text{ ways}", "$"]
SCALED = {
    " squared": lambda v: v * v, " cubed": lambda v: v**3, " halves": lambda v: v / 2,
    " thirds": lambda v: v / 3, " hundred": lambda v: v * 100, " million": lambda v: v * 10**6,
    " dozen": lambda v: v * 12, " percent": lambda v: v / 100, "\\%": lambda v: v / 100,
    " quarters": lambda v: v / 4,
}  # fmt: skip
BEFORE = {"minus ": lambda v: -v, "negative ": lambda v: -v, "half of ": lambda v: v / 2,
          "twice ": lambda v: v * 2}  # fmt: skip
SPOILED = ["not ", " wrong", " is incorrect", "it is not true that it is ", "\\neg ", " if ",
           " where ", " otherwise", " respectively ", "maybe ", "?", "\u0338", "\\cancel{",
           "\\ne ", "<", "\\le ", "\\pm ", "'", "_{", "\\overline{", "anything but ", ";",
           "less than ", "or so", "\\dots", "\\sim ", "\\propto "]  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "\\sin(": mpmath.sin, "\\cos(": mpmath.cos, "\\ln(": mpmath.log, "\\max(": max, "\\min(": min,
    "\\gcd(": lambda *of: mpmath.mpf(reduce(_gcd, of)), "\\exp(": mpmath.exp,
    "\\tanh(": mpmath.tanh,
}  # fmt: skip
NAMES = ["x", "n", "k"]
LABELS = [*NAMES, "e", "i"]
MARKS = [*"0123456789.+-/()|!=,[]", "}", "^{", "\\cdot ", "\\frac{", "}{", "\\sqrt{", "\\binom{",
         "\\lfloor ", "\\rfloor ", "\\pi ", "e", "i", "\\approx ", " or ", " and ", "\\{", "\\}",
         "10^{"]  # fmt: skip
PIECES = [*MARKS, *NAMES, *FUNCTIONS, *NEUTRAL, *SCALED, *BEFORE, *SPOILED]
_PIECE = re.compile("|".join(re.escape(p) for p in sorted({*PIECES}, key=len, reverse=True)))
DIGITS, POINTS = 60, 16

Value = Any  # mpmath.mpf or mpmath.mpc
Function = Callable[[dict[str, Value]], Value]


class Unread(ValueError):
    """The text is none of the grammar's, or means nothing."""


class TooLarge(ArithmeticError):
    """A value out of the range that is computed here."""


@dataclass(frozen=True)
class Claim:
    """What an answer claims: one value, or several between brackets.

    ``brackets`` are "" for one value, "," for a bare list, or the two brackets.
    """

    brackets: str
    values: tuple[Function, ...]
    names: frozenset[str]
    whole: bool
    decimal: bool
    percent: bool
    joint: str = ","
    ordered: bool = False


def pieces(text: str) -> list[str]:
    """Split a text.

    Raises:
        Unread: something of it is no piece.
    """
    for written in (text, f"{text} ", f" {text}", f" {text} "):  # its ends may have been cut off
        found = _PIECE.findall(written)
        if "".join(found) == written:
            return found
    raise Unread("other characters")


def meaning(text: str) -> Claim:
    """What a text claims.

    Raises:
        Unread: it claims nothing: it is malformed, hedged or denied.
    """
    return _Reader(pieces(text)).answer()


def without_litter(text: str) -> list[str]:
    """The text without signs that change nothing, in the ways that it may be meant.

    Raises:
        Unread: something of it is no piece.
    """
    found = [piece for piece in pieces(text) if piece not in NEUTRAL]
    while found and found[0] in ("=", "\\approx ", *_JOINTS):
        del found[0]
    while found and found[-1] in (" respectively ", "=", "\\cdot "):
        found.pop()
    ways = []
    for semicolon, conjunction in (("", " and "), (",", " and "), ("", ",")):
        kept: list[str] = []
        for piece in found:
            piece = {";": semicolon, "\\dots": "", " and ": conjunction}.get(piece, piece)
            if (kept and piece in (*_JOINTS, "=") and kept[-1] in (*_JOINTS, "=")) or (
                kept and kept[-1] == "." and not piece.isdigit()
            ):
                kept.pop()
            if kept and piece in _CLOSINGS and kept[-1] in _JOINTS:
                kept.pop()
            if piece == " respectively " and len(kept) < len(found) - 1:
                piece = ""
            if piece and (kept or piece not in _JOINTS):
                kept.append(piece)
        while kept and kept[-1] in (*_JOINTS, "."):
            kept.pop()
        ways.append("".join(kept))
    return ways


_JOINTS = (",", " or ", " and ")
_CLOSINGS = (")", "]", "\\}")


class _Reader:
    """Recursive descent; every value is a function of the names' values."""

    def __init__(self, found: Sequence[str]) -> None:
        self.found = []
        for piece in found:
            self.found += ["1", "0", "^{"] if piece == "10^{" else [piece]
        self.found = [
            piece
            for before, piece in zip(["", *self.found], self.found, strict=False)
            if piece not in NEUTRAL
            and not (before == " cm" and piece in (" squared", " cubed"))  # a unit
        ]
        if not self.found or any(piece in SPOILED for piece in found):
            raise Unread("nothing is claimed")
        self.at, self.bars, self.whole, self.varies = 0, 0, False, False
        self.names: set[str] = set()
        self.imaginary = 0
        self.decimal = "." in self.found
        self.percent = "\\%" in self.found or " percent" in self.found

    def peek(self) -> str:
        return self.found[self.at] if self.at < len(self.found) else ""

    def take(self, *wanted: str) -> str:
        piece = self.peek()
        if not piece or (wanted and piece not in wanted):
            raise Unread(f"{piece!r} at {self.at}")
        self.at += 1
        return piece

    def answer(self) -> Claim:
        opening, joint = self.peek(), ","
        if opening in ("[", "\\{") or (opening == "(" and self._is_tuple()):
            self.take()
            closings = ("\\}",) if opening == "\\{" else ("]", ")")
            values = [self.chain()]
            while self.peek() == "," or (self.peek() in _JOINTS and opening == "\\{"):
                self.take()
                values.append(self.chain())
            brackets = opening + self.take(*closings)
            whole = self.found[: self.at]
            while self.peek() in ("=", "\\approx ", *_JOINTS) and self._again(whole):
                self.at += len(whole) + 1
            if self.peek() == "=":
                self.take()
                if not self._ends_in_label():
                    raise Unread("another value of a collection")
        else:
            values = [self.chain()]
            while self.peek() in _JOINTS:
                joint = self.take()
                values.append(self.chain())
            brackets = "," if len(values) > 1 else ""
        if self.peek():
            raise Unread(f"{self.peek()!r} behind the answer")
        names = frozenset(self.names)
        return Claim(brackets, tuple(values), names, self.whole, self.decimal, self.percent, joint)

    def _again(self, whole: Sequence[str]) -> bool:
        """Whether the same stands once more behind a sign."""
        return list(self.found[self.at + 1 : self.at + 1 + len(whole)]) == list(whole)

    def _is_tuple(self) -> bool:
        level = 0
        for piece in self.found[self.at :]:
            level += piece in ("(", *FUNCTIONS)
            if piece in (")", "]"):
                level -= 1
            if level == 1 and piece == ",":
                return True
            if level == 0:
                return False
        return False

    def chain(self) -> Function:
        """Members that are all equal; a label in front; approximations behind."""
        near: list[tuple[Function, float]] = []
        begin = self.at
        while self.peek() in ("+", "1"):  # 1x = 4
            self.take()
        label = self._label()
        if not label:
            self.at = begin
        outside, i_before = self.names, self.imaginary
        self.names = set()
        members = [self.scaled()]
        if label in self.names or (label == "i" and self.imaginary > i_before):
            self.at = begin  # an equation, not a label
            members = [self.scaled()]
        self.names |= outside
        while self.peek() in ("=", "\\approx "):
            exact, begin = self.take() == "=" and not near, self.at
            if label and exact and self.peek() == "=":
                self.take()
            if exact and self._ends_in_label():
                break
            member = self.scaled()
            if exact:
                members.append(member)
            else:
                near.append((member, _last_digit(self.found[begin : self.at])))

        def value(point: dict[str, Value]) -> Value:
            first, *others = (member(point) for member in members)
            if any(not _same(first, other, 1e-6 if self.decimal else 0) for other in others):
                raise Unread("a false chain")
            for other, last in near:
                given = other(point)
                if not _same(first, given, 0.01) and abs(first - given) > last:
                    raise Unread("far from what it approximates")
            return first

        return value

    def _label(self) -> str:
        """Take a label such as ``x=`` or ``|x|=``, also before ``\\approx``; return its name."""
        for before, behind in (([], []), (["|"], ["|"]), (["\\sin("], [")"]), (["\\cos("], [")"])):
            size = len(before) + 1 + len(behind)
            form = self.found[self.at : self.at + size + 1]
            name = form[len(before)] if len(form) > size else ""
            signed = name in LABELS and form[size] in ("=", "\\approx ")
            if signed and form[:size] == [*before, name, *behind]:
                self.at += size + 1
                return name
        return ""

    def _ends_in_label(self) -> bool:
        """Take a name that stands nowhere else and ends the chain: ``5 = x``."""
        for size, place in ((1, 0), (3, 1)):
            form = self.found[self.at : self.at + size]
            behind = self.found[self.at + size : self.at + size + 1]
            if len(form) < size or (behind and behind[0] not in _JOINTS):
                continue
            name, framed = form[place], size == 1 or form[0] == form[2] == "|"
            fresh = name not in self.names and not (name == "i" and self.imaginary)
            if framed and fresh and name in (LABELS if size == 3 else NAMES):
                self.at += size
                return True
        return False

    def scaled(self) -> Function:
        if self.peek() in BEFORE:
            change = BEFORE[self.take()]
            inner = self.scaled()
            return lambda point: change(inner(point))
        found = self.sum()
        while self.peek() in SCALED:
            found = _then(SCALED[self.take()], found)
        return found

    def sum(self) -> Function:
        found = self.signed()
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            found = _added(found, self.signed(), sign)
        return found

    def signed(self) -> Function:
        sign = 1
        while self.peek() in ("+", "-"):
            sign *= 1 if self.take() == "+" else -1
        found = self.product()
        return found if sign == 1 else lambda point: -found(point)

    def product(self) -> Function:
        found = self.power()
        while True:
            piece = self.peek()
            if piece in ("\\cdot ", "/"):
                self.take()
                sign = 1
                while self.peek() in ("+", "-"):
                    sign *= 1 if self.take() == "+" else -1
                found = _combined(found, self.power(), piece)
                found = found if sign == 1 else _then(lambda v: -v, found)
            elif piece in ("(", "\\frac{", "\\sqrt{", "\\binom{", "\\lfloor ", "\\pi ", "e", "i",
                           *NAMES, *FUNCTIONS) or (piece == "|" and not self.bars):  # fmt: skip
                found = _combined(found, self.power(), "\\cdot ")
            else:
                return found

    def power(self) -> Function:
        found = self.atom()
        while self.peek() in ("^{", "!"):
            if self.take() == "!":
                self.whole = True
                if self.peek() == "!":
                    self.take()
                    found = _then(lambda v: mpmath.fac2(_whole(v)), found)
                else:
                    found = _then(lambda v: mpmath.factorial(_whole(v)), found)
            else:
                exponent = self.exponent()
                self.whole |= _is_negative(found) and self.varies
                found = _raised(found, exponent)
        return found

    def exponent(self) -> Function:
        """An exponent; `varies` says whether it has names."""
        outside, self.names = self.names, set()
        found = self.sum()
        self.take("}")
        self.varies, self.names = bool(self.names), outside | self.names
        return found

    def atom(self) -> Function:
        piece = self.take()
        if piece.isdigit() or piece == ".":
            return self.number(piece)
        if piece in NAMES:
            self.names.add(piece)
            return lambda point: point[piece]
        constants = {"\\pi ": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1)}
        if piece in constants:
            self.imaginary += piece == "i"
            return lambda point: constants[piece]
        return self.grouped(piece)

    def grouped(self, piece: str) -> Function:
        if piece == "(":
            inner = self.sum()
            self.take(")")
            return inner
        if piece == "|":
            self.bars += 1
            inner = self.sum()
            self.take("|")
            self.bars -= 1
            return _then(abs, inner)
        if piece in ("\\frac{", "\\binom{"):
            above = self.sum()
            self.take("}{")
            below = self.sum()
            self.take("}")
            if piece == "\\frac{":
                return _combined(above, below, "/")
            self.whole = True
            return lambda point: mpmath.binomial(_whole(above(point)), _whole(below(point)))
        if piece == "\\sqrt{":
            inner = self.sum()
            self.take("}")
            return _then(mpmath.sqrt, inner)
        if piece == "\\lfloor ":
            inner = self.sum()
            self.take("\\rfloor ")
            return _then(_floor, inner)
        if piece in FUNCTIONS:
            return self.call(piece)
        raise Unread(f"{piece!r} begins nothing")

    def call(self, piece: str) -> Function:
        arguments = [self.sum()]
        while self.peek() == ",":
            self.take()
            arguments.append(self.sum())
        self.take(")")
        many = piece in ("\\max(", "\\min(", "\\gcd(")
        if (len(arguments) > 1) != many:
            raise Unread("a wrong number of arguments")
        self.whole |= piece == "\\gcd("
        return lambda point: FUNCTIONS[piece](*(_real(piece, a(point)) for a in arguments))

    def number(self, first: str) -> Function:
        text = first
        while self.peek().isdigit() or self.peek() == ".":
            text += self.take()
        if not re.fullmatch(r"\d{1,40}(\.\d{1,40})?|\.\d{1,40}", text):
            raise Unread(f"no number: {text[:20]}")
        exact = Fraction(text)
        if self.peek() == "e" and self.found[self.at + 1 : self.at + 2] not in ([], ["."]):
            begin, exponent = self.at, ""
            self.take()
            while self.peek().isdigit():
                exponent += self.take()
            if exponent and int(exponent) < 1000:  # 3e2
                exact *= 10 ** int(exponent)
            else:
                self.at = begin
        return lambda point: mpmath.mpf(exact.numerator) / exact.denominator


def _last_digit(written: Sequence[str]) -> float:
    """What one in the last digit of a written number is worth; 0 for anything else."""
    number = re.fullmatch(r"-?\d+(?:\.(\d*))?", "".join(written))
    if number is None:
        return 0.0
    return float(10.0 ** -len(number.group(1))) if number.group(1) else 0.5


def _is_negative(base: Function) -> bool:
    try:
        value = base({})
    except (KeyError, ArithmeticError, ValueError, TypeError):
        return False
    return not isinstance(value, mpmath.mpc) and value < 0


def _then(change: Callable[[Value], Value], inner: Function) -> Function:
    return lambda point: change(inner(point))


def _added(left: Function, right: Function, sign: int) -> Function:
    return lambda point: left(point) + sign * right(point)


def _combined(left: Function, right: Function, sign: str) -> Function:
    if sign == "/":
        return lambda point: left(point) / right(point)
    return lambda point: left(point) * right(point)


def _raised(base: Function, exponent: Function) -> Function:
    def value(point: dict[str, Value]) -> Value:
        below, above = base(point), exponent(point)
        if abs(above) * (abs(mpmath.log(abs(below))) if below else 0) > 2000:
            raise TooLarge
        return below**above

    return value


def _whole(value: Value) -> Value:
    if isinstance(value, mpmath.mpc) or abs(value - mpmath.nint(value)) > mpmath.mpf(10) ** -30:
        raise Unread("a function of whole numbers elsewhere")
    nearest = mpmath.nint(value)
    if not -200 <= nearest <= 10**5:
        raise TooLarge
    return nearest


def _gcd(left: Value, right: Value) -> int:
    a, b = int(_whole(left)), int(_whole(right))
    while b:
        a, b = b, a % b
    return abs(a)


def _real(piece: str, value: Value) -> Value:
    if piece in ("\\max(", "\\min(") and isinstance(value, mpmath.mpc):
        raise Unread("no order")
    return value


def _floor(value: Value) -> Value:
    if isinstance(value, mpmath.mpc):
        raise Unread("no order")
    near = mpmath.nint(value)
    return near if abs(value - near) < mpmath.mpf(10) ** -30 else mpmath.floor(value)


def _same(left: Value, right: Value, tolerance: float) -> bool:
    size = max(abs(left), abs(right))
    return bool(abs(left - right) <= max(tolerance, mpmath.mpf(10) ** (25 - DIGITS)) * size)


def says(answer: Claim, reference: Claim, draw: random.Random) -> bool:
    """Whether an answer claims what the reference does, at points drawn here."""
    if reference.percent and not answer.percent:
        hundredfold = [_then(lambda v: v * 100, value) for value in reference.values]
        if says(answer, replace(reference, values=tuple(hundredfold), percent=False), draw):
            return True
    answer = _bracketed_like(answer, reference)
    if answer.brackets != reference.brackets:
        return False
    whole = answer.whole or reference.whole
    names = sorted(answer.names | reference.names)
    compared = 0
    with mpmath.workdps(DIGITS):
        for _ in range(4 * POINTS if names else 1):
            point = {name: _drawn(draw, whole) for name in names}
            try:
                wanted = [value(point) for value in reference.values]
            except (ArithmeticError, ValueError, TypeError):
                continue  # the reference has no value here
            if not all(map(mpmath.isfinite, wanted)):
                continue
            try:
                given = [value(point) for value in answer.values]
            except (ArithmeticError, ValueError, TypeError) as error:
                if isinstance(error, Unread) or not names:
                    return False
                continue
            if not _members(answer, given, wanted):
                return False
            compared += 1
            if compared == POINTS:
                break
    return compared > (POINTS // 2 if names else 0)


def _bracketed_like(answer: Claim, reference: Claim) -> Claim:
    """A tuple may be written without its brackets, and a bare list as a set or a tuple."""
    kinds = {answer.brackets, reference.brackets}
    if answer.joint != " or " and kinds in ({",", "()"}, {",", "\\{\\}"}):
        return replace(answer, brackets=reference.brackets, ordered=kinds == {",", "()"})
    return answer


def _members(answer: Claim, given: list[Value], wanted: list[Value]) -> bool:
    tolerance = 1e-6 if answer.decimal else 0
    if answer.ordered or answer.brackets not in (",", "\\{\\}"):
        return len(given) == len(wanted) and all(
            _same(a, b, tolerance) for a, b in zip(given, wanted, strict=True)
        )
    if answer.brackets == "," and len(given) != len(wanted):
        return False
    left = [next((i for i, b in enumerate(wanted) if _same(a, b, tolerance)), None) for a in given]
    right = [any(_same(a, b, tolerance) for a in given) for b in wanted]
    counts = answer.brackets == "\\{\\}" or sorted(map(str, left)) == sorted(
        str(next(i for i, b in enumerate(wanted) if _same(a, b, 0))) for a in wanted
    )
    return None not in left and all(right) and counts


def _drawn(draw: random.Random, whole: bool) -> Value:
    if whole:
        return mpmath.mpf(draw.choice((draw.randint(0, 9), draw.randint(0, 60))))
    size = draw.choice((-1, 1)) * 10 ** draw.uniform(-2, 3)
    return mpmath.mpf(size) * (1 + mpmath.mpf(draw.randint(1, 10**9)) / 10**10)
