r"""Parse a mathematical expression, LaTeX or plain text, into a small tree.

This is not a LaTeX engine: it reads the notation of answers (arithmetic, roots, powers, the usual
functions, subscripts, factorials, binomials, floors, absolute values, degrees, mixed numbers,
repeating decimals) and raises `NotAnExpression` for anything else, so that the caller may try
something slower. It never executes what it reads. Time is linear in the length; nesting deeper
than `MAX_DEPTH` is refused.

A tree is a tuple whose first entry is its type:

    ("num", Fraction, decimal: bool)   ("sym", name)      ("const", "pi" | "e" | "i" | "inf")
    ("add", a, b)  ("mul", a, b)  ("div", a, b)  ("pow", a, b)  ("neg", a)
    ("fn", name, a, ...)  ("fact", a)  ("deg", a)
"""

import re
from fractions import Fraction
from typing import Any

Tree = tuple[Any, ...]

MAX_DEPTH = 60
MAX_TOKENS = 1200
MAX_DIGITS = 400

GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
    "Gamma", "Delta", "Theta", "Lambda", "Xi", "Sigma", "Phi", "Psi", "Omega", "hbar", "ell",
}  # fmt: skip
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh",
    "cosh", "tanh", "ln", "log", "lg", "exp", "sgn", "sign", "gcd", "lcm", "min", "max", "Re",
    "Im", "arcsec", "arccsc",
}  # fmt: skip
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log", "sign": "sgn"}
_PLAIN_WORDS = sorted(
    [*(name for name in FUNCTIONS if name.islower()), *_ALIASES, "sqrt", "pi", "infinity",
     "infty", "inf", "abs", "floor", "ceil", "theta", "alpha", "beta", "gamma", "delta", "lambda",
     "sigma", "omega", "phi"],
    key=len,
    reverse=True,
)  # fmt: skip
_PLAIN_WORD = re.compile("|".join(_PLAIN_WORDS))
_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.\\overline\{\d+\}|\d*\.\d*\\(?:overline|dot|bar)\{\d+\}"
    r"|\d+\.\d*\(\d+\)|\d+(?:\.\d+)?[eE][+-]?\d+(?![\d.])|\d+\.\d+|\.\d+|\d+\.?))"
    r"|(?P<text>\\text\{[^{}]*\})"
    r"|(?P<accent>\\(?:overline|vec|hat|bar|tilde|dot|ddot|widehat|overrightarrow)\{[^{}]*\})"
    r"|(?P<command>\\[A-Za-z]+|\\.)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<other>\*\*|''|[-+*/^_=<>:!|(){}\[\],;'°%.])"
    r"|(?P<space>\s+)"
)
_OPENING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
_UNKNOWN_FUNCTIONS = set("fgh")


class NotAnExpression(ValueError):
    """The text is not an expression this parser reads."""


def parse(text: str) -> Tree:
    """Parse a cleaned expression (see `reward.normalize`).

    Raises:
        NotAnExpression: for anything else than one complete expression.
    """
    parser = _Parser(_tokenize(text))
    tree = parser.expression(0)
    parser.expect_end()
    return tree


def number(text: str) -> Fraction | None:
    """Read a plain number: digits, decimal point, exponent, repeating decimals; else ``None``."""
    stripped = text.strip().lstrip("+")
    negative = stripped.startswith("-")
    match = _TOKEN.fullmatch(stripped[1:] if negative else stripped)
    if match is None or match.lastgroup != "number":
        return None
    try:
        value = _number(match.group())[1]
    except NotAnExpression:
        return None
    return -value if negative else value


