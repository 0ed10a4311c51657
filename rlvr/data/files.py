"""Problems from a local file: JSON lines, JSON, CSV or parquet."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rlvr.data.consistency import RowSettings
from rlvr.data.rows import Fields, Row, problems_from_rows
from rlvr.types import Problem


class FileSource(RowSettings):
    """A local file of problems: .jsonl, .json (a list of objects), .csv or .parquet."""

    name: Literal["file"] = "file"
    """Problems from a local file."""

    path: Path
    """The file; its ending says the format."""

    fields: Fields = Fields()
    """Which columns hold what."""


def load_file(source: FileSource) -> list[Problem]:
    """Read the file's problems.

    Raises:
        ValueError: No such file, an unknown ending, content that is not of the format, and what
            :func:`rlvr.data.rows.problems_from_rows` refuses.
    """
    path = source.path
    rows = read_rows(path)
    return problems_from_rows(rows, source.fields, source, where=str(path), source=path.name)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, whatever they hold.

    Raises:
        ValueError: No such file, an unknown ending, or content that is not of the format.
    """
    if path.is_dir():
        raise ValueError(
            f"{str(path)!r} is a folder; give one file, or load the folder with name: hub"
        )
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


def _read_jsonl(path: Path) -> Iterator[Row]:
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
            "; if it holds one object a line, name it .jsonl" if error.msg == "Extra data" else ""
        )
        raise ValueError(
            f"{path}, line {error.lineno}: not valid JSON: {error.msg}{hint}"
        ) from None
    except _RepeatedKeyError as error:
        raise ValueError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {_beyond(error)}") from None
    if not isinstance(data, list):
        raise ValueError(f"{path}: a JSON data file is a list of objects, not {_kind(data)}")
    for number, values in enumerate(data, 1):
        yield _row(values, path, f"row {number}")


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            _refuse_repeated(reader.fieldnames or (), path)
            for number, values in enumerate(reader, 1):
                if None in values or None in values.values():
                    raise ValueError(
                        f"{path}, row {number} (line {reader.line_num}): the number of cells is "
                        f"not that of the header, {len(reader.fieldnames or ())}; quote commas"
                    )
                yield Row(f"row {number}", values)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {reader.line_num + 1}: not valid CSV: {error}"
            ) from None


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
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


class _RepeatedKeyError(ValueError):
    """A key stands twice in one JSON object; JSON itself would keep the last value silently."""


def _beyond(error: Exception) -> str:
    """JSON that is well formed and still cannot be held: Python's own limits."""
    deep = isinstance(error, RecursionError)
    what = "lists or objects nested too deeply" if deep else "a number of thousands of digits"
    return f"{what}; write it as text or remove the row"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(
                f"field {key!r} stands twice in one object, as {found[key]!r} and {value!r}; keep "
                "one of them"
            )
        found[key] = value
    return found


def _refuse_repeated(columns: Sequence[str], path: Path) -> None:
    for index, name in enumerate(columns):
        if name in columns[:index]:
            raise ValueError(f"{path}: column {name!r} stands twice; rename or remove one")


def _row(values: object, path: Path, label: str) -> Row:
    if not isinstance(values, dict):
        raise ValueError(f"{path}, {label}: a row is an object with fields, not {_kind(values)}")
    return Row(label, values)


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    return kinds.get(type(value), f"a {type(value).__name__}")
