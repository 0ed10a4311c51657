"""Structure -> loss: weighted model counting in log space, and the equation as text.

Atoms are independent: an atom with weight p is true with p and false with 1 - p, a row weighs the
product, and WMC(F) sums the rows in which F holds. Then

    rho  = log WMC(Check) - log WMC(Cross)
    loss = -log sigmoid(beta rho)                 logistic (DPO, CPO, ORPO)
           (rho - 1 / (2 beta))^2                 squared (IPO)
           max(0, beta - rho)                     hinge (SLiC)

arXiv:2412.17696, sections on the semantics; with P_C true and P_A false the logistic loss at beta 1
is the semantic loss -log WMC(P) of Xu et al. (arXiv:1711.11157).

Weights come as log-probabilities and stay logarithms, so a completion of probability 1e-300 has an
exact loss and a finite gradient. log p is cut at -1e-6 (``numerics.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rlvr.lazy import torch
from rlvr.preference.formulas import atom_mask, essential, full, project
from rlvr.preference.numerics import LARGEST_LOG_PROBABILITY, log1mexp, logsigmoid
from rlvr.preference.structure import Structure

Form = Literal["logistic", "squared", "hinge"]

PROBABILITIES = {
    "w": "Pw", "l": "Pl", "rw": "Rw", "rl": "Rl", "w2": "P2w", "l2": "P2l",
    "rw2": "R2w", "rl2": "R2l", "mw": "Mw", "ml": "Ml",
}  # fmt: skip
"""How an atom's weight is written in equations."""


def log_wmc(
    mask: int, atoms: tuple[str, ...], log_weights: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """log WMC of the rows ``mask`` over ``atoms``; the shape of the weights.

    Args:
        mask: A set of rows, as bits.
        atoms: What the rows are over.
        log_weights: log p of every atom that the rows depend on, any common shape.

    Raises:
        ValueError: The weight of an atom is missing, or the set is empty.
    """
    if not mask:
        raise ValueError("the weighted model count of a formula that never holds is 0, without log")
    kept = essential(mask, len(atoms))
    missing = [atoms[index] for index in kept if atoms[index] not in log_weights]
    if missing:
        names = ", ".join(f"{PROBABILITIES[name]} ({name})" for name in missing)
        raise ValueError(f"no weight is given for {names}; give one for every atom of the loss")
    if not kept:
        like = next(iter(log_weights.values()))
        return torch.zeros_like(like)
    rows = project(mask, len(atoms), kept)
    true = [log_weights[atoms[index]].clamp_max(LARGEST_LOG_PROBABILITY) for index in kept]
    false = [log1mexp(value) for value in true]
    terms = [
        torch.stack([(true if row >> k & 1 else false)[k] for k in range(len(kept))]).sum(0)
        for row in range(1 << len(kept))
        if rows >> row & 1
    ]
    return torch.logsumexp(torch.stack(terms), 0)


def log_ratio(structure: Structure, log_weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """rho, of the shape of the weights.

    Raises:
        ValueError: As :func:`log_wmc`.
    """
    return log_wmc(structure.check, structure.atoms, log_weights) - log_wmc(
        structure.cross, structure.atoms, log_weights
    )


def loss_of(rho: torch.Tensor, form: Form = "logistic", beta: float = 1.0) -> torch.Tensor:
    """f(rho, beta), elementwise."""
    if form == "logistic":
        return -logsigmoid(beta * rho)
    if form == "squared":
        return (rho - 1 / (2 * beta)) ** 2
    return torch.relu(beta - rho)


def equation(structure: Structure) -> str:
    """rho's fraction, ``numerator / denominator``, which :func:`decompile` reads back."""
    top = polynomial(structure.check, structure.atoms)
    bottom = polynomial(structure.cross, structure.atoms)
    return f"{_factor(top)} / {_divisor(bottom)}"


def polynomial(mask: int, atoms: tuple[str, ...]) -> str:
    """WMC of the rows as a disjoint multilinear polynomial of probabilities.

    By cases of one atom at a time (Shannon expansion); of the atoms to split on, the one that
    gives the shortest text.
    """
    kept = essential(mask, len(atoms))
    names = tuple(PROBABILITIES[atoms[index]] for index in kept)
    return _expand(project(mask, len(atoms), kept), names)


def _expand(mask: int, names: tuple[str, ...]) -> str:
    if mask == 0:
        return "0"
    if mask == full(len(names)):
        return "1"
    options = []
    for index, name in enumerate(names):
        if index not in essential(mask, len(names)):
            continue
        others = tuple(i for i in range(len(names)) if i != index)
        rest = tuple(names[i] for i in others)
        true, false = _cofactors(mask, index, len(names))
        positive = _expand(project(true, len(names), others), rest)
        negative = _expand(project(false, len(names), others), rest)
        options.append(_cases(name, positive, negative))
    return min(options, key=len)  # the first of the shortest: atoms in their order


def _cofactors(mask: int, index: int, count: int) -> tuple[int, int]:
    """The function with the atom true and with it false, each independent of the atom."""
    true, shift = atom_mask(index, count), 1 << index
    high, low = mask & true, mask & ~true & full(count)
    return high | high >> shift, low | low << shift


def _cases(name: str, positive: str, negative: str) -> str:
    """p * positive + (1 - p) * negative, in its shortest spelling."""
    complement = f"(1-{name})"
    if positive == "1":
        if negative == "0":
            return name
        return f"1-{complement}*{_factor(_complement(negative))}"
    if negative == "1":
        return f"1-{name}" if positive == "0" else f"1-{name}*{_factor(_complement(positive))}"
    if negative == "0":
        return f"{name}*{_factor(positive)}"
    if positive == "0":
        return f"{complement}*{_factor(negative)}"
    return f"{name}*{_factor(positive)} + {complement}*{_factor(negative)}"


def _complement(text: str) -> str:
    """1 - text."""
    return text[2:] if text.startswith("1-") and "+" not in text else f"1-{_factor(text)}"


def _factor(text: str) -> str:
    return f"({text})" if "+" in text or text.startswith("1-") else text


def _divisor(text: str) -> str:
    return f"({text})" if not text.isalnum() else text