def _tokenize(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotAnExpression(f"unreadable character {text[position]!r}")
        kind, token, position = match.lastgroup, match.group(), match.end()
        if kind == "space":
            if tokens and tokens[-1] != " ":
                tokens.append(" ")
        elif kind == "letters":
            tokens += _split_letters(token)
        elif kind == "text":
            tokens += _split_text(token[6:-1].strip())
        else:
            tokens.append(token)
        if len(tokens) > MAX_TOKENS:
            raise NotAnExpression("too long")
    return tokens


def _split_letters(run: str) -> list[str]:
    """Split a run of letters into known names and single symbols; refuse an English word."""
    tokens: list[str] = []
    position = 0
    while position < len(run):
        match = _PLAIN_WORD.match(run, position)
        if match:
            tokens.append("\\" + match.group())
            position = match.end()
        else:
            tokens.append(run[position])
            position += 1
    symbols = [token for token in tokens if len(token) == 1]
    vowels = sum(letter in "aeiouEIOU" for letter in symbols)
    if (len(symbols) > 2 and vowels > (symbols[:1] == ["a"])) or (len(run) > 4 and vowels > 1):
        raise NotAnExpression(f"the word {run!r}")
    if len(symbols) > 5 or run in ("no", "on", "or", "if", "is", "it", "to", "of", "No", "NO"):
        raise NotAnExpression(f"the word {run!r}")
    return tokens


def _split_text(content: str) -> list[str]:
    if len(content) == 1 and content.isalpha():
        return [content]
    raise NotAnExpression(f"the text {content!r}")


def _number(token: str) -> tuple[str, Fraction, bool]:
    """Read one number token exactly; repeating decimals become fractions."""
    if len(token) > MAX_DIGITS:
        raise NotAnExpression("too many digits")
    repeating = re.fullmatch(r"(\d*)\.(\d*)(?:\\[a-z]+\{(\d+)\}|\((\d+)\))", token)
    if repeating:
        whole, fixed = repeating.group(1) or "0", repeating.group(2)
        cycle = repeating.group(3) or repeating.group(4)
        scale = 10 ** len(fixed)
        value = Fraction(int(whole + fixed), scale)
        value += Fraction(int(cycle), scale * (10 ** len(cycle) - 1))
        return ("num", value, False)
    mantissa, _, exponent = token.lower().partition("e")
    if exponent and abs(int(exponent)) > 5000:
        raise NotAnExpression("exponent out of range")
    return ("num", Fraction(mantissa.rstrip(".")) * _power_of_ten(exponent), "." in mantissa[:-1])


def _power_of_ten(exponent: str) -> Fraction:
    return Fraction(10) ** int(exponent) if exponent else Fraction(1)


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
            raise NotAnExpression(f"no {token!r} where one is due")

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
        """Multiply by what follows without a sign, or read a mixed number."""
        begin = self.position
        factor = self.factor(depth)
        plain = tree[0] == "num" and tree[1].denominator == 1 and not tree[2]
        if factor[0] == "num" and self.tokens[begin] not in _OPENING:
            # "1 4/5" is a mixed number, "3 5" is nothing.
            if plain and spaced and not factor[2] and self.peek() == "/":
                self.take()
                below = self.factor(depth)
                if below[0] == "num" and 0 < factor[1] < below[1]:
                    return ("num", tree[1] + factor[1] / below[1], False)
            raise NotAnExpression("two numbers without a sign between them")
        if plain and self.tokens[begin] == "\\frac" and _proper(factor):
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
                    or token[1:] in _ALIASES
                    or "{" in token[1:]
                )
            )
        )

    def factor(self, depth: int) -> Tree:
        """Parse atom followed by !, °, ', powers."""
        if depth > MAX_DEPTH:
            raise NotAnExpression("nested too deeply")
        tree = self.atom(depth)
        while True:
            token = self.peek()
            if token == "!":
                self.take()
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
            minutes = _number(token)[1] / divisor
            tree = ("add", tree, ("num", minutes, False))
        return ("deg", tree)

    def exponent(self, depth: int) -> Tree:
        if self.peek() in ("-", "+"):
            return ("neg", self.exponent(depth + 1)) if self.take() == "-" else self.exponent(depth)
        if depth > MAX_DEPTH:
            raise NotAnExpression("nested too deeply")
        tree = self.atom(depth)
        if self.peek() in ("^", "**"):
            self.take()
            return ("pow", tree, self.exponent(depth + 1))
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
            return _number(token)
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
        name = _ALIASES.get(name, name)
        if name in ("pi", "infty", "infinity", "inf"):
            return ("const", "pi" if name == "pi" else "inf")
        if name in GREEK:
            return self.symbol("\\" + name, depth)
        if "{" in name:  # an accented name
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
        # Unlike TeX, people who write \sqrt51 mean the root of 51.
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
        if base is not None:
            if name != "log" or len(arguments) != 1:
                raise NotAnExpression(f"a subscript of {name}")
            tree = ("div", ("fn", "ln", arguments[0]), ("fn", "ln", base))
        return tree if power is None else ("pow", tree, power)

    def function_arguments(self, name: str, depth: int) -> list[Tree]:
        if self.peek() in ("(", "[", "{"):
            closing = _OPENING[self.take()]
            arguments = [self.expression(depth + 1)]
            while self.peek() == "," and name in ("gcd", "lcm", "min", "max"):
                self.take()
                arguments.append(self.expression(depth + 1))
            self.expect(closing)
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
