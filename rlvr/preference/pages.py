"""The documents about losses that are printed from the code: three tables, and a page per loss.

python -m rlvr.preference.pages docs/methods
"""

import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlvr.preference.explain import equation
from rlvr.preference.lattice import find, single_model_losses
from rlvr.preference.losses.base import PreferenceLoss, UnpairedLoss
from rlvr.preference.losses.logical import Logic
from rlvr.preference.structure import Structure
from rlvr.preference.tex import tex
from rlvr.settings import describe, markdown_table
from rlvr.settings.index import write_index


def loss_table() -> str:
    """All losses as Markdown: equation, formula of rho, paper."""
    rows = [
        _row("loss", "equation", "log-probabilities", "reference", "P; P_C; P_A of rho", "paper"),
        "|---|---|---|---|---|---|",
    ]
    for name, loss in PreferenceLoss.registry().items():
        cells = (f"`{loss.equation}`", _reduction(loss), _reference(loss), _formulas(loss))
        rows.append(_row(f"[`{name}`](losses/{name}.md)", *cells, loss.linked_paper()))
    return "\n".join(rows)


def structure_table() -> str:
    """The sixteen losses of one model as Markdown: equation, formulas, reference form."""
    rows = [
        _row("loss", "rho = log of", "P", "P_C", "P_A", "P with reference"),
        "|---|---|---|---|---|---|",
    ]
    for name, structure in single_model_losses().items():
        texts = [equation(structure), *structure.formulas.values()]
        texts.append(structure.referenced().formulas["P"])
        rows.append(_row(name, *(f"`{text}`" for text in texts)))
    return "\n".join(rows)


def loss_page(name: str) -> str:
    """The page of a loss: equation, paper, meaning, settings, how to train with it."""
    loss = PreferenceLoss.registry()[name]
    about = " ".join((loss.__doc__ or "").split())
    file = Path(inspect.getfile(loss)).name
    lines = [
        f"# `{name}`",
        about,
        f"```math\n\\ell = {tex(loss.equation)}\n```",
        f"Log-probabilities of completions: {_reduction(loss)}. Reference: {_reference(loss)}. "
        f"Paper: {loss.linked_paper()}. Code: "
        f"[`{file}`](../../../rlvr/preference/losses/{file}). "
        "Notation: [preference.md](../preference.md).",
        *_meaning(loss),
        "    rlvr train " + " ".join(example(name)),
        "## Settings",
        markdown_table(list(describe(loss))),
    ]
    return "\n\n".join(lines) + "\n"


def example(name: str) -> tuple[str, str]:
    """A recipe, and the override of it that trains with this loss."""
    loss = PreferenceLoss.registry()[name]
    recipe = f"recipes/preference_{'kto' if issubclass(loss, UnpairedLoss) else 'dpo'}.yaml"
    return recipe, f"'{loss.written_example().replace(': ', '=', 1)}'"


def write_pages(folder: Path) -> None:
    """Bring the tables of the pages about losses and the pages of ``losses/`` up to date."""
    write_index("losses", (PreferenceLoss,), folder.absolute().parents[1])
    for page, key, table in (
        ("preference", "losses", loss_table()),
        ("preference_logic", "structures", structure_table()),
    ):
        path = folder / f"{page}.md"
        before, mark, rest = path.read_text(encoding="utf-8").partition(f"<!-- table: {key} -->\n")
        after = rest.partition("\n<!-- end -->")[2]
        path.write_text(f"{before}{mark}{table}\n<!-- end -->{after}", encoding="utf-8")
    (folder / "losses").mkdir(exist_ok=True)
    for name in PreferenceLoss.registry():
        (folder / "losses" / f"{name}.md").write_text(loss_page(name), encoding="utf-8")


def _meaning(loss: type[PreferenceLoss]) -> Iterator[str]:
    structure = _structure(loss)
    if structure is not None:
        texts = (f"{key} = `{text}`" for key, text in structure.formulas.items())
        yield f"As [logic](../preference_logic.md): {', '.join(texts)}. {structure.reading()}"


def _structure(loss: type[PreferenceLoss]) -> Structure | None:
    """The structure of rho; ODPO's offset is the manual pair of atoms of R-DPO."""
    if loss.core is None:
        return None
    return find("R-DPO" if loss.core == "ODPO" else loss.core)


def _formulas(loss: type[PreferenceLoss]) -> str:
    structure = _structure(loss)
    if structure is None:
        return "as given" if loss is Logic else "of several terms"
    return "; ".join(f"`{text}`" for text in structure.formulas.values())


def _reduction(loss: type[PreferenceLoss]) -> str:
    return "as set" if loss is Logic else loss.log_probs


def _reference(loss: type[PreferenceLoss]) -> str:
    if loss is Logic:
        return "as written"
    return "yes" if loss.takes_reference else "no"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: Sequence[str]) -> None:
    """Write the pages into the folder that is named."""
    (folder,) = arguments
    write_pages(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
