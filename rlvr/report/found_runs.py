"""Which run folders were named: single ones, or folders that contain runs."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

DEPTH = 3
"""How many folders below a named one a run may be."""


def is_run(folder: Path) -> bool:
    """Whether a run has logged something in ``folder``, finished or not."""
    return (folder / "recipe.yaml").is_file() and (folder / "metrics.jsonl").is_file()


def has_begun(folder: Path) -> bool:
    """Whether a run was recorded in ``folder``, even if it has logged nothing yet."""
    return is_run(folder) or all((folder / name).is_file() for name in ("recipe.yaml", "run.json"))


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders among ``folders`` and up to three levels below them, each once, in order.

    Raises:
        ValueError: A folder is missing, or contains no run.
    """
    for folder in folders:
        check_folder(folder)
        if next(_below(folder, DEPTH, is_run), None) is None:
            raise ValueError(
                f"{folder} contains no run (a folder with recipe.yaml and metrics.jsonl); name the "
                "output folder of a run, or a folder of such folders"
            )
    if not folders:
        raise ValueError("no run was named; name the output folders of runs")
    return runs_below(folders)


def runs_below(
    folders: Sequence[Path], depth: int = DEPTH, test: Callable[[Path], bool] = is_run
) -> list[Path]:
    """The same without a complaint where there is none (yet).

    Args:
        folders: Where to look.
        depth: How many folders below them.
        test: Whether a folder is a run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        for run in _below(folder, depth, test):
            found.setdefault(run.resolve(), run)
    return list(found.values())


def check_folder(folder: Path) -> None:
    """Check that ``folder`` is one.

    Raises:
        ValueError: It is not.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name the output folder of a run")


def run_names(runs: Sequence[Path], root: Path | None = None) -> list[str]:
    """Short, distinct names: the paths below ``root``.

    Args:
        runs: Run folders.
        root: A folder that contains all of them, or is the only one; None is the innermost.
    """
    if not runs:
        return []
    root = root or common_folder(runs)
    paths = [Path(os.path.abspath(run)).relative_to(root).as_posix() for run in runs]
    return [root.name if path == "." else path for path in paths]


def common_folder(runs: Sequence[Path]) -> Path:
    """The innermost folder that contains all runs."""
    return Path(os.path.commonpath([os.path.dirname(os.path.abspath(run)) for run in runs]))


def _below(folder: Path, depth: int, test: Callable[[Path], bool]) -> Iterator[Path]:
    if test(folder):
        yield folder
    elif depth and folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        for child in sorted(folder.iterdir()):
            if not child.name.startswith(".") and child.is_dir():
                yield from _below(child, depth - 1, test)
