"""Problems from a local file: JSON lines, JSON, CSV or parquet, or a saved data set."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rlvr.data.cells import Cell
from rlvr.data.consistency import RowSettings
from rlvr.data.rows import ANSWERS, Fields, Row, RowsWanted, problems_from_rows
from rlvr.types import Problem


class FileSource(RowSettings):
    """A local file of problems: .jsonl, .json (a list of objects), .csv or .parquet; or a folder
    that ``save_to_disk`` of ``datasets`` wrote."""

    name: Literal["file"] = "file"
    """Problems from a local file."""

    path: Path
    """Path of the file, whose ending gives the format, or of the folder."""

    fields: Fields = Fields()
    """Names of the columns."""


def load_file(source: FileSource, wanted: RowsWanted = ANSWERS) -> list[Problem]:
    """Read the file's problems.

    Raises:
        ValueError: The file is missing, has an unknown ending or content of another format, or
            :func:`rlvr.data.rows.problems_from_rows` refuses a row.
    """
    path = source.path
    rows = read_rows(path, for_folders=", or load it with name: hub")
    return problems_from_rows(
        rows, source.fields, source, where=str(path), source=path.name, wanted=wanted
    )


def read_rows(path: Path, *, for_folders: str = "") -> list[Row]:
    """The rows of a file, or of a folder that ``datasets`` saved, whatever they contain.

    Args:
        path: The file or folder.
        for_folders: What else to do with a folder of files; it ends the message about one.

    Raises:
        ValueError: The file is missing, has an unknown ending, or content of another format.
    """
    if path.is_dir():
        return list(_read_folder(path, for_folders))
    if not path.is_file():
        raise ValueError(f"data file {str(path)!r} does not exist; check the path")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"data file {str(path)!r} has the ending {path.suffix!r}; the known ones are "
            f"{', '.join(_READERS)}"
        )
    try:
        return list(reader(path))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8"
        ) from None


def _read_folder(path: Path, remedy: str) -> Iterator[Row]:
    from rlvr.data.hub import is_saved, read_saved

    if not is_saved(path):
        raise ValueError(
            f"{str(path)!r} is a folder, but not one that save_to_disk of datasets wrote; name a "
            f"file in it{remedy}"
        )
    return read_saved(path)


def read_jsonl(path: Path) -> Iterator[Row]:
    """The objects of a file of JSON lines, each with its place; blank lines are skipped.

    Raises:
        ValueError: A line is no JSON object, or says a field twice; it is named.
    """
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line, object_pairs_hook=_object)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON: {error.msg}") from None
            except _RepeatedKeyError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {_beyond(error)}") from None
            yield _row(values, path, f"line {number}")


def _read_json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        data = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        hint = (
            "; if each line holds one object, name it .jsonl" if error.msg == "Extra data" else ""
        )
        raise ValueError(
            f"{path}, line {error.lineno}: not valid JSON: {error.msg}{hint}"
        ) from None
    except _RepeatedKeyError as error:
        raise ValueError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {_beyond(error)}") from None
    if not isinstance(data, list):
        raise ValueError(f"{path}: a JSON data file must hold a list of objects, not {_kind(data)}")
    for number, values in enumerate(data, 1):
        yield _row(values, path, f"row {number}")


def _read_csv(path: Path) -> Iterator[Row]:
    # The limit is the module's, for all readers; JSON in a cell is often longer than its 131,072.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            yield from _cells(csv.DictReader(text, strict=True), path)
    finally:
        csv.field_size_limit(limit)


def _cells(reader: "csv.DictReader[str]", path: Path) -> Iterator[Row]:
    try:
        _refuse_repeated(reader.fieldnames or (), path)
        for number, values in enumerate(reader, 1):
            if None in values or None in values.values():
                raise ValueError(
                    f"{path}, row {number} (line {reader.line_num}): the number of cells "
                    f"differs from the header's, {len(reader.fieldnames or ())}; quote commas"
                )
            yield Row(f"row {number}", {name: Cell(text) for name, text in values.items()})
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + 1}: not valid CSV: {error}") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        _refuse_repeated(pyarrow.parquet.read_schema(path).names, path)
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: not a readable parquet file: {reason}") from None
    for number, values in enumerate(table.to_pylist(), 1):
        yield Row(f"row {number}", values)


_READERS = {
    ".jsonl": read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
FORMATS = tuple(_READERS)
"""Endings of files that are read."""


class _RepeatedKeyError(ValueError):
    """A key occurs twice in one JSON object; JSON would silently keep the last value."""


def _beyond(error: Exception) -> str:
    """The message for valid JSON that exceeds Python's limits."""
    deep = isinstance(error, RecursionError)
    what = "lists or objects nested too deeply" if deep else "a number with thousands of digits"
    return f"{what}; write it as text or remove the row"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(
                f"field {key!r} occurs twice in one object, as {found[key]!r} and {value!r}; keep "
                "one of them"
            )
        found[key] = value
    return found


def _refuse_repeated(columns: Sequence[str], path: Path) -> None:
    for index, name in enumerate(columns):
        if name in columns[:index]:
            raise ValueError(f"{path}: column {name!r} occurs twice; rename or remove one")


def _row(values: object, path: Path, label: str) -> Row:
    if not isinstance(values, dict):
        raise ValueError(
            f"{path}, {label}: a row must be an object with fields, not {_kind(values)}"
        )
    return Row(label, values)


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    return kinds.get(type(value), f"a {type(value).__name__}")
