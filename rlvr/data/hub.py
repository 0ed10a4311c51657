"""Problems from a data set on the Hugging Face Hub or in a folder on this machine.

No code that comes with a data set is run (``datasets`` no longer supports it).
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from rlvr.data.consistency import RowSettings
from rlvr.data.rows import (
    ANSWERS,
    Fields,
    Row,
    RowsWanted,
    answer_is_asked_for,
    problems_from_rows,
)
from rlvr.types import Problem


class HubLocation(Protocol):
    """Location of a data set on the Hub or on this machine."""

    @property
    def path(self) -> str:
        """Id on the Hub, or a local folder."""
        ...

    @property
    def subset(self) -> str | None:
        """Configuration."""
        ...

    @property
    def split(self) -> str:
        """Split."""
        ...

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit."""
        ...


class HubSource(RowSettings):
    """A data set on the Hub, or a local data set folder."""

    name: Literal["hub"] = "hub"
    """Problems loaded with the ``datasets`` library."""

    path: str
    """Id on the Hub ("openai/gsm8k") or a local folder (data files, or what ``save_to_disk``
    wrote)."""

    subset: str | None = None
    """Configuration of the data set if it has several, such as "main"."""

    split: str = "train"
    """Split; slices such as "train[:100]" are allowed."""

    revision: str | None = None
    """Branch, tag or commit on the Hub; name a commit to make a run repeatable."""

    fields: Fields = Fields()
    """Names of the columns."""


def load_hub(source: HubSource, wanted: RowsWanted = ANSWERS) -> list[Problem]:
    """Load the data set's problems.

    Raises:
        ValueError: The data set is not found or not reachable, the subset or split is unknown, or
            :func:`rlvr.data.rows.problems_from_rows` refuses a row.
    """
    where = _where(source)
    dataset = _dataset(source, where)
    return problems_from_rows(
        _rows(dataset, source.fields, wanted),
        source.fields,
        source,
        where=where,
        source=source.path,
        wanted=wanted,
    )


def read_hub_rows(source: HubLocation) -> tuple[list[Row], str]:
    """All columns of all rows, and a description of the data set for messages.

    Raises:
        ValueError: The data set is not found or not reachable, or the subset or split is unknown.
    """
    where = _where(source)
    rows = enumerate(_dataset(source, where), 1)
    return [Row(f"row {number}", values) for number, values in rows], where


def _where(source: HubLocation) -> str:
    subset = f" ({source.subset})" if source.subset else ""
    return f"data set {source.path!r}{subset}, split {source.split!r}"


def _dataset(source: HubLocation, where: str) -> Any:  # noqa: ANN401  (datasets is untyped here)
    from datasets.exceptions import DatasetsError

    try:
        return _load(source)
    # Every exception of a lookup, a download or a reader in the library; the message says what
    # failed.
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{where}: {_reason(error)}{_remedy(source)}") from error


def _load(source: HubLocation) -> Any:  # noqa: ANN401
    from datasets import load_dataset

    if is_saved(Path(source.path)):
        return _saved(Path(source.path), source.split)
    return load_dataset(
        source.path, name=source.subset, split=source.split, revision=source.revision
    )


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of the ``datasets`` library wrote the folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_saved(folder: Path) -> Iterator[Row]:
    """The rows of a folder that ``save_to_disk`` wrote: of its only split, or of "train".

    Raises:
        ValueError: It has several splits and none is called train, or it cannot be read.
    """
    from datasets.exceptions import DatasetsError

    try:
        rows = _saved(folder, None)
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{str(folder)!r}: {error}") from error
    for number, values in enumerate(rows, 1):
        yield Row(f"row {number}", values)


def _saved(folder: Path, split: str | None) -> Any:  # noqa: ANN401
    """The data set in a folder; without a split its only one, or "train"."""
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except IndexError:
        # The library saves an empty data set as no files, and then fails to load it.
        raise ValueError("the data set is empty; name one with at least one row") from None
    if not isinstance(loaded, DatasetDict):
        return loaded
    names = sorted(loaded)
    if split is None:
        split = names[0] if len(names) == 1 else "train"
        if split not in loaded:
            raise ValueError(f"the splits are {', '.join(names)}; name one, as {folder / names[0]}")
    if split not in loaded:
        close = difflib.get_close_matches(split, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown split; {hint}the splits are {', '.join(names)}")
    return loaded[split]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:300]}"


def _remedy(source: HubLocation) -> str:
    if Path(source.path).exists():
        return "; check subset, split and the files of the folder"
    return (
        "; check the id, subset, split and revision and that the Hub can be reached (HF_TOKEN for "
        "private data), or name a local folder"
    )


class HubColumns(Mapping[str, Any]):
    """A row's columns, each read from the data set when it is asked for.

    The data set stays on the disk, and what is not looked at (images) is never decoded.

    Args:
        views: The data set's columns by name, each as a data set of its own.
        index: Number of the row.
    """

    __slots__ = ("index", "views")

    def __init__(self, views: Mapping[str, Any], index: int) -> None:
        self.views, self.index = views, index

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        return self.views[name][self.index][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.views)

    def __len__(self) -> int:
        return len(self.views)

    def __contains__(self, name: object) -> bool:
        return name in self.views


def _rows(dataset: Any, fields: Fields, wanted: RowsWanted) -> Iterator[Row]:  # noqa: ANN401
    """Rows with only the columns in use, because decoding others (images) would waste time."""
    names = {fields.problem, fields.answer, fields.id or "id", fields.messages, *fields.metadata}
    names.add(fields.grader)
    columns = {column for name in names if name for column in (name, name.split(".")[0])}
    present = [column for column in dataset.column_names if column in columns]
    optional = {"id"} if answer_is_asked_for(fields, wanted) else {"id", fields.answer}
    needed = [name for name in names if name and name not in optional]
    missing = any(name not in present and name.split(".")[0] not in present for name in needed)
    # If a column is missing, keep all columns, so that the error can list them.
    chosen = dataset if missing or not present else dataset.select_columns(present)
    views: dict[str, Any] = {}
    if wanted.columns:
        views = {name: dataset.select_columns([name]) for name in dataset.column_names}
    for number, values in enumerate(chosen):
        own = HubColumns(views, number) if wanted.columns else None
        yield Row(f"row {number + 1}", values, own)
