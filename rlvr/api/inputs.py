"""What a program gives in memory, written into the run's folder so that the recipe stands alone.

    RUN/inputs/data.jsonl     the rows, one a line
    RUN/inputs/NAME.jsonl     rows of an evaluation set
    RUN/inputs/model/         the weights that training started from, with the tokenizer
    RUN/inputs/tokenizer/     a tokenizer that was given without a model in memory

They are there before the run is, and leave with it if the run does not come to be.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlvr.files import line, replacing_folder, write_atomically
from rlvr.ranks import Ranks
from rlvr.runs.collectives import on_rank_zero
from rlvr.runs.run_folder import INPUTS

Rows = list[dict[str, Any]]


@dataclass
class Inputs:
    """What is to be written into ``output``'s folder of inputs; nothing is written yet."""

    output: Path
    rows: dict[str, Rows] = field(default_factory=dict)
    folders: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where they go; absolute, as the recipe may be run from anywhere."""
        return self.output.absolute() / INPUTS

    def add_rows(self, name: str, rows: Rows) -> Path:
        """The file that will hold rows."""
        self.rows[name] = rows
        return self.folder / f"{name}.jsonl"

    def add_saved(self, name: str, *objects: Any) -> Path:  # noqa: ANN401
        """The folder that will hold what ``save_pretrained`` of each object writes."""
        self.folders[name] = objects
        return self.folder / name

    @contextmanager
    def written(self, ranks: Ranks) -> Iterator[None]:
        """Write them; remove them if the block ends without a run in the folder.

        Args:
            ranks: The processes of the job, each of which calls this; the first writes.

        Raises:
            ValueError: The folder holds other inputs, of the run that is to be resumed, or cannot
                be written.
        """
        texts = {name: _as_lines(name, rows) for name, rows in self.rows.items()}
        if not texts and not self.folders:
            yield
            return
        made = [path for path in (self.output, *self.output.parents) if not path.exists()]
        try:
            on_rank_zero(ranks, lambda: self._write(texts))
            yield
        finally:
            if ranks.first and not (self.output / "recipe.yaml").is_file():
                shutil.rmtree(self.folder, ignore_errors=True)
                with suppress(OSError):  # something else has come into one
                    for path in made:
                        path.rmdir()

    def _write(self, texts: Mapping[str, str]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                self._write_text(name, text)
            for name, objects in self.folders.items():
                self._save(name, objects)
        except OSError as error:
            raise ValueError(
                f"output {str(self.output)!r} cannot be written ({error.strerror}); choose another "
                "output"
            ) from error

    def _write_text(self, name: str, text: str) -> None:
        path = self.folder / f"{name}.jsonl"
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"the rows given as {name} are not those with which the run in "
                f"{str(self.output)!r} began ({str(path)!r}); give the same, leave them out, or "
                "choose another output"
            )
        write_atomically(path, text)

    def _save(self, name: str, objects: tuple[Any, ...]) -> None:
        if (self.folder / name).is_dir():
            return  # of the run that is resumed: the weights that it started from
        with replacing_folder(self.folder / name) as partial:
            for item in objects:
                item.save_pretrained(partial)


def _as_lines(name: str, rows: Rows) -> str:
    """Rows as JSON lines.

    Raises:
        ValueError: A value is none that JSON has.
    """
    lines = []
    for number, row in enumerate(rows, 1):
        try:
            lines.append(line(row))
        except (TypeError, ValueError) as error:
            bad = next((key for key in row if not _is_json(row[key])), "?")
            raise ValueError(
                f"{name}, row {number}: column {bad!r} = {row.get(bad)!r:.80} cannot be written as "
                f"JSON ({error}); leave the column out, or turn it into text or numbers"
            ) from None
    return "".join(lines)


def _is_json(value: object) -> bool:
    try:
        line({"value": value})
    except (TypeError, ValueError):
        return False
    return True


def rows_of(name: str, data: Any) -> Rows:  # noqa: ANN401
    """Rows in memory as a list of mappings.

    Args:
        name: What they are called in messages.
        data: A list of mappings, a ``datasets.Dataset``, a table of pandas, or anything else that
            gives mappings.

    Raises:
        ValueError: They are something else, or there are none.
    """
    if isinstance(data, Mapping):
        raise ValueError(
            f"{name} holds splits ({', '.join(map(str, data))}); choose one, such as "
            f"{name}={name}[{next(iter(data), 'train')!r}]"
        )
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # a table of pandas
        data = data.to_dict("records")
    if not isinstance(data, Iterable):
        raise ValueError(
            f"{name} = {data!r:.80} is a {type(data).__name__}; give a list of mappings, a "
            "datasets.Dataset, or the path of a file"
        )
    rows = list(data)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{name}, row {number}: {row!r:.80} is a {type(row).__name__}; a row is a mapping "
                'such as {"problem": "1+1=", "answer": "2"}'
            )
    if not rows:
        raise ValueError(f"{name} has no rows; give at least one")
    return [dict(row) for row in rows]


def tokenizer_of(model: Any) -> Any:  # noqa: ANN401
    """The tokenizer of the place that a model was loaded from.

    Raises:
        ValueError: It was loaded from none that has one.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as error:
        raise ValueError(
            "no tokenizer is found for the model given, which was loaded from "
            f"{model.name_or_path!r}; give it as tokenizer="
        ) from error
