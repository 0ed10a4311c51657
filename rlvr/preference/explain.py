"""A loss in words: what ``rlvr logic`` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast, get_args

from rlvr.lazy import torch
from rlvr.preference.compile import PROBABILITIES, Form, equation, log_ratio, loss_of
from rlvr.preference.decompile import decompile
from rlvr.preference.lattice import name_of, neighbours
from rlvr.preference.structure import Structure

_ATOM_OF = {probability: atom for atom, probability in PROBABILITIES.items()}


def explain_equation(text: str) -> dict[str, Any]:
    """What an equation says: P, P_C, P_A, its reading, and which known loss it is.

    Raises:
        ValueError: The equation counts no formula; the terms in the way are named.
    """
    found = decompile(text)
    return describe(found.structure) | {"notes": list(found.notes)}


def explain_structure(
    structure: Structure,
    *,
    at: Mapping[str, float] | None = None,
    form: Form = "logistic",
    beta: float = 1.0,
    reference: bool = False,
) -> dict[str, Any]:
    """What a structure compiles to, with rho and the loss at a point where one is given.

    Args:
        structure: P, P_C and P_A.
        at: Probabilities by their names (Pw, Pl, Rw, Rl, ...).
        form: f.
        beta: f's parameter.
        reference: Take the reference form.

    Raises:
        ValueError: A probability is unknown, missing or not within (0, 1); a structure that speaks
            of the reference has no reference form.
    """
    if reference:
        structure = structure.referenced()
    found = describe(structure) | {"f": form, "beta": beta}
    if at is not None:
        rho = log_ratio(structure, _weights(at))
        found |= {
            "at": dict(at),
            "rho": round(float(rho), 9),
            "loss_value": round(float(loss_of(rho, form, beta)), 9),
        }
    return found


def compile_formulas(
    core: str,
    condition: str,
    added: str,
    *,
    at: str | None,
    form: str,
    beta: float,
    reference: bool,
) -> dict[str, Any]:
    """:func:`explain_structure` of texts, as a person writes them.

    Raises:
        ValueError: As there, and an unknown f or a beta that is not positive.
    """
    if form not in get_args(Form):
        raise ValueError(f"f = {form!r} is unknown; choose logistic, squared or hinge")
    if beta <= 0:
        raise ValueError(f"beta = {beta} is not above 0")
    return explain_structure(
        Structure.of(core, condition, added),
        at=None if at is None else parse_point(at),
        form=cast(Form, form),
        beta=beta,
        reference=reference,
    )


def _weights(at: Mapping[str, float]) -> dict[str, torch.Tensor]:
    weights = {}
    for name, value in at.items():
        if name not in _ATOM_OF:
            raise ValueError(f"{name!r} is no probability here; they are {', '.join(_ATOM_OF)}")
        if not 0 < value < 1:
            raise ValueError(f"{name} = {value} is not within (0, 1)")
        weights[_ATOM_OF[name]] = torch.tensor(math.log(value), dtype=torch.float64)
    return weights


def parse_point(text: str) -> dict[str, float]:
    """``Pw=.6,Pl=.3`` as a mapping.

    Raises:
        ValueError: A part is not NAME=NUMBER.
    """
    point = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            point[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"{part.strip()!r} is not of the form Pw=.6") from None
    return point


def describe(structure: Structure) -> dict[str, Any]:
    """Formulas, equation, reading and name of a structure."""
    known = name_of(structure)
    return {
        **structure.formulas,
        "equation": equation(structure),
        "reading": structure.reading(),
        "loss": known.name if known else None,
        "about": known.about if known else "",
    }


def named_neighbours(structure: Structure, direction: str) -> tuple[list[str], int]:
    """Known losses one step away, and how many steps there are in all."""
    found = list(neighbours(structure, direction))
    names = [known.name for other in found if (known := name_of(other))]
    return names, len(found)


def render(found: Mapping[str, Any]) -> str:
    """The description as lines for a terminal."""
    named = found["loss"] or "none that has a name"
    about = f" ({found['about']})" if found["about"] else ""
    lines = [
        f"P     {found['P']}",
        f"P_C   {found['P_C']}",
        f"P_A   {found['P_A']}",
        f"rho   log {found['equation']}",
        f"reads {found['reading']}",
        f"loss  {named}{about}",
    ]
    if "rho" in found:
        point = ", ".join(f"{name} = {value:g}" for name, value in found["at"].items())
        lines.append(
            f"at {point}: rho = {found['rho']:.6f}, {found['f']} loss at beta "
            f"{found['beta']:g} = {found['loss_value']:.6f}"
        )
    return "\n".join([*lines, *(f"note  {note}" for note in found.get("notes", ()))])
