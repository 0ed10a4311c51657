"""Problems from a data set of the Hugging Face Hub, or from a data set folder on this machine.

No code that comes with a data set is run (``datasets`` no longer can, and nothing here asks it to).
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from rlvr.data.consistency import RowSettings
from rlvr.data.rows import Fields, Row, problems_from_rows
from rlvr.types import Problem


class HubLocation(Protocol):
    """Where on the Hub, or on this machine, a data set is."""

    @property
    def path(self) -> str:
        """Id on the Hub or a local folder."""
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
    """A data set of the Hub by its id, or a local data set folder."""

    name: Literal["hub"] = "hub"
    """Problems through the ``datasets`` library."""

    path: str
    """Id on the Hub ("openai/gsm8k") or a local folder (data files, or what ``save_to_disk``
    wrote)."""

    subset: str | None = None
    """Configuration of the data set, where it has several ("main")."""

    split: str = "train"
    """Split; slices such as "train[:100]" work."""

    revision: str | None = None
    """Branch, tag or commit on the Hub; a commit makes a run repeatable."""

    fields: Fields = Fields()
    """Which columns hold what."""


def load_hub(source: HubSource) -> list[Problem]:
    """Load the data set's problems.

    Raises:
        ValueError: Not found or not reachable, an unknown subset or split, and what
            :func:`rlvr.data.rows.problems_from_rows` refuses.
    """
    where = _where(source)
    dataset = _dataset(source, where)
    return problems_from_rows(
        _rows(dataset, source.fields), source.fields, source, where=where, source=source.path
    )


def read_hub_rows(source: HubLocation) -> tuple[list[Row], str]:
    """All columns of all rows, and the words that name the data set in messages.

    Raises:
        ValueError: Not found or not reachable, or an unknown subset or split.
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
    # Everything that a lookup, a download or a reader of the library raises; its messages say what.
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{where}: {_reason(error)}{_remedy(source)}") from error


def _load(source: HubLocation) -> Any:  # noqa: ANN401
    from datasets import DatasetDict, load_dataset, load_from_disk

    folder = Path(source.path)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if not (folder.is_dir() and saved):
        return load_dataset(
            source.path, name=source.subset, split=source.split, revision=source.revision
        )
    try:
        loaded = load_from_disk(source.path)
    except IndexError:
        # No rows are saved as no files, which the library then trips over.
        raise ValueError("the data set is empty; give one with at least one row") from None
    if not isinstance(loaded, DatasetDict):
        return loaded
    if source.split not in loaded:
        close = difflib.get_close_matches(source.split, loaded, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown split; {hint}there are {', '.join(sorted(loaded))}")
    return loaded[source.split]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:300]}"


def _remedy(source: HubLocation) -> str:
    if Path(source.path).exists():
        return "; check subset, split and the files of the folder"
    return (
        "; check the id, subset, split and revision and that the Hub can be reached (HF_TOKEN for "
        "private data), or give a local folder"
    )


def _rows(dataset: Any, fields: Fields) -> Iterator[Row]:  # noqa: ANN401
    """Rows with the columns that are wanted: others (images) would be decoded for nothing."""
    names = {fields.problem, fields.answer, fields.id or "id", fields.messages, *fields.metadata}
    columns = {column for name in names if name for column in (name, name.split(".")[0])}
    present = [column for column in dataset.column_names if column in columns]
    wanted = [name for name in names if name and name != "id"]
    missing = any(name not in present and name.split(".")[0] not in present for name in wanted)
    # With a column missing, all are kept, so that the error can list them.
    chosen = dataset if missing or not present else dataset.select_columns(present)
    for number, values in enumerate(chosen, 1):
        yield Row(f"row {number}", values)
