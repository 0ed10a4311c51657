r"""Numbers with a stated tolerance and a unit.

The reference is ``"9.81 m/s^2"``, or ``{"value": 9.81, "unit": "m/s^2", "relative": 0.01}`` with
``relative`` and ``absolute`` tolerances: an answer x of a reference v is right if
|x - v| <= absolute + relative |v|, in the reference's unit. Without a tolerance the two must be
equal up to floating point (1e-9). Units are converted by the library pint: 9810 mm/s^2 is right. A
unit on one side only is wrong, unless the reference says ``"unit_required": false``.
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from reward.domains.base import Domain, Judgement, as_object, right
from reward.expression import parse
from reward.normalize import clean
from reward.tokens import NotAnExpression
from reward.values import real_value
from reward.verdict import GradingPolicy

_ROUNDING = 1e-9
_UNIT = re.compile(r"(?:[A-Za-zµμΩ°%]|[*/·^() .]|\d{1,2}|-(?=\d))*+")
_LARGEST_POWER = 12
_SPLIT = re.compile(
    r"(?P<value>[-+]?[\d.,]++(?:\s*+(?:\\times|\*|x)\s*+10\s*+\^\s*+"
    r"(?:\{\s*+[-+]?\d++\s*+\}|[-+]?\d++)|[eE][-+]?\d++)?+"
    r"|.*[\d})])\s*+(?P<unit>(?:1\s*+/)?+[^\d].*)?",
    re.DOTALL,
)


_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})++(?:\.\d++)?+")


@dataclass(frozen=True)
class Quantity:
    """A reference."""

    value: Any
    unit: str | None = None
    relative: float = 0.0
    absolute: float = 0.0
    unit_required: bool = True

    def __post_init__(self) -> None:
        for name in ("relative", "absolute"):
            tolerance = getattr(self, name)
            if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
                raise ValueError(f"{name} is {tolerance!r}, no number")
            if not 0 <= tolerance < math.inf:
                raise ValueError(f"{name} is {tolerance}; it is a number from 0")
        value, unit = self.value, self.unit
        if isinstance(value, str):
            value, written = split(value)
            unit = unit if unit is not None else written or None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"the value {self.value!r} is no number")
        if unit is not None and read_unit(unit) is None:
            raise ValueError(f"the unit {unit!r} is unknown")
        object.__setattr__(self, "value", float(value))
        object.__setattr__(self, "unit", unit)


class QuantityDomain(Domain):
    """Numbers with units."""

    name = "quantity"

    def reference(self, gold: str) -> Quantity:
        """A number with its unit, or an object."""
        return as_object(gold, Quantity, plain="value")

    def judge(self, text: str, reference: Quantity, policy: GradingPolicy) -> Judgement:
        """Whether the answer is within the tolerance, in the reference's unit."""
        value, unit = split(text)
        if unit and reference.unit is None and not _is_number_unit(unit):
            return right(False, f"the unit {unit!r} is not asked for")
        if not unit and reference.unit is not None and reference.unit_required:
            return right(False, f"the unit {reference.unit!r} is missing")
        if unit:
            value = _converted(value, unit, reference.unit or "dimensionless")
        tolerance = reference.absolute + max(reference.relative, _ROUNDING) * abs(reference.value)
        gap = abs(value - reference.value)
        return right(gap <= tolerance, f"off by {gap:.4g}; {tolerance:.4g} is allowed")


def split(text: str) -> tuple[float, str]:
    """A number and the unit behind it, which may be empty.

    Raises:
        ValueError: there is no number.
    """
    cleaned = re.sub(r"\\text\s*|\\mathrm\s*|\\,|~", " ", text).replace("\\%", "%").strip(" $")
    cleaned = cleaned.replace("\\cdot", "*").replace("\\Omega", "ohm").replace("^\\circ", "°")
    for sign, plain in (("²", "^2"), ("³", "^3"), ("\u00d7", "x")):
        cleaned = cleaned.replace(sign, plain)
    match = _SPLIT.fullmatch(cleaned)
    unit = match.group("unit") or "" if match else ""
    unit = re.sub(r"[{}$\\]", " ", unit).strip().removesuffix(".")
    number = (match.group("value") if match else cleaned).strip()
    if _GROUPED.fullmatch(number):
        number = number.replace(",", "")
    try:
        value = real_value(parse(clean(number)))
    except NotAnExpression:
        value = None
    if value is None or not math.isfinite(value):
        raise ValueError(f"{text[:80]!r} is no number with a unit")
    return value, unit


@cache
def _registry() -> Any:  # noqa: ANN401  (pint has no types for it)
    from pint import UnitRegistry

    return UnitRegistry(cache_folder=None)


def read_unit(text: str) -> Any:  # noqa: ANN401
    """A unit, or None if it is unknown."""
    written = re.sub(r"\bper\b", "/", text.replace("·", "*").replace("^", "**")).strip()
    if not _UNIT.fullmatch(text) or any(
        int(power) > _LARGEST_POWER for power in re.findall(r"\d+", text)
    ):
        return None
    try:
        return _registry().parse_units(written)
    except Exception:  # pint raises whatever its tokenizer does; none of it is a unit
        return None


def _is_number_unit(unit: str) -> bool:
    found = read_unit(unit)
    return found is not None and bool(found.dimensionless)


def _converted(value: float, unit: str, wanted: str) -> float:
    found, target = read_unit(unit), read_unit(wanted)
    if found is None:
        raise ValueError(f"the unit {unit[:40]!r} is unknown")
    if found.dimensionality != target.dimensionality:
        raise ValueError(f"{unit} is not measured in {wanted}")
    return float(_registry().Quantity(value, found).to(target).magnitude)


DOMAINS = {"quantity": QuantityDomain()}
