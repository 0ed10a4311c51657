r"""Parse a mathematical expression, LaTeX or plain text, into a small tree.

This is not a LaTeX engine: it reads the notation of answers (arithmetic, roots, powers, the usual
functions, subscripts, factorials, binomials, floors, absolute values, degrees, mixed numbers,
repeating decimals) and raises `NotAnExpression` for anything else, so that the caller can try a
slower method. It never executes what it reads. Time is linear in the length; nesting deeper than
`MAX_DEPTH` is refused.

A tree is a tuple whose first entry is its type:

    ("num", Fraction, decimal: bool)   ("sym", name)      ("const", "pi" | "e" | "i" | "inf")
    ("add", a, b)  ("mul", a, b)  ("div", a, b)  ("pow", a, b)  ("neg", a)
    ("fn", name, a, ...)  ("fact", a)  ("deg", a)
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from reward.tokens import ALIASES, FUNCTIONS, GREEK, NotAnExpression, read_number, tokenize

Tree = tuple[Any, ...]

MAX_DEPTH = 60
_OPENING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
_UNKNOWN_FUNCTIONS = set("fgh")


def nodes(tree: Tree) -> Iterator[Tree]:
    """Yield all nodes of a tree."""
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        if node[0] == "fn":
            stack.extend(node[2:])
        elif node[0] not in ("num", "sym", "const"):
            stack.extend(node[1:])


def parse(text: str) -> Tree:
    """Parse a cleaned expression (see `reward.normalize`).

    Raises:
        NotAnExpression: for anything other than one complete expression.
    """
    parser = _Parser(tokenize(text))
    tree = parser.expression(0)
    parser.expect_end()
    return tree


class _Parser:
    """Recursive descent over the token list; spaces matter only between two numbers."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.bars = 0

    # -- tokens -------------------------------------------------------------------------------

    def peek(self) -> str:
        """Return the next token other than a space, or the empty string at the end."""
        self.skip_space()
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def skip_space(self) -> None:
        while self.position < len(self.tokens) and self.tokens[self.position] == " ":
            self.position += 1

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise NotAnExpression("ends too early")
        self.position += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise NotAnExpression(f"expected {token!r}")

    def expect_end(self) -> None:
        if self.peek():
            raise NotAnExpression(f"unexpected {self.peek()!r}")

    # -- grammar ------------------------------------------------------------------------------

    def expression(self, depth: int) -> Tree:
        """Parse sum := [+-] term ([+-] term)*."""
        if depth > MAX_DEPTH:
            raise NotAnExpression("nested too deeply")
        tree = self.signed_term(depth)
        while self.peek() in ("+", "-"):
            sign = self.take()
            term = self.signed_term(depth)
            tree = ("add", tree, term if sign == "+" else ("neg", term))
        return tree

    def signed_term(self, depth: int) -> Tree:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        term = self.term(depth)
        return ("neg", term) if negative else term

    def term(self, depth: int) -> Tree:
        """Parse product := factor ((* | / | :) factor | factor)*."""
        tree = self.factor(depth)
        while True:
            token = self.peek()
            spaced = self.position > 0 and self.tokens[self.position - 1] == " "
            if token == "*":
                self.take()
                tree = ("mul", tree, self.signed_factor(depth))
            elif token in ("/", ":"):
                self.take()
                tree = ("div", tree, self.signed_factor(depth))
            elif self.starts_factor(token):
                tree = self.juxtaposed(tree, spaced, depth)
            else:
                return tree

    def signed_factor(self, depth: int) -> Tree:
        if self.peek() in ("-", "+"):
            sign = self.take()
            factor = self.signed_factor(depth + 1) if depth < MAX_DEPTH else self.factor(depth)
            return ("neg", factor) if sign == "-" else factor
        return self.factor(depth)

    def juxtaposed(self, tree: Tree, spaced: bool, depth: int) -> Tree:
        """Multiply by a factor that follows without a sign, or read a mixed number."""
        begin = self.position
        behind_sign = self.tokens[begin - 2 if spaced else begin - 1] == "!"
        factor = self.factor(depth)
        plain = tree[0] == "num" and tree[1].denominator == 1 and not tree[2]
        if factor[0] == "num" and self.tokens[begin] not in ("(", "["):  # 1{2} shows 12
            # "1 4/5" is a mixed number, "3 5" is nothing.
            if plain and spaced and not factor[2] and self.peek() == "/":
                self.take()
                below = self.factor(depth)
                if below[0] == "num" and 0 < factor[1] < below[1]:
                    return ("num", tree[1] + factor[1] / below[1], False)
            raise NotAnExpression("two numbers without a sign between them")
        # n2^{n} and 3!7! are fine, x1! is not
        if self.tokens[begin][0].isdigit() and factor[0] != "pow" and not behind_sign:
            raise NotAnExpression("a number behind a factor")
        if plain and tree[1] > 0 and self.tokens[begin] == "\\frac" and _proper(factor):
            return ("num", tree[1] + factor[1][1] / factor[2][1], False)
        return ("mul", tree, factor)

    def starts_factor(self, token: str) -> bool:
        if not token:
            return False
        if token == "|":
            return self.bars == 0
        return (
            token[0].isdigit()
            or token[0].isalpha()
            or (token[0] == "." and len(token) > 1)
            or token in ("(", "[", "{")
            or (
                token[0] == "\\"
                and (
                    token[1:] in GREEK
                    or token[1:] in FUNCTIONS
                    or token[1:] in _COMMAND_FACTORS
                    or token[1:] in ALIASES
                    or "{" in token[2:]
                )
            )
        )

    def factor(self, depth: int) -> Tree:
        """Parse atom followed by !, °, ', powers."""
        if depth > MAX_DEPTH:
            raise NotAnExpression("nested too deeply")
        tree = self.atom(depth)
        signs = 0
        while True:
            signs += 1
            if signs > MAX_DEPTH:
                raise NotAnExpression("too many signs after one number")
            token = self.peek()
            if token == "!":
                self.take()
                if self.tokens[self.position : self.position + 1] == ["!"]:
                    self.take()
                    tree = ("fn", "double factorial", tree)
                else:
                    tree = ("fact", tree)
            elif token == "°":
                self.take()
                tree = self.degrees(tree)
            elif token in ("^", "**"):
                self.take()
                if self.peek() == "°":
                    continue
                power = self.exponent(depth + 1)
                if tree[0] == "sym" and self.peek() == "_":  # v^2_0 is v_0 squared
                    self.take()
                    tree = ("sym", f"{tree[1]}_{self.subscript()}")
                tree = ("pow", tree, power)
            else:
                return tree

    def degrees(self, tree: Tree) -> Tree:
        """Read minutes and seconds of arc after a degree sign."""
        begin = self.position
        for divisor in (60, 3600):
            token = self.peek()
            if not token[:1].isdigit():
                break
            self.take()
            if self.peek() not in ("'", "''"):
                self.position = begin
                break
            self.take()
            begin = self.position
            minutes = read_number(token)[1] / divisor
            tree = ("add", tree, ("num", minutes, False))
        return ("deg", tree)

    def exponent(self, depth: int) -> Tree:
        if self.peek() in ("-", "+"):
            return ("neg", self.exponent(depth + 1)) if self.take() == "-" else self.exponent(depth)
        if depth > MAX_DEPTH:
            raise NotAnExpression("nested too deeply")
        braced = self.peek() == "{"
        tree = self.atom(depth)
        if self.peek() in ("^", "**"):
            self.take()
            return ("pow", tree, self.exponent(depth + 1))
        if braced:  # 10^{2}! is the factorial of 100
            return tree
        return ("fact", tree) if self.peek() == "!" and self.take() else tree

    def argument(self, depth: int) -> Tree:
        r"""Parse the argument of ``\frac`` or ``\sqrt``: a group, or one token (one digit)."""
        token = self.peek()
        apart = self.tokens[max(0, self.position - 2) : self.position] == ["}", " "]
        if token[:1].isdigit() and len(token) > 1 and not apart:
            self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
        return self.atom(depth + 1)

    def atom(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise NotAnExpression("nested too deeply")
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return read_number(token)
        if token in ("(", "[", "{"):
            return self.group(_OPENING[token], depth)
        if token == "|":
            self.bars += 1
            inside = self.expression(depth + 1)
            self.expect("|")
            self.bars -= 1
            return ("fn", "abs", inside)
        if token[0].isalpha():
            return self.symbol(token, depth)
        if token[0] == "\\":
            return self.command(token[1:], depth)
        raise NotAnExpression(f"unexpected {token!r}")

    def group(self, closing: str, depth: int) -> Tree:
        bars, self.bars = self.bars, 0
        inside = self.expression(depth + 1)
        self.expect(closing)
        self.bars = bars
        return inside

    def symbol(self, name: str, depth: int) -> Tree:
        """Parse a symbol with its subscript and primes, or an unknown function's value."""
        bare = name
        if self.peek() == "_":
            self.take()
            name += "_" + self.subscript()
        while self.peek() in ("'", "''") or self._prime_power():
            name += "'" * len(self.take()) if self.peek() in ("'", "''") else "'"
        if name == "e":
            return ("const", "e")
        if name == "i":
            return ("const", "i")
        if bare in _UNKNOWN_FUNCTIONS and self.peek() == "(":
            self.take()
            return ("fn", "value of " + name, self.group(")", depth))
        if bare.isupper() and self.tokens[self.position : self.position + 1] == ["("]:
            # I(0) is a value of I, and not 0; P(1+r) may well be a product.
            inside = self.tokens[self.position + 1 : self.position + 3]
            if len(inside) == 2 and inside[0][0].isdigit() and inside[1] == ")":
                self.take()
                return ("fn", "value of " + name, self.group(")", depth))
        return ("sym", name)

    def _prime_power(self) -> bool:
        r"""Consume ``^{\prime}``; tell whether there was one."""
        for form in (["^", "{", "\\prime", "}"], ["^", "\\prime"], ["\\prime"]):
            if self.tokens[self.position : self.position + len(form)] == form:
                self.position += len(form) - 1
                self.tokens[self.position] = "'"
                return True
        return False

    def subscript(self) -> str:
        if self.peek() == "{":
            self.take()
            level = 1
            parts: list[str] = []
            while True:
                token = self.take()
                level += (token == "{") - (token == "}")
                if level == 0:
                    return "".join(parts)
                parts.append(token)
        return self.take()

    def command(self, name: str, depth: int) -> Tree:
        name = ALIASES.get(name, name)
        if name in ("pi", "infty", "infinity", "inf"):
            return ("const", "pi" if name == "pi" else "inf")
        if name in GREEK:
            return self.symbol("\\" + name, depth)
        if "{" in name[1:]:  # an accented name
            accent, _, rest = name.partition("{")
            name = _ACCENTS.get(accent, accent) + "{" + rest if len(rest) == 2 else name
            if name.startswith("overline{") and "-" not in name and any(map(str.isdigit, name)):
                raise NotAnExpression("digits under a bar")
            return self.symbol("\\" + name, depth)
        if name == "frac":
            above = self.argument(depth)
            return ("div", above, self.argument(depth))
        if name == "binom":
            above = self.argument(depth)
            return ("fn", "binom", above, self.argument(depth))
        if name == "sqrt":
            return self.root(depth)
        if name in ("lfloor", "lceil"):
            inside = self.expression(depth + 1)
            self.expect("\\r" + name[1:])
            return ("fn", name[1:], inside)
        if name in ("abs", "floor", "ceil"):
            self.expect("(")
            return ("fn", name, self.group(")", depth))
        if name in FUNCTIONS:
            return self.function(name, depth)
        raise NotAnExpression(f"the command \\{name}")

    def root(self, depth: int) -> Tree:
        degree: Tree = ("num", Fraction(2), False)
        if self.peek() == "[":
            self.take()
            degree = self.group("]", depth)
        # Unlike in TeX, \sqrt51 is meant as the root of 51.
        return ("fn", "root", self.atom(depth + 1), degree)

    def function(self, name: str, depth: int) -> Tree:
        """Parse a named function: subscript base, power, then its argument."""
        base, power = None, None
        for _ in range(2):
            if self.peek() == "_" and base is None:
                self.take()
                base = self.argument(depth)
            elif self.peek() in ("^", "**") and power is None:
                self.take()
                power = self.exponent(depth + 1)
        inverse = power is not None and power == ("neg", ("num", Fraction(1), False))
        if inverse and name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            name, power = "arc" + name, None
        arguments = self.function_arguments(name, depth)
        tree: Tree = ("fn", name, *arguments)
        if name == "lg":
            tree = ("div", ("fn", "ln", arguments[0]), ("fn", "ln", ("num", Fraction(10), False)))
        if base is not None:
            if name != "log" or len(arguments) != 1:
                raise NotAnExpression(f"a subscript of {name}")
            tree = ("div", ("fn", "ln", arguments[0]), ("fn", "ln", base))
        return tree if power is None else ("pow", tree, power)

    def function_arguments(self, name: str, depth: int) -> list[Tree]:
        if self.peek() in _OPENING:
            closing = _OPENING[self.take()]
            arguments = [self.expression(depth + 1)]
            while self.peek() == "," and name in ("gcd", "lcm", "min", "max"):
                self.take()
                arguments.append(self.expression(depth + 1))
            self.expect(closing)
            if len(arguments) == 1 and name in ("gcd", "lcm", "min", "max"):
                raise NotAnExpression(f"the {name} of one number")
            return arguments
        return [self.bare_argument(depth)]

    def bare_argument(self, depth: int) -> Tree:
        r"""Parse ``2x`` of ``\sin 2x``: factors up to a sign, a bracket or another function."""
        tree = self.signed_factor(depth + 1)
        while True:
            token = self.peek()
            name = token[1:] if token[:1] == "\\" else ""
            if not self.starts_factor(token) or token in ("(", "[") or name in FUNCTIONS:
                return tree
            tree = self.juxtaposed(tree, False, depth + 1)


_ACCENTS = {"overline": "bar", "widehat": "hat", "overrightarrow": "vec"}
_COMMAND_FACTORS = {
    "pi", "infty", "infinity", "inf", "frac", "binom", "sqrt", "lfloor", "lceil", "abs", "floor",
    "ceil",
}  # fmt: skip


def _proper(tree: Tree) -> bool:
    """Tell whether a tree is a fraction of two whole numbers below 1, as in a mixed number."""
    return bool(
        tree[0] == "div"
        and tree[1][0] == tree[2][0] == "num"
        and tree[1][1].denominator == tree[2][1].denominator == 1
        and 0 < tree[1][1] < tree[2][1]
    )
