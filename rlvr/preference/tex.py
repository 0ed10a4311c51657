r"""The equation of a loss as TeX: ``-log s(beta d)`` becomes ``-\log \sigma(\beta d)``."""

import re

_SYMBOLS = {name: rf"\{name} " for name in ("alpha", "beta", "gamma", "tau", "rho", "log", "exp")}
_SYMBOLS |= {"s": r"\sigma", "max": r"\max", "sort": r"\operatorname{sort}"}
_SYMBOLS |= {word: rf"\text{{ {word}}}" for word in ("if", "desirable", "not")}
_SYMBOLS |= {"|w|": r"\lvert w\rvert ", "|l|": r"\lvert l\rvert "}
_SYMBOLS |= {"[": r"\bigl[", "]": r"\bigr]"}
_NEXT_LINE = ",\\\\\n& "
_TOKEN = re.compile(r"[A-Za-z]+(?:_[a-z]+)?\d?|\|[wl]\||\d+(?:\.\d+)?|\^\(|\S")


def tex(equation: str) -> str:
    """TeX of an equation in the notation of docs/methods/preference.md.

    What stands behind its last comma may be a remark in words.
    """
    formula, _, remark = equation.rpartition(", ")
    if formula and re.fullmatch(r"[a-z' ]+", remark):
        return rf"{_formula(formula)},\qquad \text{{{remark}}}"
    text = _formula(equation)
    if _NEXT_LINE not in text:
        return text
    return f"\\begin{{aligned}}\n& {text}\n\\end{{aligned}}"


def _formula(text: str) -> str:
    """Symbol by symbol; brackets of an exponent are a group, commas outside of any end a line."""
    parts: list[str] = []
    closing: list[str] = []
    for token in _TOKEN.findall(text):
        if token in ("(", "^("):
            closing.append("}" if token == "^(" else ")")
            parts.append("^{" if token == "^(" else "(")
        elif token == ")":
            parts.append(closing.pop())
        elif token == ",":
            parts.append(r",\ " if closing else _NEXT_LINE)
        else:
            parts.append(_symbol(token))
    return re.sub(r"\\,(?=\W)(?!\\)", "", "".join(parts)).strip()


def _symbol(token: str) -> str:
    if token in _SYMBOLS:
        return _SYMBOLS[token]
    name, _, index = token.partition("_")
    if re.fullmatch(r"[a-z]\d", token):
        name, index = token[0], token[1]
    if len(index) == 1:
        return (name if len(name) == 1 else rf"\mathrm{{{name}}}") + f"_{index}"
    if len(name) > 1 and name.isalpha():
        return rf"\mathrm{{{token}}}\,".replace("_", r"\_")
    return token
