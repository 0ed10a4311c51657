"""The landscape of losses: the sixteen of one model, their order, and steps from any loss.

Over w and l, a loss that prefers the winner counts the row (w true, l false) above and the row
(w false, l true) below the line, and never the other way round. The rows TT and FF each have one
of four statuses, c (above only), x (below only), b (both), n (neither), hence 16 losses. Moving a
row's status along x < n, b < c makes rho larger and the loss smaller, whatever the weights: the
sixteen form the lattice diamond x diamond, from CEUnl (asks for most) to unCPO (asks for least).

arXiv:2412.17696; the names are the paper's.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from rlvr.preference.structure import POLICY_ATOMS, Structure

# name -> statuses of the rows TT and FF.
_STATUSES = {
    "CEUnl": "xx", "l20": "xb", "cUNL": "xn", "fUnl": "xc",
    "sCE": "bx", "l3": "nx", "CE": "cx", "qfUnl": "nb",
    "bCPO": "cb", "ORPO": "nn", "cfUnl": "nc", "CPO": "bn",
    "l14": "bc", "cCPO": "cn", "unCPO": "cc", "l5": "bb",
}  # fmt: skip
# Row numbers over (w, l): atom w is bit 0, l bit 1.
_FF, _TF, _FT, _TT = 0, 1, 2, 3
_UP = {"x": "nb", "n": "c", "b": "c", "c": ""}
_DOWN = {"c": "nb", "n": "x", "b": "x", "x": ""}


@dataclass(frozen=True)
class Known:
    """A loss by name: its structure and, in a few words, what it is."""

    name: str
    structure: Structure
    about: str = ""


@cache
def single_model_losses() -> Mapping[str, Structure]:
    """The sixteen losses of one model, by the paper's name."""
    return {name: _of_statuses(text) for name, text in _STATUSES.items()}


def _of_statuses(statuses: str) -> Structure:
    rows = {_TF: "c", _FT: "x", _TT: statuses[0], _FF: statuses[1]}
    check = sum(1 << row for row, status in rows.items() if status in "cb")
    cross = sum(1 << row for row, status in rows.items() if status in "xb")
    return Structure(POLICY_ATOMS, check, cross)


@cache
def known_losses() -> tuple[Known, ...]:
    """Every loss with a name: the sixteen, their reference forms, and those with extra atoms."""
    about = {
        "CE": "imitation of the winner (SFT)",
        "CPO": "also SLiC and RRHF, which put another function around it",
        "ORPO": "exactly one of the two is valid",
        "CEUnl": "imitation of the winner and unlikelihood of the loser",
        "fUnl": "unlikelihood of the loser",
    }
    found = [Known(n, s, about.get(n, "")) for n, s in single_model_losses().items()]
    for name, structure in single_model_losses().items():
        if name == "CPO":
            note = "also IPO, hinge and robust DPO; the reference form of CPO"
            found.append(Known("DPO", structure.referenced(), note))
        else:
            found.append(Known(f"{name} with reference", structure.referenced()))
    # The manual pair stands where DPO has its reference: log(Mw / Ml) is the margin.
    found += [
        Known("SimPO", Structure.of("l & mw -> w & ml", "(w & ml) | (l & mw)", "w & l & mw & ml"),
              "log(Mw / Ml) is the target margin"),
        Known("R-DPO", _with_manual_pair(), "log(Mw / Ml) is alpha (|l| - |w|); ODPO likewise"),
        Known("DPOP", Structure.of(
            "l & rw & rw2 -> w & w2 & rl",
            "(w & w2 & rl) | (l & rw & rw2)",
            "w & w2 & rl & l & rw & rw2",
        ), "without its max(0, .)"),
    ]  # fmt: skip
    return tuple(found)


def _with_manual_pair() -> Structure:
    return Structure.of(
        "l & rw & mw -> w & rl & ml",
        "(w & rl & ml) | (l & rw & mw)",
        "w & rl & ml & l & rw & mw",
    )


def name_of(structure: Structure) -> Known | None:
    """The known loss that a structure is, if it is one."""
    return next((known for known in known_losses() if known.structure.same_as(structure)), None)


def find(name: str) -> Structure:
    """The structure of a known loss; capitals do not matter.

    Raises:
        ValueError: No loss has that name.
    """
    for known in known_losses():
        if known.name.lower() == name.lower():
            return known.structure
    names = ", ".join(known.name for known in known_losses() if " " not in known.name)
    raise ValueError(f"no loss is named {name!r}; known: {names} (and 'NAME with reference')")


def covers(structures: Mapping[str, Structure]) -> set[tuple[str, str]]:
    """Edges (a, b) of the order among these: a asks for more than b, with nothing in between."""
    below = {
        (a, b)
        for a in structures
        for b in structures
        if a != b and structures[a].below(structures[b])
    }
    between = {(a, c) for a, b in below for b2, c in below if b == b2}
    return below - between


def neighbours(structure: Structure, direction: str) -> Iterator[Structure]:
    """Losses one step up (asking for less) or down (asking for more) from any loss.

    One row's status moves by one along x < n, b < c; steps that leave Check or Cross empty are
    left out.

    Args:
        structure: Where to start.
        direction: "up" or "down".
    """
    assert direction in ("up", "down")
    steps = _UP if direction == "up" else _DOWN
    for row in range(1 << len(structure.atoms)):
        for status in steps[status_of(structure, row)]:
            bit = 1 << row
            check = structure.check & ~bit | (bit if status in "cb" else 0)
            cross = structure.cross & ~bit | (bit if status in "xb" else 0)
            if check and cross:
                yield Structure(structure.atoms, check, cross)


def status_of(structure: Structure, row: int) -> str:
    """c, x, b or n: on which sides of the fraction a row counts."""
    above, below = structure.check >> row & 1, structure.cross >> row & 1
    return {(1, 0): "c", (0, 1): "x", (1, 1): "b", (0, 0): "n"}[above, below]


def order(names: Iterable[str]) -> list[list[str]]:
    """The sixteen in ranks from the most to the least demanding."""
    height = {"x": 0, "n": 1, "b": 1, "c": 2}
    ranks: list[list[str]] = [[] for _ in range(5)]
    for name in names:
        ranks[sum(height[status] for status in _STATUSES[name])].append(name)
    return ranks
